package changes

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
)

const (
	maxMarkedSnapshots = 64 // whose maps are read to note down marks: with more, what they cost is more than they save
	marksPerSnapshot   = 64
)

// proof gives the objects outside of which nothing can differ, and by what they are known; or nil and the reason why
// there is no proof. See the package documentation for why it is one. What is wrong with a map comes as a damageError.
func (f *finder) proof(ctx context.Context) (*objectSet, string, error) {
	if !f.img.Features().Has(rbd.FeatureObjectMap) {
		return nil, "the image has no object map", nil
	}
	var err error
	if f.snapshots, err = f.img.Snapshots(ctx); err != nil {
		return nil, "", err
	}
	if err := f.findNewer(ctx); err != nil {
		return nil, "", err
	}
	newer, err := f.objectMap(ctx, f.newer)
	if err != nil {
		return nil, "", err
	}
	if err := f.collectMarks(ctx, newer); err != nil {
		return nil, "", err
	}
	parent, err := f.img.Parent(ctx)
	if err != nil {
		return nil, "", err
	}
	if f.o.Base != nil {
		return f.proofFrom(ctx, parent, newer)
	}
	objects := newObjectSet(newer.Objects)
	objects.addExisting(newer)
	if parent != nil {
		f.addBytes(objects, 0, min(parent.Overlap, f.size))
	}
	return objects, "object map", nil
}

// proofFrom is proof where there is a base.
func (f *finder) proofFrom(ctx context.Context, parent *rbd.Parent, newer *rbd.ObjectMap) (*objectSet, string, error) {
	b := f.o.Base
	switch {
	case b.Others == nil:
		return nil, "the newest point does not tell what snapshots the image had", nil
	case !sameParent(parent, b.Parent):
		return nil, "the image was resized or flattened, so that another part of its parent shows through", nil
	}
	older, ok := f.snapshot(b.Snapshot.ID)
	if !ok {
		return nil, f.name(b.Snapshot.ID) + " is gone", nil
	}
	base, err := f.objectMap(ctx, older)
	if err != nil {
		return nil, "", err
	}
	existing := newObjectSet(newer.Objects)
	existing.addExisting(newer)
	if doubt := f.doubt(older, newer); doubt != "" {
		existing.addExisting(base)
		return existing, fmt.Sprintf("object maps, by existence alone since %s,", doubt), nil
	}
	changed := newObjectSet(newer.Objects)
	changed.addChanged(base, newer)
	lie, err := f.spotCheck(ctx, changed, existing)
	if f.lied = lie != ""; f.lied {
		return nil, lie, err
	}
	return changed, "object maps", err
}

// doubt says why the marks of the newer map may not be all that was written since the base, "" if they are.
func (f *finder) doubt(base rbd.Snapshot, newer *rbd.ObjectMap) string {
	switch {
	case !f.img.Features().Has(rbd.FeatureFastDiff):
		return "the image has no fast-diff"
	case base.Size != f.size:
		return "the image was resized"
	case base.Flags != 0:
		return f.invalid(base)
	case f.newer.Flags != 0:
		return f.invalid(f.newer)
	case f.o.SnapSeq != base.ID:
		return "another snapshot was made after the newest point's"
	}
	for _, s := range f.snapshots {
		if s.ID > base.ID && (f.newer.ID == 0 || s.ID < f.newer.ID) {
			return fmt.Sprintf("%s was made after the newest point's", f.name(s.ID))
		}
	}
	for _, id := range append(slices.Clone(f.o.Base.Others), base.ID) {
		if !f.notRolledBack(id, newer) {
			return fmt.Sprintf("a rollback to %s can't be excluded", f.name(id))
		}
	}
	return ""
}

// notRolledBack says whether it is proved that since the base nobody rolled back to a snapshot.
func (f *finder) notRolledBack(snapshot uint64, newer *rbd.ObjectMap) bool {
	for _, m := range f.o.Base.Marks {
		if m.Snapshot == snapshot {
			return slices.ContainsFunc(m.Objects, func(object int64) bool { return isClean(newer, object) })
		}
	}
	return false
}

