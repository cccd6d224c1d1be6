package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

// TestHistory lives through random histories of an image, with a backup now and then, and compares every point with
// what the image was then. Now and then it brings the image back to one of them, or removes some.
//
// RBD2QCOW2_SEEDS is the number of histories, 24 unless told; RBD2QCOW2_SEED repeats one.
func TestHistory(t *testing.T) {
	pools := newHistoryPools(t)
	for _, seed := range seeds(t) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			h := newHistory(t, pools, seed)
			for range 3 + h.rng.IntN(6) {
				h.change(t)
				h.backUp(t)
				if len(h.points) > 1 && h.chance(2) {
					h.pruneSome(t)
				}
			}
			h.undoOften(t)
			h.check(t)
			h.checkList(t)
			h.verify(t, 0)
			h.checkRestores(t, h.points...)
			h.checkSnapshot(t, h.points[len(h.points)-1])
			h.undoWithoutSnapshot(t)
			h.removeImage(t)
		})
	}
}

func seeds(t *testing.T) []uint64 {
	if s := os.Getenv("RBD2QCOW2_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return []uint64{seed}
	}
	n := 24
	if s := os.Getenv("RBD2QCOW2_SEEDS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	seeds := make([]uint64, n)
	for i := range seeds {
		seeds[i] = rand.Uint64N(1e9)
	}
	return seeds
}

// historyPools is where images of all kinds can be made.
type historyPools struct {
	pool, namespace *cephtest.Pool
	dataPool        string
}

func newHistoryPools(t *testing.T) *historyPools {
	pool := cephtest.Require(t).Pool(t)
	dataPool := pool.DataPool(t)
	return &historyPools{pool, pool.CreateNamespace(t, "customer"), dataPool}
}

// history is the life of an image, as far as it got.
type history struct {
	*disk
	rng       *rand.Rand
	size      int64 // of the image now, in bytes
	unit      int64 // bytes of an object
	clone     bool  // with a parent
	snapshots []string
	made      int    // snapshots ever made
	noise     string // file of random bytes, to write from
	points    []status.Point
}

const (
	maxSize   = 64 << 20
	noiseSize = 1 << 20
)

func newHistory(t *testing.T, pools *historyPools, seed uint64) *history {
	h := &history{rng: rand.New(rand.NewPCG(seed, 0))}
	pool := pools.pool
	if h.chance(4) {
		pool = pools.namespace
	}
	h.unit = pick[int64](h.rng, 64<<10, 4<<20, 8<<20)
	options := []string{"--object-size", strconv.FormatInt(h.unit, 10)}
	if len(h.points) > 1 && h.chance(2) {
		options = append(options, "--image-feature="+pick(h.rng, "layering", "layering,exclusive-lock"))
	}
	if h.chance(4) {
		options = append(options, "--data-pool="+pools.dataPool)
	}
	if h.chance(4) {
		options = append(options, "--stripe-unit="+strconv.FormatInt(h.unit/pick[int64](h.rng, 1, 4, 16), 10),
			"--stripe-count="+strconv.Itoa(2+h.rng.IntN(4)))
	}
	h.noise = filepath.Join(t.TempDir(), "noise")
	noise := make([]byte, noiseSize)
	for i := range noise {
		noise[i] = byte(h.rng.Uint32())
	}
	if err := os.WriteFile(h.noise, noise, 0o600); err != nil {
		t.Fatal(err)
	}
	h.size = h.randomSize()
	h.disk = &disk{pool: pool, dir: program.Init(t), truth: map[string]content{}}
	h.image = fmt.Sprintf("vm%d", seed)
	t.Logf("%s: size %d, options %v", pool.Spec(h.image), h.size, options)
	h.create(t, options)
	return h
}

// create makes the image, of nothing or as a clone.
func (h *history) create(t *testing.T, options []string) {
	image := h.image
	if h.clone = h.chance(4); !h.clone {
		h.pool.CreateImage(t, image, h.size, options...)
		return
	}
	h.image += "-parent"
	h.pool.CreateImage(t, h.image, h.size, options...)
	h.io(t)
	h.pool.CreateSnapshot(t, h.image+"@s")
	h.pool.Clone(t, h.image+"@s", image, options...)
	h.image = image
}

// backUp makes a point; the admin's twin of its snapshot, if there is one, has to agree with it.
func (h *history) backUp(t *testing.T) {
	options := []string{"--compress", pick(h.rng, "none", "zlib", "zstd", "zstd:"+strconv.Itoa(1+h.rng.IntN(6)))}
	full := len(h.points) > 0 && h.chance(12)
	if full {
		options = append(options, "--full")
	}
	twin := h.chance(4)
	if twin {
		h.makeSnapshot(t)
	}
	r := h.backup(t, options...)
	p := r.Points[0]
	t.Logf("backup %v: %s %s, reason %q, size %d", options, p.Kind, p.Point, r.Reason, p.VirtualSize)
	switch {
	case full:
		h.wantFull(t, r, "asked for")
	case len(h.points) == 0:
		h.wantFull(t, r, "first backup")
	case r.Method == "full": // an object map that was switched off, or on and rebuilt, can't be a base's any more
		h.wantFull(t, r, "was read by")
	default:
		h.wantIncrement(t, r, h.points[len(h.points)-1].Point)
	}
	if twin && h.contentAt(t, h.snapshots[len(h.snapshots)-1]) != h.truth[p.File] {
		t.Error("the image has other content at the point's snapshot than before")
	}
	if p.VirtualSize != h.truth[p.File].size {
		t.Errorf("point %s has %d bytes, want %d", p.Point, p.VirtualSize, h.truth[p.File].size)
	}
	h.points = append(h.points, p)
}

// checkList holds what list says of the points against what backup said.
func (h *history) checkList(t *testing.T) {
	listed := list(t, h.dir)
	if len(listed) != 1 {
		t.Fatalf("%d images are listed, want one", len(listed))
	}
	got := listed[0].Points
	for i, want := range h.points {
		if i >= len(got) || got[i].Point != want.Point || got[i].State != repo.Good || got[i].Kind != want.Kind {
			t.Errorf("list gives %+v, want %+v", got, h.points)
			return
		}
	}
}

// removeImage makes room for other histories.
func (h *history) removeImage(t *testing.T) {
	h.pool.RBD(t, "snap", "purge", "--no-progress", h.pool.Spec(h.image))
	h.pool.Remove(t, h.image)
}

// chance is true once in n times.
func (h *history) chance(n int) bool { return h.rng.IntN(n) == 0 }

func pick[T any](rng *rand.Rand, choices ...T) T { return choices[rng.IntN(len(choices))] }

// TestTinyDisk goes through sizes around a sector, and through none at all.
func TestTinyDisk(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "vm", 1000)
	pool.IO(t, d.image, "write -P 7 0 1000")
	parent := d.backup(t).Points[0].Point
	for _, size := range []int64{0, 2000, 511, 513, 512, 1} {
		pool.Resize(t, d.image, size)
		if size > 1000 {
			pool.IO(t, d.image, "write -P 8 400 1600")
		}
		r := d.backup(t)
		d.wantIncrement(t, r, parent)
		parent = r.Points[0].Point
	}
	d.check(t)
}
