package qcow2_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// TestPunchFree gives back what folds have left that were cut short anywhere: in the old state what they had filled, in the new
// one what they had not punched. All points read as before.
func TestPunchFree(t *testing.T) {
	gone := 0
	for seed := range min(foldSeeds(t, 24), 2000) {
		r := newRand(seed)
		s := newFoldScene(t, r, 40<<10)
		f := newJournalFile(s.target().file.b)
		folded, err := s.run(t, f)
		if err != nil {
			t.Fatal(err)
		}
		if err := folded.Punch(f); err != nil {
			t.Fatal(err)
		}
		for range 8 {
			cut := r.IntN(len(f.steps) + 1)
			left := &ramFile{replay(f.before, f.steps[:cut], func(int) bool { return false })}
			im, err := qcow2.Open(left, int64(len(left.b)), qcow2.OpenOptions{Prove: true, Alone: true})
			if err != nil {
				t.Fatal(err)
			}
			before := bytes.Count(left.b, []byte{0})
			if err := im.PunchFree(t.Context(), left); err != nil {
				t.Fatal(err)
			}
			gone += bytes.Count(left.b, []byte{0}) - before
			s.check(t, fmt.Sprintf("seed %d, cut short at step %d", seed, cut), left.b, true)
		}
	}
	if gone < 10<<10 {
		t.Errorf("only %d bytes were given back", gone)
	}
}

// TestPunchFreeDamaged flips bits anywhere: what is still read of the file, and by whom, is what it was before.
func TestPunchFreeDamaged(t *testing.T) {
	refused, punched := 0, 0
	for seed := range min(foldSeeds(t, 12), 2000) {
		r := newRand(seed)
		s := newFoldScene(t, r, 40<<10)
		whole := s.target().file.b
		for range 60 {
			left := &ramFile{bytes.Clone(whole)}
			left.b[r.IntN(len(whole))] ^= 1 << r.IntN(8)
			im, err := s.chain.openFile(left, true)
			if err != nil {
				continue
			}
			before := make([]byte, im.Size())
			_, errBefore := im.ReadAt(before, 0)
			if err := im.PunchFree(t.Context(), left); err != nil {
				refused++
				continue
			}
			punched++
			if im, err = s.chain.openFile(left, true); err != nil {
				t.Fatal(err)
			}
			after := make([]byte, im.Size())
			if _, err := im.ReadAt(after, 0); (err == nil) != (errBefore == nil) || err == nil && !bytes.Equal(before, after) {
				t.Errorf("seed %d: reads as something else: %v, was %v", seed, err, errBefore)
			}
		}
	}
	t.Logf("%d refused, %d punched", refused, punched)
}
