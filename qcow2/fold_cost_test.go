package qcow2_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

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
				c, stored := foldBase(t, codec, 64<<20, 64, piece)
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
				if s.DroppedClusters != 64 || freed.n != s.FreedBytes || freed.n < moved*7/10 {
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

// scattered writes a file with n pieces of noise spread over a disk, each at the start of a cluster of 64 KiB.
func scattered(t *testing.T, o qcow2.WriterOptions, n int, seed uint64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "a.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	w, err := qcow2.NewWriter(f, o)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r := newRand(seed)
	c := encoded(t, o.Codec, o.ClusterSize, o.ClusterSize, seed)
	for i := range n {
		c.Offset = (int64(i)*(o.Size/int64(n)) + newRand(uint64(i)).Int64N(o.Size/int64(n)-64<<10)) / (64 << 10) * (64 << 10)
		if r.IntN(4) == 0 { // where the other file has nothing
			c.Offset = c.Offset / (1 << 20) * (1 << 20)
		}
		if err := w.Append(c); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish([]byte("identity")); err != nil {
		t.Fatal(err)
	}
	return f
}

// Small changes all over a thin disk of a tebibyte: what a fold costs follows them, and not the disk.
func TestFoldThinDisk(t *testing.T) {
	const size, n = 1 << 40, 4000
	base := scattered(t, qcow2.WriterOptions{Size: size, ClusterSize: 64 << 10}, n, 1)
	top := scattered(t, qcow2.WriterOptions{Size: size, ClusterSize: 4 << 10, BackingFile: "./a.qcow2"}, n, 2)
	open := func(f *os.File, below *qcow2.Image) *qcow2.Image {
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		im, err := qcow2.Open(f, info.Size(), qcow2.OpenOptions{
			Prove: true, Backing: func(string, string) (*qcow2.Image, error) { return below, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		return im
	}
	im := open(top, open(base, nil))
	_, cost, err := im.FoldCost(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	started := time.Now()
	folded, err := qcow2.FoldIntoBacking(t.Context(), base, im, qcow2.FoldOptions{Identity: []byte("folded")})
	if err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	s := folded.Stats
	touched := (s.EncodedClusters + 2048) * 64 << 10 // and as many L2 tables
	t.Logf("%v, %d bytes written for %d touched, estimated %d, %d MiB of memory; %+v", time.Since(started), s.WrittenBytes, touched,
		cost, after.Sys>>20, s)
	if s.WrittenBytes > touched {
		t.Errorf("%d bytes written for %d", s.WrittenBytes, touched)
	}
	if err := folded.Punch(punchZeroes{base}); err != nil {
		t.Fatal(err)
	}
	if err := open(base, nil).VerifyDigests(t.Context()); err != nil {
		t.Error(err)
	}
	qemutest.Run(t, "qemu-img", "check", "-q", "-f", "qcow2", base.Name())
}

type countingPuncher struct {
	punchZeroes
	n int64
}

func (p *countingPuncher) Punch(off, n int64) error {
	p.n += n
	return p.punchZeroes.Punch(off, n)
}
