package qcow2_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// layer is how one random file of a chain is written.
type layer struct {
	size    int64 // as it is asked for, perhaps odd
	cluster int64
	codec   qcow2.Codec
	exact   bool // tell the Writer where the backing file holds data
	sparse  bool // most of it stays as it was
	key     *qcow2.DigestKey
}

func (l layer) String() string {
	codec := "none"
	if l.codec != nil {
		codec = l.codec.Type().String()
	}
	return fmt.Sprintf("size %d, cluster %d, %s, exact %t", l.size, l.cluster, codec, l.exact)
}

func randomLayer(r *rand.Rand, first bool) layer {
	l := layer{cluster: 512 << r.IntN(13), exact: r.IntN(2) == 0}
	if !first { // whose backing name needs a place behind the first sector
		l.cluster = max(l.cluster, 1<<10)
	}
	l.codec = []qcow2.Codec{nil, qcow2.ZlibCodec(), qcow2.ZstdCodec(1)}[r.IntN(3)]
	l.size = r.Int64N(min(400*l.cluster, max(640<<10, 5*l.cluster)))
	if r.IntN(3) == 0 {
		l.size = l.size / l.cluster * l.cluster
	}
	return l
}

// chain is files that a Writer made, and what a guest must see of the newest.
type chain struct {
	dir   string
	files []string
	want  []byte
}

func (c *chain) top() string { return c.files[len(c.files)-1] }

// add writes one more file with random changes.
func (c *chain) add(t *testing.T, r *rand.Rand, l layer) {
	t.Helper()
	o := qcow2.WriterOptions{Size: l.size, ClusterSize: l.cluster, Codec: l.codec}
	if len(c.files) > 0 {
		o.BackingFile = "./" + filepath.Base(c.top())
		if l.exact {
			below := openChain(t, c.top())
			o.BackingMayHoldData = func(off, n int64) (bool, error) { return holdsData(below, off, n) }
		}
	}
	rounded := (l.size + 511) / 512 * 512
	want := make([]byte, (rounded+l.cluster-1)/l.cluster*l.cluster)
	copy(want[:rounded], c.want)

	name := filepath.Join(c.dir, fmt.Sprintf("%d.qcow2", len(c.files)))
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := qcow2.NewWriter(f, o)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	scribbleWriter(t, r, w, l, want)
	if err := w.Finish([]byte("who I am")); err != nil {
		t.Fatal(err)
	}
	if info, err := f.Stat(); err != nil || info.Size() != w.Stats().FileBytes {
		t.Errorf("%d bytes, but the writer says %d: %v", info.Size(), w.Stats().FileBytes, err)
	}
	c.files, c.want = append(c.files, name), want[:rounded]
}

