package changes

import (
	"cmp"
	"slices"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
)

// appeared are the objects that exist in one of the two maps and not in the other. librbd goes by the maps when it
// reads, and they may be wrong: after a killed rollback, say, objects are there that the map denies, and zeroes are
// read. Later on they may be seen. The precise diff, which goes by the objects, has then nothing to report, or just what
// was written; but what can be read differs, and that is what counts.
func appeared(base, newer *rbd.ObjectMap) *objectSet {
	s, b := newObjectSet(newer.Objects), newObjectSet(newer.Objects)
	s.addExisting(newer)
	b.addExisting(base)
	for i := range s.words {
		s.words[i] ^= b.words[i]
	}
	return s
}

// complete reports the objects of a piece, which is of whole sets of objects, as a whole that have appeared or disappeared by the maps,
// but not by the finds.
func (f *finder) complete(p *piece) {
	if f.appeared == nil || p.err != nil {
		return
	}
	wrong := map[int64]bool{}
	first, end := p.off/f.img.Period()*f.img.StripeCount(), (p.end+f.img.Period()-1)/f.img.Period()*f.img.StripeCount()
	for n := range f.appeared.between(first, end) {
		wrong[n] = true
	}
	if len(wrong) == 0 {
		return
	}
	p.extents = f.split(p.extents)
	known := map[int64]int64{} // objects: how far they were reported from their beginning on
	for _, e := range p.extents {
		n, off := f.objectAt(e.Offset)
		if off == known[n] {
			known[n] += e.Length
			delete(wrong, n)
		} else if f.appeared.has(n) && !f.hasParent(e.Offset) {
			wrong[n] = true // it was there before
		}
	}
	p.extents = slices.DeleteFunc(p.extents, func(e rbd.Extent) bool {
		n, _ := f.objectAt(e.Offset)
		return wrong[n]
	})
	for n := range wrong {
		p.extents = append(p.extents, f.stripes(n)...)
	}
	slices.SortFunc(p.extents, func(a, b rbd.Extent) int { return cmp.Compare(a.Offset, b.Offset) })
}

// split cuts extents where another object begins: with striping they may go on across that.
func (f *finder) split(extents []rbd.Extent) []rbd.Extent {
	unit, _ := f.layout()
	var parts []rbd.Extent
	for _, e := range extents {
		for e.Length > 0 {
			n := min(e.Length, unit-e.Offset%unit)
			parts = append(parts, rbd.Extent{Offset: e.Offset, Length: n, Exists: e.Exists})
			e.Offset, e.Length = e.Offset+n, e.Length-n
		}
	}
	return parts
}

// hasParent says whether a parent shows through where no object is: of an object that is copied from there only what was
// written is reported.
func (f *finder) hasParent(off int64) bool { return f.parent != nil && off < f.parent.Overlap }

// objectAt gives the object that holds a byte of the disk, and where in it (Striper::file_to_extents of Ceph).
func (f *finder) objectAt(off int64) (object, inside int64) {
	unit, count := f.layout()
	return off/f.img.Period()*count + off/unit%count, off%f.img.Period()/(unit*count)*unit + off%unit
}

// layout gives how objects share the disk; without striping an object is one unit.
func (f *finder) layout() (unit, count int64) {
	if count = f.img.StripeCount(); count == 1 {
		return f.img.ObjectSize(), 1
	}
	return f.img.StripeUnit(), count
}

// stripes gives where on the disk an object lies.
func (f *finder) stripes(object int64) []rbd.Extent {
	unit, count := f.layout()
	var extents []rbd.Extent
	for off := object/count*f.img.Period() + object%count*unit; off < min(f.size, (object/count+1)*f.img.Period()); off += unit * count {
		extents = append(extents, rbd.Extent{Offset: off, Length: min(unit, f.size-off), Exists: true})
	}
	return extents
}
