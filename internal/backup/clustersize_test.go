package backup

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/compress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/extent"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// changePatterns are what a cluster may report, as functions that give the next extent from the end of the one before.
func changePatterns(r *rand.Rand, size int64) map[string][]extent.Extent {
	scattered := func(n int, length int64, within int64) (extents []extent.Extent) {
		for range n {
			off := r.Int64N(within/length) * length
			extents = append(extents, extent.Extent{Offset: off, Length: length, Data: true})
		}
		return extents
	}
	mixed := scattered(150, 4<<10, size)
	for i := range mixed {
		if i%3 == 0 {
			mixed[i].Data = false
			mixed[i].Length = r.Int64N(4 << 20)
		}
	}
	return map[string][]extent.Extent{
		"nothing":     nil,
		"few":         scattered(100, 4<<10, size),
		"many":        scattered(400, 4<<10, size),
		"larger":      scattered(100, 64<<10, size),
		"sequential":  {{Offset: 8<<20 + 512, Length: 4 << 20, Data: true}},
		"database":    scattered(500, 8<<10, min(size, 512<<20)),
		"with zeroes": mixed,
	}
}

// collect makes of extents in any order what is known when the cluster size is chosen.
func collect(t *testing.T, size int64, extents []extent.Extent) []extent.Extent {
	t.Helper()
	slices.SortFunc(extents, func(a, b extent.Extent) int { return int(a.Offset>>9 - b.Offset>>9) })
	l, end := extent.NewList(size, smallestCluster), int64(0)
	for _, e := range extents {
		if e.Offset < end {
			e.Length -= end - e.Offset
			e.Offset = end
		}
		if e.Length <= 0 {
			continue
		}
		if err := l.Add(e); err != nil {
			t.Fatal(err)
		}
		end = e.End()
	}
	return l.Extents()
}

// writeFile writes extents with data that compresses as the model expects, and gives what the file takes.
func (s *sizing) writeFile(t *testing.T, clusterSize int64, extents []extent.Extent) fileCost {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := qcow2.NewWriter(unsyncedFile{f}, qcow2.WriterOptions{Size: s.size, ClusterSize: clusterSize, BackingFile: "below", Codec: s.codec})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	encoder, err := qcow2.NewChunkEncoder(s.codec)
	if err != nil {
		t.Fatal(err)
	}
	c := qcow2.Chunk{Data: make([]byte, clusterSize)}
	incompressible := c.Data[:int64(float64(clusterSize)*expectedRatio(clusterSize, s.codec))-16] // zstd adds some
	seed := uint64(0)
	for e := range extent.Widen(extents, s.size, clusterSize) {
		if !e.Data {
			err = w.Zero(e.Offset, roundUp(e.Length, clusterSize))
		}
		for off := e.Offset; e.Data && off < e.End() && err == nil; off += clusterSize {
			seed++
			fillRandom(incompressible, seed)
			if c.Offset = off; s.codec != nil || off == e.Offset {
				err = encoder.Encode(&c, clusterSize)
			}
			if err == nil {
				err = w.Append(&c)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish(make([]byte, 2<<10)); err != nil {
		t.Fatal(err)
	}
	return costOf(t, f)
}

func fillRandom(p []byte, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 0))
	for ; len(p) >= 8; p = p[8:] {
		binary.NativeEndian.PutUint64(p, r.Uint64())
	}
}

// unsyncedFile saves the test's time.
type unsyncedFile struct{ *os.File }

func (unsyncedFile) Sync() error { return nil }

func costOf(t *testing.T, f *os.File) fileCost {
	t.Helper()
	var stat syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &stat); err != nil {
		t.Fatal(err)
	}
	return fileCost{allocated: stat.Blocks * 512, apparent: stat.Size}
}

// The model predicts what the writer then writes, and so its choice is the best, or nearly. That data compresses as
// expected is given here; it shows how tables and data lie.
func TestClusterSizeModel(t *testing.T) {
	_, zstd, err := compress.Parse("zstd:1")
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{1<<30 + 512, 1 << 40, 10 << 40} {
		for name, extents := range changePatterns(rand.New(rand.NewPCG(uint64(size), 0)), size) {
			for codecName, codec := range map[string]qcow2.Codec{"none": nil, "zstd": zstd} {
				s := &sizing{size: size, largest: 2 << 20, codec: codec}
				t.Run(fmt.Sprintf("%d/%s/%s", size, name, codecName), func(t *testing.T) {
					t.Parallel()
					s.check(t, collect(t, size, slices.Clone(extents)))
				})
			}
		}
	}
}

func (s *sizing) check(t *testing.T, extents []extent.Extent) {
	t.Helper()
	smallest := qcow2.MinimumClusterSize(s.size, smallestCluster)
	best, costs := int64(0), map[int64]fileCost{}
	for n := smallest; n <= largestCluster; n *= 2 {
		got, want := s.predict(n, extents), s.writeFile(t, n, extents)
		costs[n] = want
		t.Logf("%2d KiB: predicted %d of %d, real %d of %d", n>>10, got.allocated, got.apparent, want.allocated, want.apparent)
		if off := deviation(got.allocated, want.allocated); off > 0.03 {
			t.Errorf("%d KiB: allocated %d, predicted %d, %.1f %%", n>>10, want.allocated, got.allocated, off*100)
		}
		if off := deviation(got.apparent, want.apparent); off > 0.03 {
			t.Errorf("%d KiB: apparent %d, predicted %d, %.1f %%", n>>10, want.apparent, got.apparent, off*100)
		}
		if best == 0 || want.total() < costs[best].total() {
			best = n
		}
	}
	chosen := s.cheapest(smallest, extents)
	t.Logf("chosen %d KiB, best %d KiB", chosen>>10, best>>10)
	if float64(costs[chosen].total()) > 1.05*float64(costs[best].total()) {
		t.Errorf("chosen %d KiB for %d, best %d KiB for %d", chosen>>10, costs[chosen].total(), best>>10, costs[best].total())
	}
}

func deviation(got, want int64) float64 { return math.Abs(float64(got)/float64(want) - 1) }
