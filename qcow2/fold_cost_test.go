package qcow2_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// foldBase is a full disk of size bytes, half of each cluster noise, and an increment of n changed pieces of it.
func foldBase(t *testing.T, codec qcow2.Codec, size int64, n int, piece int64) (*foldChain, int64) {
	t.Helper()
	r := newRand(uint64(size))
	content := make([]byte, size)
	for off := 0; off < len(content); off += 4096 {
		noise(r, content[off:][:2048])
	}
	c := &foldChain{points: []*foldPoint{{name: "base", want: content, file: &ramFile{}}, {name: "top", file: &ramFile{}}}}
	c.points[0].file.b = writeFile(t, qcow2.WriterOptions{Codec: codec, ClusterSize: 64 << 10}, content, "base")

	changed := bytes.Clone(content)
	w, err := qcow2.NewWriter(c.points[1].file, qcow2.WriterOptions{Size: size, ClusterSize: piece, Codec: codec, BackingFile: "./base"})
	if err != nil {
		t.Fatal(err)
	}
	encoder, err := qcow2.NewChunkEncoder(codec)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		at := (int64(i)*size/int64(n) + r.Int64N(size/int64(n)-64<<10)) / (64 << 10) * (64 << 10)
		part := changed[at:][:piece]
		for off := 0; off < len(part); off += 4096 {
			noise(r, part[off:][:2048])
		}
		chunk := qcow2.Chunk{Offset: at, Data: part}
		if err := encoder.Encode(&chunk, piece); err != nil {
			t.Fatal(err)
		}
		if err := w.Append(&chunk); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish([]byte("top")); err != nil {
		t.Fatal(err)
	}
	c.points[1].want = changed
	return c, w.Stats().StoredBytes
}

// The fold of a base writes little more than the increment has, or than the base's clusters that it touches, and gives
// most of what it supersedes back to the file system.
func TestFoldCost(t *testing.T) {
	for name, codec := range map[string]qcow2.Codec{"plain": nil, "zstd": qcow2.ZstdCodec(1)} {
		for _, piece := range []int64{64 << 10, 4 << 10} {
			t.Run(fmt.Sprint(name, " ", piece), func(t *testing.T) {
				c, stored := foldBase(t, codec, 256<<20, 200, piece)
				im, err := c.open(1, true)
				if err != nil {
					t.Fatal(err)
				}
				_, cost, err := im.FoldCost(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				f, err := os.Create(filepath.Join(t.TempDir(), "base"))
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if _, err := f.Write(c.points[0].file.b); err != nil {
					t.Fatal(err)
				}
				folded, err := qcow2.FoldIntoBacking(t.Context(), f, im, qcow2.FoldOptions{Compress: codec != nil, Parallel: 2})
				if err != nil {
					t.Fatal(err)
				}
				moved := stored
				if s := folded.Stats; piece < 64<<10 { // whole clusters of the base, of which half is noise
					moved = s.EncodedClusters * 64 << 10
					if codec != nil {
						moved /= 2
					}
				}
				freed := &countingPuncher{punchZeroes: punchZeroes{f}}
				if err := folded.Punch(freed); err != nil {
					t.Fatal(err)
				}
				s := folded.Stats
				t.Logf("%d bytes moved; written %d (%.2f), estimated %d, freed %d; %+v", moved, s.WrittenBytes,
					float64(s.WrittenBytes)/float64(moved), cost, freed.n, s)
				if s.WrittenBytes > moved*12/10 {
					t.Errorf("%d bytes written for %d", s.WrittenBytes, moved)
				}
				if s.DroppedClusters != 200 || freed.n != s.FreedBytes || freed.n < moved*7/10 {
					t.Errorf("%d bytes freed of %d", freed.n, moved)
				}
				qemutest.Run(t, "qemu-img", "check", "-q", "-f", "qcow2", f.Name())
				if err := openChain(t, f.Name()).VerifyDigests(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

type countingPuncher struct {
	punchZeroes
	n int64
}

func (p *countingPuncher) Punch(off, n int64) error {
	p.n += n
	return p.punchZeroes.Punch(off, n)
}
