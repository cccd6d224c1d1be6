package qcow2_test

import (
	"bytes"
	"context"
	"runtime"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// fuzzDisk is the largest disk that is read whole, in bytes.
const fuzzDisk = 1 << 20

// FuzzFold takes any bytes for a file that is to be folded into, or that lies on one: no panic, no hang, no memory beyond what is stated;
// what the guest sees stays the same, whether the fold succeeds or not.
func FuzzFold(f *testing.F) {
	for _, seed := range seeds(f) {
		f.Add(seed, true)
		f.Add(seed, false)
	}
	other := func(backing string) []byte {
		return writeFile(f, qcow2.WriterOptions{ClusterSize: 1 << 10, Codec: qcow2.ZlibCodec(), BackingFile: backing}, guest(8<<10, 3), "other")
	}
	base, top := other(""), other("./below.qcow2")
	f.Fuzz(func(t *testing.T, b []byte, intoBacking bool) {
		if len(b) > fuzzInput {
			t.Skip("longer than what is tried")
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for _, b := range [][]byte{b, seal(b)} {
			if intoBacking {
				foldAnything(t, &ramFile{bytes.Clone(b)}, &ramFile{bytes.Clone(top)}, true)
			} else {
				foldAnything(t, &ramFile{bytes.Clone(base)}, &ramFile{bytes.Clone(b)}, false)
			}
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 4*fuzzMemory {
			t.Errorf("%d bytes allocated for a file of %d, twice", n, len(b))
		}
	})
}

// openPair opens a file on another one, which has none below.
func openPair(below, child *ramFile) (*qcow2.Image, error) {
	return qcow2.Open(child, int64(len(child.b)), qcow2.OpenOptions{Prove: true, Backing: func(string, string) (*qcow2.Image, error) {
		return qcow2.Open(below, int64(len(below.b)), qcow2.OpenOptions{Prove: true})
	}})
}

// foldAnything folds two files, and compares what the guest sees before and after.
func foldAnything(t *testing.T, below, child *ramFile, intoBacking bool) {
	im, err := openPair(below, child)
	if err != nil || im.Backing() == nil || im.Size() > fuzzDisk {
		return
	}
	want := make([]byte, im.Size())
	if _, err := im.ReadAt(want, 0); err != nil {
		return // what can't be read can't be kept
	}
	ctx, cancel := context.WithTimeout(t.Context(), fuzzTime)
	defer cancel()
	fold, target := qcow2.FoldIntoChild, child
	if intoBacking {
		fold, target = qcow2.FoldIntoBacking, below
	}
	folded, foldErr := fold(ctx, target, im, qcow2.FoldOptions{Identity: []byte("folded"), Compress: true, Parallel: 2})
	if ctx.Err() != nil {
		t.Fatalf("a fold took more than %s", fuzzTime)
	}
	if foldErr == nil {
		if err := folded.Punch(target); err != nil {
			t.Error(err)
		}
		im, err = qcow2.Open(target, int64(len(target.b)), qcow2.OpenOptions{Prove: true})
	} else {
		im, err = openPair(below, child)
	}
	if err != nil {
		t.Fatalf("can't be opened after the fold: %v; the fold: %v", err, foldErr)
	}
	got := make([]byte, len(want))
	if _, err := im.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("reads as something else after the fold: %v; the fold: %v", err, foldErr)
	}
}
