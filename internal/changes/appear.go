package changes

import (
	"cmp"
	"context"
	"slices"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
)

// unsure are objects of which the precise diff may not tell all that differs in what is read. librbd goes by the object
// map when it reads a snapshot, and that may lack objects that are there: after a killed rollback, say. Later on they
// may be seen. The precise diff, which goes by the objects, has then nothing to report, or just what was written since;
// but what can be read differs, and that is what counts.
type unsure struct {
	came     *objectSet // may exist at the newer snapshot, and did not at the base
	gone     *objectSet // existed at the base, and does not any more
	hidden   *objectSet // may have existed at the base, and does not by the newer map, whatever there is
	removed  *objectSet // was being removed at one of the two
	orphaned *objectSet // at the base a parent showed through where it was not, and does not any more
}

// newUnsure compares what existed when the base was read with the maps of the two snapshots; the newer one has so many objects.
// nil: that is done without one, and any object may exist.
func newUnsure(existed *objectSet, base, newer *rbd.ObjectMap, objects int64) *unsure {
	none := newObjectSet(objects)
	u := &unsure{came: none, gone: none, hidden: none, removed: newObjectSet(objects), orphaned: none}
	before, now := newObjectSet(objects), newObjectSet(objects)
	if existed != nil {
		copy(before.words, existed.words)
		before.trim()
		u.removed.addRemoved(base)
	}
	if newer != nil {
		now.addExisting(newer)
		u.removed.addRemoved(newer)
	}
	switch {
	case existed == nil && newer == nil:
	case existed == nil:
		u.hidden = allObjects(objects).without(now)
	case newer == nil:
		u.came = allObjects(objects).without(before).without(u.removed)
	default:
		u.came = now.without(before).without(u.removed)
		u.gone = before.without(now).without(u.removed)
	}
	return u
}

// complete reports the objects of a piece, which is of whole sets of objects, as a whole of which the finds may not be
// all.
func (f *finder) complete(ctx context.Context, p *piece) error {
	if f.unsure == nil {
		return nil
	}
	first, end := p.off/f.img.Period()*f.img.StripeCount(), (p.end+f.img.Period()-1)/f.img.Period()*f.img.StripeCount()
	whole := map[int64]bool{} // true: as data; false: as zeroes
	for n := range f.unsure.removed.between(first, end) {
		whole[n] = true
	}
	for n := range f.unsure.gone.between(first, end) {
		whole[n] = f.hasParent(n)
	}
	extents := f.split(p.extents)
	found := f.reach(extents)
	// Of a new object everything is reported, from its beginning to its end; where a parent shows through that is not so.
	err := f.compareReach(ctx, slices.Collect(f.unsure.came.between(first, end)), func(object, exists int64) {
		if f.hasParent(object) || found[object] != exists {
			whole[object] = true
		}
	})
	// A flatten passes over objects that the head's map has, wrongly.
	if err == nil {
		err = f.compareReach(ctx, slices.Collect(f.unsure.orphaned.between(first, end)), func(object, exists int64) {
			if m := f.maps[f.newer.ID]; exists == 0 || m != nil && state(m, object) == 0 {
				whole[object] = f.hasParent(object)
			}
		})
	}
	if err == nil {
		err = f.compareReach(ctx, slices.Collect(f.unsure.hidden.between(first, end)), func(object, exists int64) {
			if exists != 0 {
				whole[object] = f.hasParent(object)
			}
		})
	}
	if err != nil || len(whole) == 0 {
		return err
	}
	p.extents = slices.DeleteFunc(extents, func(e rbd.Extent) bool {
		n, _ := f.objectAt(e.Offset)
		_, replaced := whole[n]
		return replaced
	})
	for n, data := range whole {
		p.extents = append(p.extents, f.stripes(n, data)...)
	}
	slices.SortFunc(p.extents, func(a, b rbd.Extent) int { return cmp.Compare(a.Offset, b.Offset) })
	return nil
}

// compareReach asks for all that objects, in ascending order, have at the newer snapshot, whatever any map says.
func (f *finder) compareReach(ctx context.Context, objects []int64, compare func(object, exists int64)) error {
	for len(objects) > 0 {
		n := 1
		for n < len(objects) && objects[n] == objects[n-1]+1 {
			n++
		}
		period := f.img.Period()
		off, end := objects[0]/f.img.StripeCount()*period, (objects[n-1]/f.img.StripeCount()+1)*period
		var all []rbd.Extent
		err := f.img.Diff(ctx, "", off, min(end, f.size)-off, func(e rbd.Extent) error {
			all = append(all, e)
			return nil
		})
		if err != nil {
			return err
		}
		exists := f.reach(f.split(all))
		for _, object := range objects[:n] {
			compare(object, exists[object])
		}
		objects = objects[n:]
	}
	return nil
}

// reach tells how far objects are data from their beginning on, -1 where there is anything else. The extents are split.
func (f *finder) reach(extents []rbd.Extent) map[int64]int64 {
	reach := map[int64]int64{}
	for _, e := range extents {
		if n, off := f.objectAt(e.Offset); e.Exists && off == reach[n] {
			reach[n] += e.Length
		} else {
			reach[n] = -1
		}
	}
	return reach
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

// hasParent says whether a parent shows through where an object is not: of one that is copied from there only what was
// written is reported.
func (f *finder) hasParent(object int64) bool {
	return f.parent != nil && f.firstByte(object) < f.parent.Overlap
}

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

// firstByte gives where on the disk an object begins.
func (f *finder) firstByte(object int64) int64 {
	unit, count := f.layout()
	return object/count*f.img.Period() + object%count*unit
}

// stripes gives where on the disk an object lies.
func (f *finder) stripes(object int64, data bool) []rbd.Extent {
	unit, count := f.layout()
	var extents []rbd.Extent
	for off := f.firstByte(object); off < min(f.size, (object/count+1)*f.img.Period()); off += unit * count {
		extents = append(extents, rbd.Extent{Offset: off, Length: min(unit, f.size-off), Exists: data})
	}
	return extents
}
