package changes

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
)

const (
	stateNonexistent = iota
	stateMarked
	statePending
	stateUnmarked
)

func objectMap(states []int) *rbd.ObjectMap {
	m := &rbd.ObjectMap{Objects: int64(len(states)), Words: make([]uint64, (len(states)+31)/32)}
	for i, s := range states {
		m.Words[i/32] |= uint64(s) << (62 - 2*(i%32))
	}
	return m
}

func randomStates(n int) []int {
	states := make([]int, n)
	for i := range states {
		states[i] = rand.IntN(4)
	}
	return states
}

// TestObjectSet holds the arithmetic on words against the states of single objects.
func TestObjectSet(t *testing.T) {
	for range 2000 {
		n := 1 + rand.IntN(130)
		base, later := randomStates(n), randomStates(n)
		var changed, exist []int64
		for i := range base {
			if later[i] == stateMarked || later[i] == statePending || base[i] == statePending || (base[i] == stateNonexistent) != (later[i] == stateNonexistent) {
				changed = append(changed, int64(i))
			}
			if base[i] != stateNonexistent {
				exist = append(exist, int64(i))
			}
		}
		s := newObjectSet(int64(n))
		s.addChanged(objectMap(base), objectMap(later))
		if got := slices.Collect(s.all); !slices.Equal(got, changed) || s.count() != int64(len(changed)) {
			t.Fatalf("base %v, later %v: changed %v, want %v", base, later, got, changed)
		}
		s = newObjectSet(int64(n))
		s.addExisting(objectMap(append(slices.Clone(base), randomStates(rand.IntN(70))...))) // an image that has shrunk
		if got := slices.Collect(s.all); !slices.Equal(got, exist) {
			t.Fatalf("states %v: existing %v, want %v", base, got, exist)
		}
		var marks []int64
		for i, state := range base {
			if state == stateMarked {
				marks = append(marks, int64(i))
			}
			if isClean(objectMap(base), int64(i)) != (state == stateUnmarked) {
				t.Fatalf("states %v: object %d clean or not", base, i)
			}
		}
		s = newObjectSet(int64(n))
		s.addMarked(objectMap(base))
		if got := slices.Collect(s.all); !slices.Equal(got, marks) {
			t.Fatalf("states %v: marked %v, want %v", base, got, marks)
		}
		sample := s.sample(8)
		if len(sample) > 8 || len(marks) > 0 && len(sample) == 0 || len(marks) <= 8 && !slices.Equal(sample, marks) && len(marks) > 0 {
			t.Fatalf("of %v a sample %v", marks, sample)
		}
		first, end := rand.IntN(n), rand.IntN(n+40)
		s = newObjectSet(int64(n))
		s.addRange(int64(first), int64(end))
		if got := s.count(); got != int64(max(0, min(end, n)-first)) {
			t.Fatalf("%d objects from %d to %d of %d", got, first, end, n)
		}
	}
}
