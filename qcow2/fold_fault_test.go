package qcow2_test

import (
	"bytes"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// Whichever call fails, the error comes out and the target is what it was, at its old length, unless the new state was written.
func TestFoldFileFails(t *testing.T) {
	for seed := range min(foldSeeds(t, 8), 200) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			s := newFoldScene(t, newRand(seed), 40<<10)
			for at := 0; ; at++ {
				f := newJournalFile(s.target().file.b)
				f.failAt = at
				folded, err := s.run(t, f)
				if err == nil {
					if at < 8 || f.calls > at {
						t.Errorf("no error of call %d", at)
					}
					if err := folded.Close(); err != nil {
						t.Error(err)
					}
					return
				}
				if !errors.Is(err, syscall.ENOSPC) {
					t.Fatalf("call %d: %v", at, err)
				}
				switch isNew := s.check(t, fmt.Sprint("call ", at), f.b, true); {
				case isNew && f.steps[len(f.steps)-1].op != "write":
					t.Errorf("call %d: the new state", at)
				case !isNew && len(f.b) != len(f.before):
					t.Errorf("call %d: %d bytes instead of %d", at, len(f.b), len(f.before))
				}
			}
		})
	}
}

// A damaged cluster or table of either file is found before anything has happened to the target, if it has to be read.
func TestFoldDamaged(t *testing.T) {
	for seed := range min(foldSeeds(t, 12), 2000) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := newRand(seed)
			s := newFoldScene(t, r, 40<<10)
			var found int
			for range 60 {
				point := s.chain.points[s.point+r.IntN(2)]
				whole := point.file.b
				point.file = &ramFile{bytes.Clone(whole)}
				at := r.IntN(len(whole))
				point.file.b[at] ^= 1 << r.IntN(8)
				f := newJournalFile(s.target().file.b)
				if s.foldDamaged(t, f) {
					found++
				}
				point.file = &ramFile{whole}
			}
			t.Logf("found %d of 60", found)
		})
	}
}

// foldDamaged folds a chain with a flipped bit and says whether that was found. Where not, it is not in what was moved.
func (s *foldScene) foldDamaged(t *testing.T, f *journalFile) bool {
	t.Helper()
	im, err := s.chain.open(s.point+1, true)
	if err != nil {
		return true
	}
	fold := qcow2.FoldIntoChild
	if s.intoBacking {
		fold = qcow2.FoldIntoBacking
	}
	before := bytes.Clone(f.b)
	folded, err := fold(t.Context(), f, im, s.options)
	if err != nil {
		var damage *qcow2.CorruptError
		if !errors.As(err, &damage) || !bytes.Equal(f.b[:512], before[:512]) || len(f.b) != len(before) {
			t.Errorf("damaged: %v, %d bytes of %d", err, len(f.b), len(before))
		}
		return true
	}
	if err := folded.Punch(f); err != nil {
		t.Error(err)
	}
	// The bit was in what stays or in what is not used: whatever is read of it now is right, or is found.
	at := s.point + 1
	after, err := s.chain.openFile(&f.ramFile, true)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(s.chain.points[at].want))
	if _, err := after.ReadAt(got, 0); err == nil && !bytes.Equal(got, s.chain.points[at].want) {
		t.Errorf("damage was laundered at %d", firstDifference(got, s.chain.points[at].want))
	}
	return false
}
