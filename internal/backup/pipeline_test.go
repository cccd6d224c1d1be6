package backup

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/extent"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

func TestParts(t *testing.T) {
	const k = 1 << 10
	data := func(off, n int64) extent.Extent { return extent.Extent{Offset: off * k, Length: n * k, Data: true} }
	zeroes := func(off, n int64) extent.Extent { return extent.Extent{Offset: off * k, Length: n * k} }
	for name, test := range map[string]struct {
		extents []extent.Extent
		want    []string
	}{
		"nothing":           {nil, nil},
		"one":               {[]extent.Extent{data(4, 8)}, []string{"read 4+8 gaps[] wanted 8"}},
		"near":              {[]extent.Extent{data(0, 4), data(68, 4)}, []string{"read 0+72 gaps[4+64] wanted 8"}},
		"far":               {[]extent.Extent{data(0, 4), data(72, 4)}, []string{"read 0+4 gaps[] wanted 4", "read 72+4 gaps[] wanted 4"}},
		"three":             {[]extent.Extent{data(0, 4), data(8, 4), data(20, 4)}, []string{"read 0+24 gaps[4+4 12+8] wanted 12"}},
		"across a step":     {[]extent.Extent{data(1000, 100)}, []string{"read 1000+24 gaps[] wanted 24", "read 1024+76 gaps[] wanted 76"}},
		"either side":       {[]extent.Extent{data(1020, 4), data(1028, 4)}, []string{"read 1020+4 gaps[] wanted 4", "read 1028+4 gaps[] wanted 4"}},
		"joined to a tail":  {[]extent.Extent{data(1020, 8), data(1032, 4)}, []string{"read 1020+4 gaps[] wanted 4", "read 1024+12 gaps[1028+4] wanted 8"}},
		"zeroes between":    {[]extent.Extent{data(0, 4), zeroes(4, 8), data(12, 4)}, []string{"read 0+4 gaps[] wanted 4", "zero 4+8", "read 12+4 gaps[] wanted 4"}},
		"zeroes alone":      {[]extent.Extent{zeroes(0, 4000)}, []string{"zero 0+4000"}},
		"zeroes at the end": {[]extent.Extent{data(0, 4), data(8, 4), zeroes(12, 4)}, []string{"read 0+12 gaps[4+4] wanted 8", "zero 12+4"}},
	} {
		var got []string
		for p := range parts(test.extents, 1<<20) {
			s := fmt.Sprintf("zero %d+%d", p.offset/k, p.length/k)
			if p.data {
				var gaps []string
				for _, g := range p.gaps {
					gaps = append(gaps, fmt.Sprintf("%d+%d", g.Offset/k, g.Length/k))
				}
				s = fmt.Sprintf("read %d+%d gaps%v wanted %d", p.offset/k, p.length/k, gaps, p.wanted/k)
			}
			got = append(got, s)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s:\n got %q\nwant %q", name, got, test.want)
		}
		for range parts(test.extents, 1<<20) {
			break
		}
	}
}

// diskSource is a disk in memory that counts what is read.
type diskSource struct {
	disk        []byte
	step        int64 // which no read may cross
	reads, read atomic.Int64
}

func (s *diskSource) Read(_ context.Context, p []byte, off int64) error {
	n := int64(len(p))
	if off < 0 || n == 0 || off+n > int64(len(s.disk)) || off/s.step != (off+n-1)/s.step {
		return fmt.Errorf("read of %d bytes at %d", n, off)
	}
	s.reads.Add(1)
	s.read.Add(n)
	copy(p, s.disk[off:])
	return nil
}

// randomDisk has data in pieces of 4 KiB, a third of them zero.
func randomDisk(r *rand.Rand, size int64) []byte {
	disk := make([]byte, size)
	for part := range slices.Chunk(disk, 4<<10) {
		if r.IntN(3) > 0 {
			copy(part, bytes.Repeat([]byte{byte(1 + r.IntN(255)), byte(r.Uint32())}, len(part)))
		}
	}
	return disk
}

// randomExtents is what a cluster might report, in whole clusters.
func randomExtents(r *rand.Rand, size, clusterSize int64) ([]extent.Extent, error) {
	l := extent.NewList(size, clusterSize)
	for off := r.Int64N(200 << 10); off < size; {
		e := extent.Extent{Offset: off, Length: 1 + r.Int64N(1+r.Int64N(1<<(10+r.IntN(12)))), Data: r.IntN(5) > 0}
		if err := l.Add(e); err != nil {
			return nil, err
		}
		off = e.End() + r.Int64N(1<<(10+r.IntN(10)))
	}
	return l.Extents(), nil
}

// Several disks at once come through the engine whole: what was reported is in the file, nothing else is, and every byte
// is read once, in as few reads as were planned.
func TestEngine(t *testing.T) {
	qemutest.Require(t, "qemu-img")
	codec := qcow2.ZstdCodec(1)
	e, err := newEngine(&Options{Parallel: 4, Compression: Compression{Name: "zstd", Codec: codec}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	var disks sync.WaitGroup
	for seed := range uint64(12) {
		disks.Go(func() { copyDisk(t, e, seed, codec) })
	}
	disks.Wait()
}

func copyDisk(t *testing.T, e *engine, seed uint64, codec qcow2.Codec) {
	r := rand.New(rand.NewPCG(seed, 0))
	size, clusterSize := 1+r.Int64N(24<<20), int64(4<<10)<<r.IntN(5)
	src := &diskSource{disk: randomDisk(r, size), step: e.step}
	extents, err := randomExtents(r, size, clusterSize)
	if err != nil {
		t.Error(err)
		return
	}
	name := filepath.Join(t.TempDir(), fmt.Sprint(seed, ".qcow2"))
	f, err := os.Create(name)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	w, err := qcow2.NewWriter(f, qcow2.WriterOptions{Size: size, ClusterSize: clusterSize, Codec: codec})
	if err != nil {
		t.Error(err)
		return
	}
	defer w.Close()
	var written int64
	c := copyJob{engine: e, src: src, dst: w, written: func(n int64) { written += n }}
	read, err := c.run(t.Context(), extents)
	if err == nil {
		err = w.Finish(nil)
	}
	if err != nil {
		t.Errorf("seed %d: %v", seed, err)
		return
	}
	want, planned := make([]byte, (size+511)/512*512), int64(0)
	for _, x := range extents {
		if x.Data {
			copy(want[x.Offset:x.End()], src.disk[x.Offset:])
		}
	}
	for p := range parts(extents, e.step) {
		if p.data {
			planned++
		}
	}
	data, _ := extent.Bytes(extents)
	if written != data || read != src.read.Load() || src.reads.Load() != planned {
		t.Errorf("seed %d: %d bytes written of %d, %d read of %d, in %d reads of %d",
			seed, written, data, read, src.read.Load(), src.reads.Load(), planned)
	}
	t.Logf("seed %d: %d extents in %d reads, %d bytes of data, %d read", seed, len(extents), planned, data, read)
	qemutest.Check(t, name)
	got, err := os.ReadFile(qemutest.Convert(t, name))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("seed %d: what was written reads otherwise, %v", seed, err)
	}
}
