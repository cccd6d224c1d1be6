package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// TestFoldKeepsNeighboursOfDamage has one bit wrong in the L2 entry of a compressed cluster that the child hides. The chain reads
// right, and has to do so afterwards.
func TestFoldKeepsNeighboursOfDamage(t *testing.T) {
	const cluster, size = 64 << 10, 1 << 20
	rng := rand.New(rand.NewPCG(1, 1))
	want := make([]byte, size)
	for at := 0; at < len(want); at += cluster {
		for i := range 20 << 10 {
			want[at+i] = byte(rng.Uint32())
		}
	}
	c := &foldChain{}
	write := func(name, backing string, n int) {
		f := &ramFile{}
		w, err := qcow2.NewWriter(f, qcow2.WriterOptions{Size: size, ClusterSize: cluster, Codec: qcow2.ZstdCodec(1), BackingFile: backing})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		e, err := qcow2.NewChunkEncoder(qcow2.ZstdCodec(1))
		if err != nil {
			t.Fatal(err)
		}
		chunk := &qcow2.Chunk{Data: bytes.Clone(want[:n])}
		if err := e.Encode(chunk, cluster); err != nil {
			t.Fatal(err)
		}
		if err := w.Append(chunk); err != nil {
			t.Fatal(err)
		}
		if err := w.Finish([]byte(name)); err != nil {
			t.Fatal(err)
		}
		c.points = append(c.points, &foldPoint{name: name, file: f, identity: name, want: bytes.Clone(want)})
	}
	write("x", "", size)
	want[5] ^= 0xff
	write("c", "./x", cluster)

	// One bit of the offset in the first entry of x.
	b := c.points[0].file.b
	l1 := binary.BigEndian.Uint64(b[40:])
	l2 := binary.BigEndian.Uint64(b[l1:]) & 0x00fffffffffffe00
	b[l2+6] ^= 0x40 // 16 KiB
	check := func(when string, i int) {
		im, err := c.open(i, true)
		if err != nil {
			t.Fatal(when, err)
		}
		got := make([]byte, size)
		if n, err := im.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: wrong behind %d: %v", when, n, err)
		}
	}
	check("before", 1)
	im, err := c.open(1, true)
	if err != nil {
		t.Fatal(err)
	}
	folded, err := qcow2.FoldIntoBacking(t.Context(), c.points[0].file, im, qcow2.FoldOptions{Identity: []byte("c"), Compress: true})
	if err != nil {
		t.Log(err) // to decline is right, too
		check("afterwards", 1)
		return
	}
	if err := folded.Punch(c.points[0].file); err != nil {
		t.Fatal(err)
	}
	check("afterwards", 0)
}
