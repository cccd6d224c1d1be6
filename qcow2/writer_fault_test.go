package qcow2_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// step is one call of a Writer's file.
type step struct {
	op   string // "write", "truncate", "sync"
	off  int64
	data []byte
}

// memoryFile is a file in memory that keeps the steps that made it, and fails from the one with number failAt on.
type memoryFile struct {
	steps    []step
	failAt   int // -1: never
	failures int
}

func (f *memoryFile) do(s step) error {
	if f.failAt >= 0 && len(f.steps) >= f.failAt {
		f.failures++
		return syscall.ENOSPC
	}
	f.steps = append(f.steps, s)
	return nil
}

func (f *memoryFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.do(step{"write", off, bytes.Clone(p)}); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (f *memoryFile) Truncate(size int64) error { return f.do(step{op: "truncate", off: size}) }
func (f *memoryFile) Sync() error               { return f.do(step{op: "sync"}) }

// content is the file after the first n steps.
func (f *memoryFile) content(n int) []byte {
	var b []byte
	grow := func(size int64) {
		if size > int64(len(b)) {
			b = append(b, make([]byte, size-int64(len(b)))...)
		}
	}
	for _, s := range f.steps[:n] {
		switch s.op {
		case "write":
			grow(s.off + int64(len(s.data)))
			copy(b[s.off:], s.data)
		case "truncate":
			grow(s.off)
			b = b[:s.off]
		}
	}
	return b
}

const someCluster = 1 << 10

// someChunks is data of each kind, with gaps.
func someChunks(t *testing.T, codec qcow2.Codec) []*qcow2.Chunk {
	t.Helper()
	encoder, err := qcow2.NewChunkEncoder(codec)
	if err != nil {
		t.Fatal(err)
	}
	var chunks []*qcow2.Chunk
	for off := int64(0); off < 1<<20; off += 64 << 10 {
		c := &qcow2.Chunk{Offset: off, Data: guest(60<<10, uint64(off))}
		if err := encoder.Encode(c, someCluster); err != nil {
			t.Fatal(err)
		}
		chunks = append(chunks, c)
	}
	return chunks
}

// writeSome writes the chunks, and zeroes between them: a file with several L2 tables and refcount blocks.
func writeSome(f qcow2.File, codec qcow2.Codec, chunks []*qcow2.Chunk) (err error) {
	w, err := qcow2.NewWriter(f, qcow2.WriterOptions{
		Size: 1 << 20, ClusterSize: someCluster, Codec: codec, BackingFile: "./below.qcow2",
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	for _, c := range chunks {
		if err := w.Append(c); err != nil {
			return err
		}
		if err := w.Zero(c.Offset+60<<10, 2<<10); err != nil {
			return err
		}
	}
	return w.Finish([]byte("identity"))
}

// Whichever step fails, the error comes out, and nothing is done after it.
func TestWriterFileFails(t *testing.T) {
	for name, codec := range map[string]qcow2.Codec{"none": nil, "zlib": qcow2.ZlibCodec()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			chunks := someChunks(t, codec)
			whole := memoryFile{failAt: -1}
			if err := writeSome(&whole, codec, chunks); err != nil {
				t.Fatal(err)
			}
			if len(whole.steps) < 30 {
				t.Fatalf("only %d steps", len(whole.steps))
			}
			for n := range whole.steps {
				f := memoryFile{failAt: n}
				if err := writeSome(&f, codec, chunks); !errors.Is(err, syscall.ENOSPC) {
					t.Errorf("failure of step %d, %s: %v", n, whole.steps[n].op, err)
				}
				if f.failures != 1 {
					t.Errorf("failure of step %d: %d more steps after it", n, f.failures-1)
				}
			}
		})
	}
}

// The header comes last, between two syncs: what there is before is no qcow2 file, for us and for QEMU.
func TestWriterWritesHeaderLast(t *testing.T) {
	qemutest.Require(t, "qemu-img")
	f := memoryFile{failAt: -1}
	if err := writeSome(&f, qcow2.ZlibCodec(), someChunks(t, qcow2.ZlibCodec())); err != nil {
		t.Fatal(err)
	}
	last := len(f.steps) - 3
	if f.steps[last].op != "sync" || f.steps[last+2].op != "sync" {
		t.Errorf("the last steps are %s, %s, %s", f.steps[last].op, f.steps[last+1].op, f.steps[last+2].op)
	}
	if h := f.steps[last+1]; h.op != "write" || h.off != 0 || len(h.data) != 512 {
		t.Errorf("the header is %s of %d bytes at %d", h.op, len(h.data), h.off)
	}
	length := int64(0)
	for i, s := range f.steps[:last+1] {
		if s.op == "write" && s.off < 512 {
			t.Errorf("step %d of %d writes at %d", i, len(f.steps), s.off)
		}
		if s.op == "truncate" {
			length = s.off
		}
	}
	whole := f.content(len(f.steps))
	if int64(len(whole)) != length {
		t.Errorf("the file has %d bytes, not the %d that Truncate set", len(whole), length)
	}
	for n := range last + 2 {
		b := f.content(n)
		if _, err := qcow2.ReadHeader(bytes.NewReader(b), int64(len(b))); !errors.Is(err, qcow2.ErrNotQcow2) {
			t.Errorf("header after %d of %d steps: %v", n, len(f.steps), err)
		}
	}
	for _, n := range []int{last / 2, last + 1} {
		name := filepath.Join(t.TempDir(), "a.qcow2")
		if err := os.WriteFile(name, f.content(n), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := qemutest.Try("qemu-img", "info", "-f", "qcow2", name); err == nil {
			t.Errorf("qemu-img takes the file after %d of %d steps for a qcow2 file", n, len(f.steps))
		}
	}
}

var errScratch = errors.New("the scratch file fails")

// scratch fails at one of its calls.
type scratch struct {
	*os.File
	fail   string
	closed *int
}

func (s scratch) Write(p []byte) (int, error) {
	if s.fail == "write" {
		return 0, errScratch
	}
	return s.File.Write(p)
}

func (s scratch) ReadAt(p []byte, off int64) (int, error) {
	if s.fail == "read" {
		return 0, errScratch
	}
	return s.File.ReadAt(p, off)
}

func (s scratch) Close() error {
	*s.closed++
	if err := s.File.Close(); err != nil || s.fail != "close" {
		return err
	}
	return errScratch
}

// 80 000 digests are more than stay in memory.
func TestWriterScratchFails(t *testing.T) {
	for _, fail := range []string{"open", "write", "read", "close", "nothing"} {
		t.Run(fail, func(t *testing.T) {
			t.Parallel()
			opened, closed := 0, 0
			w, err := qcow2.NewWriter(&countingFile{}, qcow2.WriterOptions{
				Size: 40 << 20, ClusterSize: 512,
				Scratch: func() (qcow2.Scratch, error) {
					if fail == "open" {
						return nil, errScratch
					}
					opened++
					f, err := os.Create(filepath.Join(t.TempDir(), "scratch"))
					return scratch{f, fail, &closed}, err
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			c := encoded(t, nil, 512, 1<<20, 1)
			for ; c.Offset < 40<<20 && err == nil; c.Offset += 1 << 20 {
				err = w.Append(c)
			}
			if err == nil {
				err = w.Finish(nil)
			}
			if (fail != "nothing") != errors.Is(err, errScratch) {
				t.Errorf("got %v", err)
			}
			if err := w.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
			if closed != opened {
				t.Errorf("opened %d times, closed %d times", opened, closed)
			}
		})
	}
}

// encoded is a chunk of length bytes that do not compress.
func encoded(t testing.TB, codec qcow2.Codec, cluster, length int64, seed uint64) *qcow2.Chunk {
	t.Helper()
	e, err := qcow2.NewChunkEncoder(codec)
	if err != nil {
		t.Fatal(err)
	}
	c := &qcow2.Chunk{Data: make([]byte, length)}
	noise(newRand(seed), c.Data)
	if err := e.Encode(c, cluster); err != nil {
		t.Fatal(fmt.Errorf("encode: %w", err))
	}
	return c
}

// countingFile throws away what it counts.
type countingFile struct{ writes, bytes int64 }

func (f *countingFile) WriteAt(p []byte, _ int64) (int, error) {
	f.writes++
	f.bytes += int64(len(p))
	return len(p), nil
}

func (*countingFile) Truncate(int64) error { return nil }
func (*countingFile) Sync() error          { return nil }
