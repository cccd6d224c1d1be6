package changes_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbdtest"
)

// TestFindFuzz lives through random histories of images, with snapshots as backups make them, and applies what Find
// reports for pairs of these to the older one's content: that has to give the newer one's, as librbd reads it.
//
//	RBD2QCOW2_PAIRS    about how many pairs (1000; 100000 for a proof)
//	RBD2QCOW2_SEED     repeats one history, of the seed that a miss has printed
//	RBD2QCOW2_PROFILE  lets all histories be of one profile
func TestFindFuzz(t *testing.T) {
	pool := cephtest.Require(t).Pool(t)
	dataPool := pool.DataPool(t)
	f := newFuzz(t, pool, profiles)
	f.dataPool = dataPool
	f.run(t, number(t, "RBD2QCOW2_PAIRS", 1000))
	f.report(t)
	if c := f.count; c.plain > 100 && c.plainNarrowed*10 < c.plain*4 {
		t.Errorf("of %d pairs without any obstacle %d were narrowed", c.plain, c.plainNarrowed)
	}
}

// TestFindFuzzKilled is TestFindFuzz with programs that are killed in the middle of a rollback, a removal, a resize, a
// flatten or writes.
func TestFindFuzzKilled(t *testing.T) {
	f := newFuzz(t, cephtest.Require(t).Pool(t), killProfiles)
	f.run(t, number(t, "RBD2QCOW2_PAIRS", 1000)/10)
	f.report(t)
}

// workers is how many histories are lived at once: a snapshot waits for the monitors most of its time.
const workers = 12

// maxMisses ends a run that has seen enough.
const maxMisses = 5

// fuzz is what histories share.
type fuzz struct {
	admin    *rbdtest.Pool
	pool     *rbd.Pool
	dataPool string // "": none
	profiles []profile
	seed     uint64 // of the next history, or of the only one
	only     bool

	mu    sync.Mutex
	count counters
}

// counters say what the pairs of snapshots were like, and what became of them.
type counters struct {
	histories, pairs       int
	methods                map[string]int // by method and reason
	plain, plainNarrowed   int            // pairs that meet no obstacle
	asked, objects         int64          // of narrowed pairs
	fastDiffMissed         int            // by librbd's own diff by whole objects
	missedBesides, notMade map[string]int // fast-diff's misses by what Find did, operations that failed by name and error
	misses                 []string
}

func newFuzz(t *testing.T, pool *cephtest.Pool, profiles []profile) *fuzz {
	f := &fuzz{admin: rbdtest.Connect(t, pool), pool: connect(t, pool), profiles: profiles}
	f.count.methods, f.count.missedBesides, f.count.notMade = map[string]int{}, map[string]int{}, map[string]int{}
	f.seed = rand.Uint64N(1e9) * 1e6
	if s := os.Getenv("RBD2QCOW2_SEED"); s != "" {
		f.seed, f.only = uint64(number(t, "RBD2QCOW2_SEED", 0)), true
	}
	if name := os.Getenv("RBD2QCOW2_PROFILE"); name != "" {
		f.profiles = slices.DeleteFunc(slices.Clone(profiles), func(p profile) bool { return p.name != name })
		if len(f.profiles) == 0 {
			t.Skipf("no profile of this test is named %q", name)
		}
	}
	return f
}

// connect connects as the pool's backup user until the test ends.
func connect(t *testing.T, pool *cephtest.Pool) *rbd.Pool {
	c, err := rbd.Connect(t.Context(), rbd.Config{ConfFile: pool.Conf, ID: pool.User, Keyring: pool.Keyring})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	p, err := c.Pool(t.Context(), pool.Name, pool.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// run lives through histories until there are so many pairs.
func (f *fuzz) run(t *testing.T, pairs int) {
	if f.only {
		f.live(t, f.seed)
		return
	}
	var wg sync.WaitGroup
	for range min(workers, 1+pairs/50) {
		wg.Go(func() {
			for t.Context().Err() == nil {
				seed, ok := f.next(pairs)
				if !ok {
					return
				}
				f.live(t, seed)
			}
		})
	}
	wg.Wait()
}

func (f *fuzz) next(pairs int) (seed uint64, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seed++
	return f.seed, f.count.pairs < pairs && len(f.count.misses) < maxMisses
}

// live is one history.
func (f *fuzz) live(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 0))
	h := &history{fuzz: f, rng: rng, profile: f.profiles[rng.IntN(len(f.profiles))], seed: seed}
	err := h.live(t.Context())
	if err != nil && t.Context().Err() == nil {
		t.Errorf("RBD2QCOW2_SEED=%d (%s): %v\n%s", seed, h.profile.name, err, h)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count.histories++
}

// report logs the counters, and the misses as errors.
func (f *fuzz) report(t *testing.T) {
	c := f.count
	for _, miss := range c.misses {
		t.Error(miss)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d pairs of %d histories, %d missed by Find, %d by librbd's fast-diff\n", c.pairs, c.histories, len(c.misses), c.fastDiffMissed)
	fmt.Fprintf(&b, "%d pairs meet no obstacle, %d of them narrowed\n", c.plain, c.plainNarrowed)
	fmt.Fprintf(&b, "%d of %d objects of narrowed pairs asked about\n", c.asked, c.objects)
	for _, table := range []struct {
		name   string
		counts map[string]int
	}{{"pairs by method", c.methods}, {"fast-diff missed", c.missedBesides}, {"not done", c.notMade}} {
		fmt.Fprintf(&b, "%s:\n", table.name)
		keys := slices.Collect(maps.Keys(table.counts))
		slices.SortFunc(keys, func(a, b string) int { return table.counts[b] - table.counts[a] })
		for _, key := range keys {
			fmt.Fprintf(&b, "%9d %s\n", table.counts[key], key)
		}
	}
	t.Log(b.String())
}

func number(t *testing.T, variable string, otherwise int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}
