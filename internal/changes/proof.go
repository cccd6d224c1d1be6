package changes

import (
	"fmt"
	"slices"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
)

// narrow gives the objects outside of which nothing can differ, and by what they are known, or nil and the reason why
// all of them have to be asked about. doubt is what doubt has given. See the package documentation for the proof.
func (f *finder) narrow(doubt string) (*objectSet, string) {
	switch {
	case f.o.Mode == Precise:
		return nil, "asked for"
	case f.o.Distrust != "":
		return nil, f.o.Distrust
	case f.damage != "":
		return nil, f.damage
	}
	b, newer := f.o.Base, f.maps[f.newer.ID]
	later := []*rbd.ObjectMap{newer}
	if f.head != nil {
		later = append(later, f.head)
	}
	existing := newObjectSet(newer.Objects)
	for _, m := range later {
		existing.addExisting(m)
	}
	if b == nil {
		if f.parent != nil {
			f.addBytes(existing, 0, min(f.parent.Overlap, f.size))
		}
		return existing, "object map"
	}
	switch {
	case b.Others == nil:
		return nil, "the newest point does not tell what snapshots the image had"
	case !sameParent(f.parent, b.Parent):
		return nil, "the image was resized or flattened, so that another part of its parent shows through"
	case f.baseDamage != "":
		return nil, f.baseDamage
	}
	base := f.maps[b.Snapshot.ID]
	if doubt != "" {
		existing.addExisting(base)
		return existing, fmt.Sprintf("object maps, by existence alone since %s,", doubt)
	}
	changed := newObjectSet(newer.Objects)
	for _, m := range later {
		changed.addChanged(base, m)
	}
	return changed, "object maps"
}

// doubt says why the marks of the newer map may not be all that was written since the base, "" if they are.
func (f *finder) doubt() string {
	b := f.o.Base
	base, ok := rbd.Snapshot{}, false
	if b != nil {
		base, ok = f.snapshot(b.Snapshot.ID)
	}
	switch {
	case f.damage != "":
		return f.damage
	case !ok:
		return "there is no base"
	case f.baseDamage != "":
		return f.baseDamage
	case !f.img.Features().Has(rbd.FeatureFastDiff):
		return "the image has no fast-diff"
	case base.Size != f.size:
		return "the image was resized"
	case base.Flags != 0:
		return f.invalid(base)
	case f.newer.Flags != 0:
		return f.invalid(f.newer)
	case !f.noneSinceBase():
		return "another snapshot was made after the newest point's"
	case b.Marks == nil:
		return "the newest point was made without a look at object maps"
	case !b.Quiet:
		return "a rollback may have been under way when the newest point was made"
	}
	for _, s := range f.snapshots {
		if s.ID > base.ID && (f.newer.ID == 0 || s.ID < f.newer.ID) {
			return fmt.Sprintf("%s was made after the newest point's", f.name(s.ID))
		}
	}
	for _, id := range append(slices.Clone(b.Others), base.ID) {
		if !f.notRolledBack(id) {
			return fmt.Sprintf("a rollback to %s can't be excluded", f.name(id))
		}
	}
	return ""
}

// notRolledBack says whether it is proved that since the base nobody rolled back to a snapshot: an object that its map
// has had marked all the time is clean in the newer one.
func (f *finder) notRolledBack(snapshot uint64) bool {
	newer, now := f.maps[f.newer.ID], f.maps[snapshot]
	if _, there := f.snapshot(snapshot); there && now == nil {
		return false
	}
	for _, m := range f.o.Base.Marks {
		if m.Snapshot == snapshot {
			return slices.ContainsFunc(m.Objects, func(object int64) bool {
				return isClean(newer, object) && (now == nil || isMarked(now, object))
			})
		}
	}
	return false
}

// headNotRolledBack says whether nobody has rolled back since the newer snapshot was made either.
func (f *finder) headNotRolledBack() bool {
	for _, m := range f.o.Base.Marks {
		if !slices.ContainsFunc(m.Objects, func(object int64) bool { return isClean(f.head, object) }) {
			return false
		}
	}
	return true
}

// beingRemoved says whether the newer map has objects that are: a shrink, or the first part of a rollback, is under way.
func (f *finder) beingRemoved() bool {
	m := f.maps[f.newer.ID]
	return m != nil && slices.ContainsFunc(m.Words, func(w uint64) bool { return beingRemoved(w) != 0 })
}

// quiet says whether it is proved by the newer map that no rollback was under way when its snapshot was made. While one
// is under way nobody else writes. So the head's map is still what it was replaced by, the map that the snapshot had then;
// or, if a snapshot was made since, it has no marks at all. Marks of a snapshot's map come, but never go, and what
// exists by it stays.
func (f *finder) quiet() bool {
	if f.damage != "" || f.newer.Flags != 0 {
		return false
	}
	newer := f.maps[f.newer.ID]
	for _, s := range f.snapshots {
		if s.ID == f.newer.ID {
			continue
		}
		m := f.maps[s.ID]
		if m == nil || s.Flags != 0 || !f.differs(newer, m) && !f.differsFromNoted(newer, s.ID) {
			return false
		}
	}
	return true
}

// differsFromNoted is differs for a snapshot's map as it was when the base was made, of which some marks were noted down.
// If no rollback was under way then, one that is has begun later, with these marks at least.
func (f *finder) differsFromNoted(m *rbd.ObjectMap, snapshot uint64) bool {
	return f.o.Base != nil && f.o.Base.Quiet && slices.ContainsFunc(f.o.Base.Marks, func(noted Marks) bool {
		return noted.Snapshot == snapshot && slices.ContainsFunc(noted.Objects, func(object int64) bool { return !isMarked(m, object) })
	})
}

// differs says whether a map can't have come from another, that of a snapshot, by a rollback: it marks an object that
// the other does not, or has other ones. Of a clone's snapshots the maps may have gained some since.
func (f *finder) differs(m, snapshot *rbd.ObjectMap) bool {
	if m.Objects != snapshot.Objects {
		return true
	}
	for i, w := range m.Words {
		s := snapshot.Words[i]
		if marked(w)&^marked(s) != 0 || existing(w)&^existing(s) != 0 || f.parent == nil && existing(w) != existing(s) {
			return true
		}
	}
	return false
}

// noneSinceBase says whether no snapshot was made since the base's.
func (f *finder) noneSinceBase() bool {
	return f.o.Base != nil && f.o.SnapSeq == f.o.Base.Snapshot.ID
}

// sameParent says whether two points of an image show the same part of the same parent.
func sameParent(a, b *rbd.Parent) bool {
	if a == nil || b == nil {
		return (a == nil || a.Overlap == 0) && (b == nil || b.Overlap == 0)
	}
	return a.PoolID == b.PoolID && a.Namespace == b.Namespace && a.ImageID == b.ImageID &&
		a.SnapshotID == b.SnapshotID && a.Overlap == b.Overlap
}
