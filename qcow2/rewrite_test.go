package qcow2_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// Files of random chains are written anew, some with clusters that are damaged and known from elsewhere. They hold what they held.
func TestRewrite(t *testing.T) {
	qemutest.Require(t, "qemu-img")
	for seed := range foldSeeds(t, 60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := newRand(seed)
			var c foldChain
			if seed%4 == 0 {
				c.key = newKey(t, 1)
			}
			for i := range 2 + r.IntN(3) {
				c.add(t, r, randomFoldLayer(r, i == 0, 200<<10))
			}
			for i, p := range c.points {
				c.rewrite(t, p, r.IntN(2) == 0)
				c.checkFile(t, i)
			}
			for i := range c.points {
				c.checkContent(t, i)
			}
			if seed%16 == 0 {
				c.checkQEMU(t)
			}
		})
	}
}

// rewrite gives a point a new file. Where it has data, a byte of them is damaged before, if that is asked for.
func (c *foldChain) rewrite(t *testing.T, p *foldPoint, damage bool) {
	t.Helper()
	broken := &ramFile{append([]byte(nil), p.file.b...)}
	im, err := c.openFile(broken, false)
	if err != nil {
		t.Fatal(err)
	}
	damaged := false
	if at := dataByte(broken.b); damage && at >= 0 {
		broken.b[at] ^= 1
		damaged = im.VerifyDigests(t.Context()) != nil // some bits of compressed data say nothing
	}
	made := &ramFile{}
	o := qcow2.RewriteOptions{Identity: []byte(p.identity), Codec: codecOf(im)}
	o.Fill = func(_ context.Context, b []byte, guest int64, want *qcow2.Digest) (qcow2.Kind, bool, error) {
		clear(b)
		copy(b, p.want[min(guest, int64(len(p.want))):])
		return qcow2.Data, true, nil
	}
	result, err := im.Rewrite(t.Context(), made, o)
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Left) > 0 || damaged != (len(result.Filled) > 0) {
		t.Errorf("damaged %t; filled %v, left %v", damaged, result.Filled, result.Left)
	}
	p.file = made
}

// dataByte is where in a file a byte of data lies, -1 where it has none.
func dataByte(b []byte) int64 {
	l := newLayout(b)
	if len(l.compressed) > 0 {
		return (l.compressed[0].from + l.compressed[0].to) / 2
	}
	if len(l.data) > 0 {
		return l.data[0].from
	}
	return -1
}

// codecOf is what the clusters of a file can be compressed by.
func codecOf(im *qcow2.Image) qcow2.Codec { return qcow2.DefaultCodec(im.Header().Compression) }
