package rbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
)

// newWriter creates an image and opens it until the test ends.
func newWriter(ctx context.Context, t *testing.T, p *Pool, name string, o CreateOptions) *Writer {
	t.Helper()
	ref, err := p.CreateImage(ctx, name, o)
	if err != nil {
		t.Fatal(err)
	}
	return openWriter(ctx, t, p, ref.ID)
}

func openWriter(ctx context.Context, t *testing.T, p *Pool, id string) *Writer {
	t.Helper()
	w, err := p.OpenWriter(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// dataObjects counts the objects that hold data of the image.
func dataObjects(t *testing.T, tp *cephtest.Pool, id string) int {
	t.Helper()
	return strings.Count(string(tp.Rados(t, "ls")), "rbd_data."+id+".")
}

func TestWriter(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	ctx, p := connectToRestore(t, tp)
	for name, test := range map[string]func(context.Context, *testing.T, *cephtest.Pool, *Pool){
		"random":     testRandomWrites,
		"bounds":     testWriterBounds,
		"resize":     testResize,
		"metadata":   testWriteMetadata,
		"sparsify":   testSparsify,
		"watchers":   testOtherWatchers,
		"concurrent": testWritersConcurrently,
		"locked":     testLockedWriter,
		"lock":       testWriterLock,
	} {
		t.Run(name, func(t *testing.T) { test(ctx, t, tp, p) })
	}
}

func testRandomWrites(ctx context.Context, t *testing.T, tp *cephtest.Pool, p *Pool) {
	for name, o := range map[string]CreateOptions{
		"plain":   {Size: 9<<20 + 513},
		"striped": {Size: 9<<20 + 513, ObjectSize: 64 << 10, StripeUnit: 4 << 10, StripeCount: 5},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWriter(ctx, t, p, name, o)
			if w.Size() != o.Size || w.Period() != w.ObjectSize()*max(1, o.StripeCount) || w.String() != tp.Spec(name) {
				t.Errorf("%v: size %d, period %d", w, w.Size(), w.Period())
			}
			model := make([]byte, o.Size)
			rnd := rand.New(rand.NewPCG(1, uint64(o.ObjectSize)))
			for range 60 {
				off := rnd.Int64N(o.Size)
				length := rnd.Int64N(min(o.Size-off, 1<<uint(rnd.IntN(23))) + 1)
				part := model[off : off+length]
				if rnd.IntN(3) == 0 {
					clear(part)
					if err := w.WriteZeroes(ctx, off, length); err != nil {
						t.Fatal(err)
					}
					continue
				}
				for i := range part {
					part[i] = byte(rnd.Uint32())
				}
				if err := w.Write(ctx, bytes.Clone(part), off); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Flush(ctx); err != nil {
				t.Error(err)
			}
			got := make([]byte, o.Size)
			if err := w.Read(ctx, got, 0); err != nil || !bytes.Equal(got, model) {
				t.Errorf("it reads otherwise, %v", err)
			}
			if exported, err := os.ReadFile(tp.Export(t, name)); err != nil || !bytes.Equal(exported, model) {
				t.Errorf("it exports otherwise, %v", err)
			}
			if err := w.WriteZeroes(ctx, 0, o.Size); err != nil {
				t.Error(err)
			}
			// The end of the image fills no set of objects: that one stays, empty.
			if n := dataObjects(t, tp, w.ID()); n > int(max(1, o.StripeCount)) {
				t.Errorf("%d objects left after all was zeroed", n)
			}
		})
	}
}

func testWriterBounds(ctx context.Context, t *testing.T, tp *cephtest.Pool, p *Pool) {
	const size = 1<<20 + 1
	w := newWriter(ctx, t, p, "bounds", CreateOptions{Size: size})
	for _, r := range [][2]int64{{-1, 1}, {size, 1}, {size - 1, 2}, {1<<63 - 1, 1}} {
		for what, try := range map[string]func() error{
			"write": func() error { return w.Write(ctx, make([]byte, r[1]), r[0]) },
			"read":  func() error { return w.Read(ctx, make([]byte, r[1]), r[0]) },
			"zero":  func() error { return w.WriteZeroes(ctx, r[0], r[1]) },
		} {
			if err := try(); err == nil {
				t.Errorf("%s of %v was accepted", what, r)
			}
		}
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := w.Write(ended, []byte{1}, 0); !errors.Is(err, context.Canceled) || errors.Is(err, ErrAbandoned) {
		t.Error(err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if err := w.Flush(ctx); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

func testResize(ctx context.Context, t *testing.T, tp *cephtest.Pool, p *Pool) {
	w := newWriter(ctx, t, p, "resize", CreateOptions{Size: 64 << 20})
	data := bytes.Repeat([]byte{1}, 8<<20)
	if err := w.Write(ctx, data, 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Resize(ctx, -1); err == nil {
		t.Error("resized to -1")
	}
	for _, size := range []int64{5<<20 + 1, 16 << 20} {
		if err := w.Resize(ctx, size); err != nil || w.Size() != size {
			t.Errorf("size %d, %v, want %d", w.Size(), err, size)
		}
	}
	got := make([]byte, 16<<20)
	want := append(bytes.Clone(data[:5<<20+1]), make([]byte, 11<<20-1)...)
	if err := w.Read(ctx, got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("cut off and grown, it reads otherwise, %v", err)
	}
	if err := w.CreateSnapshot(ctx, "s"); err != nil {
		t.Error(err)
	}
	if err := w.CreateSnapshot(ctx, "s"); !errors.Is(err, ErrExists) {
		t.Error(err)
	}
	if info := tp.Info(t, "resize"); info.Size != 16<<20 || info.Snapshots != 1 {
		t.Errorf("the rbd program says %+v", info)
	}
}

func testWriteMetadata(ctx context.Context, t *testing.T, tp *cephtest.Pool, p *Pool) {
	w := newWriter(ctx, t, p, "metadata", CreateOptions{Size: 1 << 20})
	want := map[string]string{"empty": "", "lines": "a\nb", "big": strings.Repeat("x", 64_000), "conf_rbd_cache": "true"}
	for key, value := range maps.All(want) {
		if err := w.SetMetadata(ctx, key, value); err != nil {
			t.Error(err)
		}
	}
	if err := errors.Join(w.SetMetadata(ctx, "gone", "x"), w.RemoveMetadata(ctx, "gone")); err != nil {
		t.Error(err)
	}
	if err := w.RemoveMetadata(ctx, "gone"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if err := w.SetMetadata(ctx, "conf_nope", "x"); !errors.Is(err, syscall.EINVAL) {
		t.Error(err)
	}
	if err := w.SetMetadata(ctx, "key", "a\x00b"); err == nil {
		t.Error("set a value with a NUL byte")
	}
	got, err := openAt(ctx, t, p, w.ID(), "").Metadata(ctx)
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("%d pairs, want %d, %v", len(got), len(want), err)
	}
}

func testSparsify(ctx context.Context, t *testing.T, tp *cephtest.Pool, p *Pool) {
	w := newWriter(ctx, t, p, "sparsify", CreateOptions{Size: 32 << 20})
	for off := int64(0); off < w.Size(); off += 4 << 20 {
		if err := w.Write(ctx, make([]byte, 4<<20), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Write(ctx, []byte{1}, 9<<20); err != nil {
		t.Fatal(err)
	}
	before := dataObjects(t, tp, w.ID())
	if err := w.Sparsify(ctx, 4096); err != nil {
		t.Error(err)
	}
	if after := dataObjects(t, tp, w.ID()); before != 8 || after != 1 {
		t.Errorf("%d objects before, %d after", before, after)
	}
	for _, size := range []int64{-1, 0, 512, 5000, 64 << 20} {
		if err := w.Sparsify(ctx, size); err == nil {
			t.Errorf("sparsified blocks of %d bytes", size)
		}
	}
	tp.IO(t, "sparsify", "read -P 1 9M 1", "read -P 0 0 9M")
}

func testOtherWatchers(ctx context.Context, t *testing.T, tp *cephtest.Pool, p *Pool) {
	w := newWriter(ctx, t, p, "watchers", CreateOptions{Size: 8 << 20})
	if err := w.Write(ctx, []byte{1}, 0); err != nil {
		t.Fatal(err)
	}
	if watchers, err := w.OtherWatchers(ctx); len(watchers) != 0 || err != nil {
		t.Errorf("watchers %q, %v", watchers, err)
	}
	vm := exec.CommandContext(ctx, "qemu-io", "-f", "raw", tp.QEMUName("watchers"))
	in, err := vm.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	var watchers []string
	for len(watchers) == 0 && err == nil {
		watchers, err = w.OtherWatchers(ctx)
	}
	if len(watchers) != 1 || err != nil || !strings.HasPrefix(watchers[0], "127.0.0.1:") {
		t.Errorf("watchers %q, %v", watchers, err)
	}
	// The lock goes to and fro, nothing is lost.
	fmt.Fprintln(in, "write -P 2 1M 4k")
	if err := w.Write(ctx, []byte{3}, 2<<20); err != nil {
		t.Error(err)
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	if err := vm.Wait(); err != nil {
		t.Error(err)
	}
	if watchers, err := w.OtherWatchers(ctx); len(watchers) != 0 || err != nil {
		t.Errorf("watchers %q, %v", watchers, err)
	}
	tp.IO(t, "watchers", "read -P 1 0 1", "read -P 2 1M 4k", "read -P 3 2M 1")
}

func testWritersConcurrently(ctx context.Context, t *testing.T, tp *cephtest.Pool, p *Pool) {
	w := newWriter(ctx, t, p, "concurrent", CreateOptions{Size: 64 << 20})
	var wg sync.WaitGroup
	for i := range int64(16) {
		wg.Go(func() {
			part := bytes.Repeat([]byte{byte(i + 1)}, 4<<20)
			if err := w.Write(ctx, part, i<<22); err != nil {
				t.Error(err)
			}
			if err := w.WriteZeroes(ctx, i<<22+1000, 1000); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var reads []string
	for i := range 16 {
		reads = append(reads, fmt.Sprintf("read -P %d %dM 1000", i+1, 4*i), fmt.Sprintf("read -P 0 %d 1000", i<<22+1000))
	}
	tp.IO(t, "concurrent", reads...)
}
