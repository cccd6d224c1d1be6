package qcow2_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// journalFile is a file that keeps the steps of a fold, and fails at the one with number failAt.
type journalFile struct {
	ramFile
	before []byte
	steps  []step // "write", "truncate", "sync", "punch"
	failAt int    // -1: never
	calls  int
}

func newJournalFile(b []byte) *journalFile {
	return &journalFile{ramFile: ramFile{bytes.Clone(b)}, before: bytes.Clone(b), failAt: -1}
}

func (f *journalFile) do(s step) error {
	f.calls++
	if f.calls-1 == f.failAt {
		return syscall.ENOSPC
	}
	f.steps = append(f.steps, s)
	return nil
}

func (f *journalFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.do(step{"write", off, bytes.Clone(p)}); err != nil {
		return 0, err
	}
	return f.ramFile.WriteAt(p, off)
}

func (f *journalFile) Truncate(size int64) error {
	if err := f.do(step{op: "truncate", off: size}); err != nil {
		return err
	}
	return f.ramFile.Truncate(size)
}

func (f *journalFile) Sync() error { return f.do(step{op: "sync"}) }

func (f *journalFile) Punch(off, n int64) error {
	if err := f.do(step{"punch", off, make([]byte, n)}); err != nil {
		return err
	}
	return f.ramFile.Punch(off, n)
}

// pieces splits steps into what a disk does at once: sectors.
func pieces(steps []step) (split []step) {
	for _, s := range steps {
		if s.op == "truncate" {
			split = append(split, s)
			continue
		}
		for at := int64(0); at < int64(len(s.data)); {
			n := min(512-(s.off+at)%512, int64(len(s.data))-at)
			split = append(split, step{s.op, s.off + at, s.data[at : at+n]})
			at += n
		}
	}
	return split
}

// replay gives b after the steps that are not lost.
func replay(b []byte, steps []step, lost func(i int) bool) []byte {
	f := ramFile{bytes.Clone(b)}
	for i, s := range steps {
		switch {
		case lost(i):
		case s.op == "write":
			_, _ = f.WriteAt(s.data, s.off)
		case s.op == "truncate":
			_ = f.Truncate(s.off)
		case s.op == "punch" && s.off < int64(len(f.b)):
			_ = f.Punch(s.off, int64(len(s.data)))
		}
	}
	return f.b
}

// crashes calls check with what a power cut can leave: at each step what is synced and any part of what is not. What
// loses one or two sectors is gone through, of the rest samples.
func (f *journalFile) crashes(r *rand.Rand, check func(what string, b []byte)) {
	synced := f.before
	for from := 0; from < len(f.steps); {
		to := from
		for to < len(f.steps) && f.steps[to].op != "sync" {
			to++
			check(fmt.Sprint("stopped before step ", to), replay(synced, f.steps[from:to], func(int) bool { return false }))
		}
		split := pieces(f.steps[from:to])
		crash := func(what string, lost func(i int) bool) { check(what, replay(synced, split, lost)) }
		for i := range split {
			crash(fmt.Sprint("epoch to ", to, " without piece ", i), func(k int) bool { return k == i })
			crash(fmt.Sprint("epoch to ", to, " with piece ", i, " alone"), func(k int) bool { return k != i })
			for j := range i {
				if len(split) > 80 && r.IntN(len(split)*len(split)/6400+1) > 0 {
					continue
				}
				crash(fmt.Sprint("epoch to ", to, " without pieces ", i, " and ", j), func(k int) bool { return k == i || k == j })
			}
		}
		for range 200 {
			share, upTo := r.IntN(100), r.IntN(len(split)+1)
			crash(fmt.Sprint("epoch to ", to, ", some of it"), func(k int) bool { return k >= upTo || r.IntN(100) < share })
		}
		synced = replay(synced, split, func(int) bool { return false })
		from = to + 1
	}
	check("whole", synced)
}

// foldScene is a chain before a fold, and that fold.
type foldScene struct {
	chain       foldChain
	point       int // that goes
	intoBacking bool
	options     qcow2.FoldOptions
}

// newFoldScene makes a small chain in which folds have left free space already.
func newFoldScene(t *testing.T, r *rand.Rand, largest int64) *foldScene {
	t.Helper()
	s := &foldScene{intoBacking: r.IntN(2) == 0, options: randomFold(r), chain: foldChain{noPunch: r.IntN(2) == 0}}
	for i := range 4 {
		l := randomFoldLayer(r, i == 0, largest)
		l.cluster = 1 << 10
		if i > 0 && r.IntN(4) == 0 {
			l.cluster = 2 << 10
		}
		s.chain.add(t, r, l)
	}
	for len(s.chain.points) > 3 {
		s.chain.fold(t, r.IntN(len(s.chain.points)-1), r.IntN(2) == 0, randomFold(r))
	}
	s.point = r.IntN(2)
	s.options.Identity = []byte("after the fold")
	if s.point > 0 {
		s.options.BackingFile = "./" + s.chain.points[s.point-1].name
	}
	return s
}

func (s *foldScene) target() *foldPoint {
	if s.intoBacking {
		return s.chain.points[s.point]
	}
	return s.chain.points[s.point+1]
}

// run folds, in f, which has the content of the target.
func (s *foldScene) run(t *testing.T, f qcow2.FoldFile) (*qcow2.Folded, error) {
	t.Helper()
	im, err := s.chain.open(s.point+1, true)
	if err != nil {
		t.Fatal(err)
	}
	if s.intoBacking {
		return qcow2.FoldIntoBacking(t.Context(), f, im, s.options)
	}
	return qcow2.FoldIntoChild(t.Context(), f, im, s.options)
}

// check checks all points when the target is b, in one state or the other, and says which.
func (s *foldScene) check(t *testing.T, what string, b []byte, whole bool) (isNew bool) {
	t.Helper()
	chain := foldChain{points: slices.Clone(s.chain.points)}
	at := s.point + 1
	if s.intoBacking {
		at = s.point
	}
	changed := *chain.points[at]
	changed.file = &ramFile{b}
	chain.points[at] = &changed

	im, err := chain.open(at, true)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	id, err := im.Identity()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if string(id) == string(s.options.Identity) {
		isNew = true
		changed.want, changed.identity = s.chain.points[s.point+1].want, string(id)
	}
	if whole {
		chain.checkFile(t, at)
	}
	for i := s.point; i < len(chain.points); i++ { // with all that stand on it
		chain.checkContent(t, i)
	}
	if t.Failed() {
		t.Fatal(what)
	}
	return isNew
}

// After a power cut at any moment of a fold, and of the punching after it, the target is what it was or what it shall be,
// and everything that stands on it reads right.
func TestFoldCrash(t *testing.T) {
	for seed := range min(foldSeeds(t, 12), 2000) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := newRand(seed)
			s := newFoldScene(t, r, 12<<10)
			f := newJournalFile(s.target().file.b)
			folded, err := s.run(t, f)
			if err != nil {
				t.Fatal(err)
			}
			if err := folded.Punch(f); err != nil {
				t.Fatal(err)
			}
			var states [2]int
			f.crashes(r, func(what string, b []byte) {
				if s.check(t, what, b, r.IntN(20) == 0) {
					states[1]++
				} else {
					states[0]++
				}
			})
			if states[0] < 100 || states[1] < 2 {
				t.Errorf("%d times the old state, %d times the new one", states[0], states[1])
			}
		})
	}
}