// scribbleWriter makes random changes through w and in want, which is what a guest sees in whole clusters.
func scribbleWriter(t *testing.T, r *rand.Rand, w *qcow2.Writer, l layer, want []byte) {
	t.Helper()
	encoder, err := qcow2.NewChunkEncoder(l.codec)
	if err != nil {
		t.Fatal(err)
	}
	encoder.UseKey(l.key)
	var c qcow2.Chunk
	for off := int64(0); off < int64(len(want)); {
		n := min((1+r.Int64N(12))*l.cluster, int64(len(want))-off)
		part := want[off : off+n]
		if l.sparse && r.IntN(8) > 0 {
			off += n
			continue
		}
		switch r.IntN(6) {
		case 0: // unchanged
		case 1:
			clear(part)
			err = w.Zero(off, n)
		default:
			before := bytes.Clone(part)
			fill(r, part, l.cluster)
			clear(want[min((l.size+511)/512*512, int64(len(want))):])
			c.Offset, c.Data = off, append(c.Data[:0], part...)
			c.Gaps = randomGaps(r, &c, l.cluster)
			for _, g := range c.Gaps {
				copy(want[g.Offset:g.End()], before[g.Offset-off:]) // as it was
			}
			if err = encoder.Encode(&c, l.cluster); err == nil {
				err = w.Append(&c)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		off += n
	}
}

// randomGaps gives most often none, otherwise gaps between, before and behind what is to be written, some adjoining,
// some empty.
func randomGaps(r *rand.Rand, c *qcow2.Chunk, cluster int64) (gaps []qcow2.Range) {
	if r.IntN(3) > 0 {
		return nil
	}
	end := c.Offset + int64(len(c.Data))
	for off := c.Offset + r.Int64N(3)*cluster; off <= end; off += r.Int64N(3) * cluster {
		g := qcow2.Range{Offset: off, Length: min(r.Int64N(4)*cluster, end-off)}
		gaps = append(gaps, g)
		if off = g.End(); off == end {
			break
		}
	}
	return gaps
}

// fill changes clusters to data that compresses well, a little, not at all, or zeroes, or leaves them as they were.
func fill(r *rand.Rand, b []byte, cluster int64) {
	for ; len(b) > 0; b = b[cluster:] {
		part := b[:cluster]
		switch r.IntN(6) {
		case 0:
			clear(part)
		case 1:
			copy(part, bytes.Repeat([]byte{byte(r.Uint32())}, len(part)))
		case 2:
			copy(part, bytes.Repeat([]byte(fmt.Sprintln("line", r.Uint32())), len(part)/5))
		case 3:
			noise(r, part)
		case 4: // compresses by a random part
			noise(r, part[r.IntN(len(part)):])
		}
	}
}

// noise fills b with what does not compress, eight bytes at a time.
func noise(r *rand.Rand, b []byte) {
	for i := range b {
		if i%8 == 0 && i+8 <= len(b) {
			v := r.Uint64()
			for j := range 8 {
				b[i+j] = byte(v >> (8 * j))
			}
		}
	}
}

func holdsData(im *qcow2.Image, off, n int64) (bool, error) {
	for end := min(off+n, im.Size()); off < end; {
		e, err := im.Extent(off)
		if err != nil || e.Kind == qcow2.Data {
			return true, err
		}
		off += e.Length
	}
	return false, nil
}

// check compares what our reader makes of the chain with what was written, and verifies each file.
func (c *chain) check(t *testing.T) {
	t.Helper()
	im := openChain(t, c.top())
	got, err := io.ReadAll(io.NewSectionReader(im, 0, im.Size()))
	if err != nil || len(got) != len(c.want) {
		t.Fatalf("read %d bytes of %d: %v", len(got), len(c.want), err)
	}
	if !bytes.Equal(got, c.want) {
		t.Fatalf("read: differs from what was written at %d", firstDifference(got, c.want))
	}
	for depth := 0; im != nil; im, depth = im.Backing(), depth+1 {
		if err := im.CheckStructure(t.Context()); err != nil {
			t.Errorf("check structure at depth %d: %v", depth, err)
		}
		if err := im.VerifyDigests(t.Context()); err != nil {
			t.Errorf("verify digests at depth %d: %v", depth, err)
		}
		if id, err := im.Identity(); err != nil || string(id) != "who I am" {
			t.Errorf("identity at depth %d: %q, %v", depth, id, err)
		}
	}
}

// checkQEMU does the same with qemu-img.
func (c *chain) checkQEMU(t *testing.T) {
	t.Helper()
	for _, file := range c.files {
		qemutest.Check(t, file)
	}
	got, err := os.ReadFile(qemutest.Convert(t, c.top()))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(c.want) {
		t.Fatalf("qemu-img convert: %d bytes instead of %d", len(got), len(c.want))
	}
	if !bytes.Equal(got, c.want) {
		t.Fatalf("qemu-img convert: differs from what was written at %d", firstDifference(got, c.want))
	}
}

// Random chains of one to four files read back as what was written to them: by our reader, and some by qemu-img.
// With RBD2QCOW2_TEST_LONG=1 there are twenty-five times as many. The seed of a chain is the name of its subtest.
func TestWriterModel(t *testing.T) {
	qemutest.Require(t, "qemu-img")
	seeds := uint64(240)
	if long() {
		seeds *= 25
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := newRand(seed)
			c := chain{dir: t.TempDir()}
			var layers []string
			defer func() {
				if t.Failed() {
					t.Logf("seed %d:\n%s", seed, strings.Join(layers, "\n"))
				}
			}()
			for i := range 1 + r.IntN(4) {
				l := randomLayer(r, i == 0)
				layers = append(layers, l.String())
				c.add(t, r, l)
			}
			c.check(t)
			for _, prove := range []bool{false, true} {
				im := openChain(t, c.top(), prove)
				if im.Proved() != prove {
					t.Errorf("proved: %v, want %v", im.Proved(), prove)
				}
				checkWindows(t, r, im, c.want)
			}
			if seed%8 == 0 {
				c.checkQEMU(t)
			}
		})
	}
}

// long says whether the tests may take minutes.
func long() bool { return os.Getenv("RBD2QCOW2_TEST_LONG") == "1" }
