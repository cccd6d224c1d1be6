package qcow2_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// openChain opens a file and, by their names relative to it, those below it.
func openChain(t testing.TB, path string, prove ...bool) *qcow2.Image {
	t.Helper()
	im, err := tryOpen(t, path, prove...)
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	return im
}

func tryOpen(t testing.TB, path string, prove ...bool) (*qcow2.Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return qcow2.Open(f, info.Size(), qcow2.OpenOptions{
		Prove: slices.Contains(prove, true),
		Backing: func(name, format string) (*qcow2.Image, error) {
			if format != "qcow2" {
				return nil, fmt.Errorf("format %q", format)
			}
			return tryOpen(t, filepath.Join(filepath.Dir(path), name), prove...)
		},
	})
}

// scribble writes, zeroes and discards at random through qemu-io.
func scribble(t *testing.T, r *rand.Rand, file string, size, cluster int64, version3 bool) {
	t.Helper()
	pattern := filepath.Join(t.TempDir(), "pattern")
	if err := os.WriteFile(pattern, halfRandom(r, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	longest := min(size/8, max(3*cluster, 64<<10))
	var commands []string
	for range 30 {
		off := r.Int64N(size/512) * 512
		n := min((1+r.Int64N(longest/512))*512, size-off)
		switch op := r.IntN(5); {
		case op < 3:
			commands = append(commands, fmt.Sprintf("write -q -s %s %d %d", pattern, off, n))
		case op == 3 && version3:
			commands = append(commands, fmt.Sprintf("write -q -z %d %d", off, n))
		default:
			commands = append(commands, fmt.Sprintf("discard -q %d %d", off/cluster*cluster, min(cluster, size-off/cluster*cluster)))
		}
	}
	qemutest.IO(t, file, commands...)
}

// compress writes some compressed clusters, each of them only once, which is all that QEMU allows.
func compress(t *testing.T, r *rand.Rand, file string, size, cluster int64) {
	t.Helper()
	pattern := filepath.Join(t.TempDir(), "pattern")
	if err := os.WriteFile(pattern, halfRandom(r, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	var commands []string
	for off := int64(0); off < size && len(commands) < 100; off += cluster * (1 + r.Int64N(max(1, size/cluster/50))) {
		source := "-s " + pattern
		if r.IntN(3) == 0 {
			source = fmt.Sprintf("-P %d", r.IntN(256))
		}
		commands = append(commands, fmt.Sprintf("write -q -c %s %d %d", source, off, min(cluster, size-off)))
	}
	qemutest.IO(t, file, commands...)
}

// compareWithQEMU reads the image in every way and compares it with what qemu-img makes of it.
func compareWithQEMU(t *testing.T, file string) {
	t.Helper()
	im := openChain(t, file)
	want, err := os.ReadFile(qemutest.Convert(t, file))
	if err != nil {
		t.Fatal(err)
	}
	if im.Size() != int64(len(want)) {
		t.Fatalf("size %d, QEMU says %d", im.Size(), len(want))
	}
	got := make([]byte, len(want))
	if n, err := im.ReadAt(got, 0); n != len(got) || err != nil {
		t.Fatalf("read all: %d bytes of %d, %v", n, len(got), err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("read all: differs from QEMU at byte %d", firstDifference(got, want))
	}
	var group sync.WaitGroup
	for seed := range uint64(4) {
		group.Go(func() { readRandomly(t, im, want, seed) })
	}
	group.Wait()
	for b := im; b != nil; b = b.Backing() {
		if err := b.CheckStructure(context.Background()); err != nil {
			t.Errorf("check structure: %v", err)
		}
		if stats, err := b.Check(t.Context(), qcow2.CheckOptions{Data: true, Report: func(f qcow2.Finding) { t.Error(f) }}); !stats.Good() ||
			err != nil && b.Header().Snapshots == 0 {
			t.Errorf("check: %+v, %v", stats, err)
		}
		if _, err := b.Identity(); !errors.Is(err, qcow2.ErrNoRecord) {
			t.Errorf("identity of a file of QEMU's: %v", err)
		}
	}
}

func readRandomly(t *testing.T, im *qcow2.Image, want []byte, seed uint64) {
	r := newRand(seed)
	for range 200 {
		off := r.Int64N(im.Size())
		p := make([]byte, 1+r.IntN(200_000))
		n, err := im.ReadAt(p, off)
		expect := want[off:min(off+int64(len(p)), im.Size())]
		if n != len(expect) || (n < len(p)) != errors.Is(err, io.EOF) || (err != nil && !errors.Is(err, io.EOF)) {
			t.Errorf("read %d bytes at %d: %d, %v", len(p), off, n, err)
			return
		}
		if !bytes.Equal(p[:n], expect) {
			t.Errorf("read %d bytes at %d: differs from QEMU", len(p), off)
			return
		}
	}
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// area is an extent in the terms that Image.Extent and qemu-img map have in common.
type area struct {
	offset, length int64
	kind           qcow2.Kind
	depth          int
}

func appendArea(areas []area, a area) []area {
	if n := len(areas); n > 0 && areas[n-1].kind == a.kind && areas[n-1].depth == a.depth {
		areas[n-1].length += a.length
		return areas
	}
	return append(areas, a)
}

// compareMap compares Extent with qemu-img map. QEMU takes what lies behind the end of a smaller backing file for
// zeroes of that file: those are no cluster's, so only the data of both maps is compared exactly.
func compareMap(t *testing.T, file string) {
	t.Helper()
	im := openChain(t, file)
	var got, want []area
	for off := int64(0); off < im.Size(); {
		e, err := im.Extent(off)
		if err != nil || e.Offset != off || e.Length <= 0 || e.Length > im.Size()-off {
			t.Fatalf("extent at %d: %+v, %v", off, e, err)
		}
		if e.Kind == qcow2.Data {
			got = appendArea(got, area{off, e.Length, e.Kind, e.Depth})
		} else {
			got = appendArea(got, area{off, e.Length, qcow2.Zero, -1})
		}
		off += e.Length
	}
	for _, e := range qemutest.Map(t, file) {
		if e.Data {
			want = appendArea(want, area{e.Start, e.Length, qcow2.Data, e.Depth})
		} else {
			want = appendArea(want, area{e.Start, e.Length, qcow2.Zero, -1})
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("map of %s:\n got %v\nwant %v", filepath.Base(file), got, want)
	}
	if _, err := im.Extent(im.Size()); !errors.Is(err, io.EOF) {
		t.Errorf("extent at the end: %v", err)
	}
}
