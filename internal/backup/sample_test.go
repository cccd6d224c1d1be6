package backup

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/compress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/extent"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// thinSource is a large disk with some blocks of 4 KiB, and zeroes elsewhere.
type thinSource struct {
	blocks []int64 // their numbers, ascending
	reads  atomic.Int64
}

func (s *thinSource) Read(_ context.Context, p []byte, off int64) error {
	s.reads.Add(1)
	clear(p)
	i, _ := slices.BinarySearch(s.blocks, off>>12)
	for ; i < len(s.blocks) && s.blocks[i]<<12 < off+int64(len(p)); i++ {
		at := s.blocks[i]<<12 - off
		if at < 0 || at+4<<10 > int64(len(p)) {
			return fmt.Errorf("read of %d bytes at %d cuts a block", len(p), off)
		}
		fillRandom(p[at:at+4<<10], uint64(i))
	}
	return nil
}

// scatter writes n blocks into different objects.
func scatter(r *rand.Rand, size int64, n int) *thinSource {
	const object = 4 << 20
	s := &thinSource{}
	used := map[int64]bool{}
	for len(s.blocks) < n {
		if o := r.Int64N(size / object); !used[o] {
			used[o] = true
			s.blocks = append(s.blocks, (o*object)>>12+r.Int64N(object>>12))
		}
	}
	slices.Sort(s.blocks)
	return s
}

// extents are what the cluster reports: in objects that are new since the base also what lies before the block.
func (s *thinSource) extents(size int64, fresh bool) (extents []extent.Extent) {
	for _, b := range s.blocks {
		from, end := b<<12, (b+1)<<12
		if fresh {
			from = b << 12 &^ (4<<20 - 1)
		}
		extents = append(extents, extent.Extent{Offset: from, Length: min(end, size) - from, Data: true})
	}
	return extents
}

// A hundred blocks of 4 KiB that can't be compressed, scattered over a thin disk of 1 TiB, make a file of at most four
// times their size on disk, and of seven times their size in length, also where the cluster reports much more.
func TestScatteredChanges(t *testing.T) {
	const size, changed = 1 << 40, 100 * 4 << 10
	for seed := range uint64(2) {
		for _, name := range []string{"none", "zlib", "zstd"} {
			for _, fresh := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%d/fresh=%t", name, seed, fresh), func(t *testing.T) {
					_, codec, err := compress.Parse(name)
					if err != nil {
						t.Fatal(err)
					}
					src := scatter(rand.New(rand.NewPCG(seed, 0)), size, 100)
					s := &sizing{size: size, largest: 64 << 10, codec: codec, parallel: 4}
					extents := collect(t, size, src.extents(size, fresh))
					clusterSize, err := s.choose(t.Context(), src, extents)
					if err != nil {
						t.Fatal(err)
					}
					sampled := src.reads.Load()
					cost := s.copyFile(t, src, clusterSize, extents)
					t.Logf("%d KiB after %d samples, %d of %d bytes: %.2f and %.2f times what has changed", clusterSize>>10, sampled,
						cost.allocated, cost.apparent, float64(cost.allocated)/changed, float64(cost.apparent)/changed)
					if cost.allocated > 4*changed || cost.apparent > 7*changed {
						t.Error("the file is too large")
					}
				})
			}
		}
	}
}

// copyFile writes a file as a backup does.
func (s *sizing) copyFile(t *testing.T, src source, clusterSize int64, extents []extent.Extent) fileCost {
	t.Helper()
	e, err := newEngine(&Options{Parallel: 2, Compression: Compression{Codec: s.codec}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := qcow2.NewWriter(unsyncedFile{f}, qcow2.WriterOptions{
		Size: s.size, ClusterSize: clusterSize, Codec: s.codec, BackingFile: "below",
		BackingMayHoldData: func(int64, int64) (bool, error) { return false, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	c := copyJob{engine: e, src: src, dst: w, written: func(int64) {}}
	if _, err = c.run(t.Context(), slices.Collect(extent.Widen(extents, s.size, clusterSize))); err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(make([]byte, 3<<10)); err != nil {
		t.Fatal(err)
	}
	return costOf(t, f)
}

// Where all that is reported is data, samples change nothing; where it is not, as much is left as is there.
func TestThinOut(t *testing.T) {
	const size = 40 << 30
	s := &sizing{size: size, largest: 64 << 10, parallel: 4}
	dense := &diskSource{disk: slices.Repeat([]byte{1}, 64<<20), step: size}
	whole := []extent.Extent{{Length: 63<<20 + 512, Data: true}, {Offset: 63<<20 + 8192, Length: 4096}}
	got, err := s.thinOut(t.Context(), dense, whole)
	if want := slices.Collect(extent.Widen(whole, size, 4<<10)); err != nil || !slices.Equal(got, want) {
		t.Errorf("data throughout: %v, %v, want %v", got, err, want)
	}

	thin := scatter(rand.New(rand.NewPCG(1, 1)), size, 5000)
	reported := thin.extents(size, true)
	got, err = s.thinOut(t.Context(), thin, reported)
	data, _ := extent.Bytes(got)
	before, _ := extent.Bytes(reported)
	t.Logf("%d bytes reported, %d of them are there, %d expected, after %d reads", before, 5000*4096, data, thin.reads.Load())
	if err != nil || len(got) < 4900 || data < 5000*4096 || data > 2*5000*4096 {
		t.Errorf("%d extents of %d bytes, %v", len(got), data, err)
	}
	if n := thin.reads.Load(); n > sampleCount {
		t.Errorf("%d samples", n)
	}
}

// A diff as large as there are takes no longer than one of 16 GiB.
func TestThinOutLarge(t *testing.T) {
	const size = 10 << 40
	s := &sizing{size: size, largest: 64 << 10, parallel: 4}
	if _, err := s.choose(t.Context(), scatter(rand.New(rand.NewPCG(1, 1)), size, 1000), []extent.Extent{{Length: size, Data: true}}); err != nil {
		t.Fatal(err)
	}
}

type failingSource struct{}

var errRead = errors.New("read failed")

func (failingSource) Read(context.Context, []byte, int64) error { return errRead }

func TestSampleFails(t *testing.T) {
	s := &sizing{size: 1 << 30, largest: 64 << 10, parallel: 4}
	if _, err := s.choose(t.Context(), failingSource{}, []extent.Extent{{Length: 1 << 20, Data: true}}); !errors.Is(err, errRead) {
		t.Errorf("error %v", err)
	}
	s.largest = 4 << 10 // nothing to choose, nothing to read
	if n, err := s.choose(t.Context(), failingSource{}, []extent.Extent{{Length: 1 << 20, Data: true}}); n != 4<<10 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}