// collectMarks notes down what the next search needs. Of a snapshot whose map can't be read there is nothing to note.
func (f *finder) collectMarks(ctx context.Context, newer *rbd.ObjectMap) error {
	if f.newer.ID == 0 || len(f.snapshots) > maxMarkedSnapshots {
		return nil
	}
	for _, s := range f.snapshots {
		m := newer
		if s.ID > f.newer.ID {
			continue
		} else if s.ID < f.newer.ID {
			var err error
			if m, err = f.objectMap(ctx, s); errors.As(err, new(damageError)) {
				continue
			} else if err != nil {
				return err
			}
		}
		marked := newObjectSet(m.Objects)
		marked.addMarked(m)
		f.marks = append(f.marks, Marks{Snapshot: s.ID, Objects: marked.sample(marksPerSnapshot)})
	}
	return nil
}

// findNewer describes the snapshot, or head, that the image is open at.
func (f *finder) findNewer(ctx context.Context) error {
	if f.o.Snapshot == 0 {
		info, err := f.img.Info(ctx)
		f.newer = rbd.Snapshot{Size: f.size, Flags: info.Flags}
		return err
	}
	var ok bool
	if f.newer, ok = f.snapshot(f.o.Snapshot); !ok {
		return damageError(f.name(f.o.Snapshot) + " is gone")
	}
	return nil
}

func (f *finder) snapshot(id uint64) (rbd.Snapshot, bool) {
	i := slices.IndexFunc(f.snapshots, func(s rbd.Snapshot) bool { return s.ID == id })
	if i < 0 {
		return rbd.Snapshot{}, false
	}
	return f.snapshots[i], true
}

// objectMap reads a map and refuses one that is known to be wrong.
func (f *finder) objectMap(ctx context.Context, s rbd.Snapshot) (*rbd.ObjectMap, error) {
	if s.Flags&rbd.FlagObjectMapInvalid != 0 {
		return nil, damageError(f.invalid(s))
	}
	m, err := f.img.ObjectMap(ctx, s.ID)
	if errors.Is(err, rbd.ErrNotFound) || errors.Is(err, rbd.ErrDamaged) || errors.Is(err, rbd.ErrPermission) {
		return nil, damageError(err.Error())
	} else if err != nil {
		return nil, err
	}
	if want := f.img.Objects(s.Size); m.Objects != want {
		return nil, damageError(fmt.Sprintf("the object map of %s is of %d objects, the image of %d", f.name(s.ID), m.Objects, want))
	}
	return m, nil
}

// name names a snapshot for people.
func (f *finder) name(id uint64) string {
	if id == 0 {
		return "the image"
	}
	s, ok := f.snapshot(id)
	if !ok {
		return fmt.Sprintf("snapshot %d", id)
	}
	return fmt.Sprintf("snapshot %d (%s)", id, s.Name)
}

// invalid says what the flags of a snapshot mean, as "rbd info" calls it, and what helps.
func (f *finder) invalid(s rbd.Snapshot) string {
	target, _, _ := strings.Cut(f.img.String(), "@")
	if s.ID != 0 {
		target += "@" + s.Name
	}
	return fmt.Sprintf("of %s the %s (\"rbd object-map rebuild %s\" helps)", f.name(s.ID),
		strings.Replace(s.Flags.String(), " invalid, ", " and ", 1), target)
}

// sameParent says whether two points of an image show the same part of the same parent.
func sameParent(a, b *rbd.Parent) bool {
	if a == nil || b == nil {
		return (a == nil || a.Overlap == 0) && (b == nil || b.Overlap == 0)
	}
	return a.PoolID == b.PoolID && a.Namespace == b.Namespace && a.ImageID == b.ImageID &&
		a.SnapshotID == b.SnapshotID && a.Overlap == b.Overlap
}

// damageError is what is wrong with a map: a reason not to use it, and no failure.
type damageError string

func (e damageError) Error() string { return string(e) }

func asDamage(err error) (string, bool) {
	var damage damageError
	return string(damage), errors.As(err, &damage)
}
