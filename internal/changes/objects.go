package changes

import (
	"encoding/binary"
	"iter"
	"math/bits"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
)

// firstBits has the lower bit of each object's pair in a word of an object map.
const firstBits = 0x5555555555555555

// The following give firstBits of the objects of a word that are in such a state.

func existing(w uint64) uint64 { return (w | w>>1) & firstBits }

// marked: written since the snapshot before, or being removed.
func marked(w uint64) uint64 { return (w ^ w>>1) & firstBits }

func beingRemoved(w uint64) uint64 { return (w >> 1 &^ w) & firstBits }

// objectSet is a set of an image's objects: one bit in the place where an object map has two.
type objectSet struct {
	objects int64
	words   []uint64
}

func newObjectSet(objects int64) *objectSet {
	return &objectSet{objects, make([]uint64, wordsOf(objects))}
}

func allObjects(objects int64) *objectSet {
	s := newObjectSet(objects)
	s.addRange(0, objects)
	return s
}

// wordsOf is how many words so many objects take.
func wordsOf(objects int64) int64 { return (objects + rbd.ObjectsPerWord - 1) / rbd.ObjectsPerWord }

// addExisting adds the objects that exist in a map.
func (s *objectSet) addExisting(m *rbd.ObjectMap) {
	for i := range s.words[:min(len(s.words), len(m.Words))] {
		s.words[i] |= existing(m.Words[i])
	}
	s.trim()
}

// addChanged adds the objects that, by a later map, may differ from the base. The base is of as many objects as the set.
func (s *objectSet) addChanged(base, later *rbd.ObjectMap) {
	for i := range s.words[:min(len(s.words), len(later.Words))] {
		b, m := base.Words[i], later.Words[i]
		s.words[i] |= marked(m) | beingRemoved(b) | (existing(b) ^ existing(m))
	}
	s.trim()
}

// addMarked adds the objects that a map calls written since the snapshot before.
func (s *objectSet) addMarked(m *rbd.ObjectMap) {
	for i := range s.words[:min(len(s.words), len(m.Words))] {
		s.words[i] |= marked(m.Words[i]) &^ beingRemoved(m.Words[i])
	}
	s.trim()
}

// addRemoved adds the objects that are being removed by a map.
func (s *objectSet) addRemoved(m *rbd.ObjectMap) {
	for i := range s.words[:min(len(s.words), len(m.Words))] {
		s.words[i] |= beingRemoved(m.Words[i])
	}
	s.trim()
}

// without gives the objects of s that are not in another set of as many objects.
func (s *objectSet) without(other *objectSet) *objectSet {
	d := newObjectSet(s.objects)
	for i := range d.words {
		d.words[i] = s.words[i] &^ other.words[i]
	}
	return d
}

// isClean says whether a map has an object as clean.
func isClean(m *rbd.ObjectMap, object int64) bool { return state(m, object) == 3 }

// isMarked says whether a map has an object as written since the snapshot before.
func isMarked(m *rbd.ObjectMap, object int64) bool { return state(m, object) == 1 }

// state gives what a map has for an object, which need not be one of its own: such a one does not exist.
func state(m *rbd.ObjectMap, object int64) uint64 {
	if object < 0 || object >= m.Objects {
		return 0
	}
	word, shift := place(object)
	return m.Words[word] >> shift & 3
}

// place gives the word of a map or a set that an object is in, and how far from its lower end.
func place(object int64) (word, shift int64) {
	return object / rbd.ObjectsPerWord, 62 - 2*(object%rbd.ObjectsPerWord)
}

// addRange adds the objects from first to before end.
func (s *objectSet) addRange(first, end int64) {
	for n := first; n < min(end, s.objects); n++ {
		word, shift := place(n)
		s.words[word] |= 1 << shift
	}
}

func (s *objectSet) has(object int64) bool {
	word, shift := place(object)
	return s.words[word]>>shift&1 != 0
}

// trim takes out what another map has behind the last object.
func (s *objectSet) trim() {
	if rest := s.objects % rbd.ObjectsPerWord; rest > 0 {
		s.words[len(s.words)-1] &^= 1<<(64-2*rest) - 1
	}
}

// sample gives at most limit of the objects, spread evenly.
func (s *objectSet) sample(limit int64) []int64 {
	step, i := (s.count()+limit-1)/limit, int64(0)
	objects := []int64{}
	for n := range s.all {
		if i++; i%step == 0 {
			objects = append(objects, n)
		}
	}
	return objects
}

// bytes gives the set as bits: one word, the highest bits first, behind the other.
func (s *objectSet) bytes() []byte {
	b := make([]byte, 0, 8*len(s.words))
	for _, w := range s.words {
		b = binary.BigEndian.AppendUint64(b, w)
	}
	return b
}

func (s *objectSet) count() int64 {
	n := 0
	for _, w := range s.words {
		n += bits.OnesCount64(w)
	}
	return int64(n)
}

// all yields the numbers of the objects in ascending order.
func (s *objectSet) all(yield func(int64) bool) { s.between(0, s.objects)(yield) }

// between is all for the objects from first to before end.
func (s *objectSet) between(first, end int64) iter.Seq[int64] {
	return func(yield func(int64) bool) {
		for i := first / rbd.ObjectsPerWord; i < int64(len(s.words)) && i*rbd.ObjectsPerWord < end; i++ {
			for w := s.words[i]; w != 0; {
				bit := bits.LeadingZeros64(w)
				w &^= 1 << (63 - bit)
				n := i*rbd.ObjectsPerWord + int64(bit/2)
				if n >= first && n < end && !yield(n) {
					return
				}
			}
		}
	}
}

// span is a range of the disk in bytes.
type span struct{ off, end int64 }

// ranges gives where the objects lie, neighbours joined. With striping, that is where their sets of objects lie.
func (f *finder) ranges(objects *objectSet) []span {
	period := f.img.Period()
	var ranges []span
	for n := range objects.all {
		off := n / f.img.StripeCount() * period
		end := min(off+period, f.size)
		if last := len(ranges) - 1; last >= 0 && ranges[last].end >= off {
			ranges[last].end = end
			continue
		}
		ranges = append(ranges, span{off, end})
	}
	return ranges
}

// addBytes adds the objects that hold a range of the disk.
func (f *finder) addBytes(s *objectSet, off, length int64) {
	if length > 0 {
		first, last := off/f.img.Period(), (off+length-1)/f.img.Period()
		s.addRange(first*f.img.StripeCount(), (last+1)*f.img.StripeCount())
	}
}
