package changes

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
)

// proof gives the objects outside of which nothing can differ, and by what they are known; or nil and the reason why
// there is no proof. See the package documentation for why it is one. What the maps tell of their own state comes as
// a damageError.
func (f *finder) proof(ctx context.Context) (*objectSet, string, error) {
	if !f.img.Features().Has(rbd.FeatureObjectMap) {
		return nil, "the image has no object map", nil
	}
	b := f.o.Base
	if b != nil && b.Others == nil {
		return nil, "the newest point does not tell what snapshots the image had", nil
	}
	if f.size == 0 {
		return newObjectSet(0), "object maps", nil
	}
	var err error
	if f.snapshots, err = f.img.Snapshots(ctx); err != nil {
		return nil, "", err
	}
	parent, err := f.img.Parent(ctx)
	if err != nil {
		return nil, "", err
	}
	if err := f.findNewer(ctx); err != nil {
		return nil, "", err
	}
	newer, err := f.objectMap(ctx, f.newer)
	if err != nil {
		return nil, "", err
	}
	objects := newObjectSet(f.img.Objects(f.size))
	if b == nil {
		objects.addExisting(newer)
		if parent != nil {
			f.addBytes(objects, 0, min(parent.Overlap, f.size))
		}
		return objects, "object map", nil
	}
	return f.proofFrom(ctx, objects, parent, newer)
}

// proofFrom is proof where there is a base. It adds to objects.
func (f *finder) proofFrom(ctx context.Context, objects *objectSet, parent *rbd.Parent, newer *rbd.ObjectMap,
) (*objectSet, string, error) {
	b := f.o.Base
	if !sameParent(parent, b.Parent) {
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
	reason, err := f.addChanges(ctx, objects, base, newer)
	if err != nil {
		return nil, "", err
	}
	exist := newObjectSet(objects.objects)
	exist.addExisting(newer)
	if reason == "" {
		lie, err := f.spotCheck(ctx, objects, exist)
		if f.lied = lie != ""; f.lied {
			return nil, lie, err
		}
		return objects, "object maps", err
	}
	exist.addExisting(base)
	return exist, fmt.Sprintf("object maps, by existence alone since %s,", reason), nil
}

// addChanges adds the objects that have changed by the maps' account, or tells why that account may be incomplete,
// and adds nothing.
func (f *finder) addChanges(ctx context.Context, objects *objectSet, base, newer *rbd.ObjectMap) (reason string, err error) {
	b := f.o.Base
	switch {
	case !f.img.Features().Has(rbd.FeatureFastDiff):
		return "the image has no fast-diff", nil
	case b.Snapshot.Size != f.size:
		return "the image was resized", nil
	}
	if reason := f.olderSnapshot(); reason != "" {
		return reason, nil
	}
	between, reason := f.between()
	if reason != "" {
		return reason, nil
	}
	later := []*rbd.ObjectMap{newer}
	for _, s := range between {
		m, err := f.objectMap(ctx, s)
		if damage, ok := asDamage(err); ok {
			return damage, nil
		} else if err != nil {
			return "", err
		}
		later = append(later, m)
	}
	for _, m := range later {
		objects.addChanged(base, m)
	}
	if b.Previous != 0 {
		err = b.PreviousChanges(func(off, length int64) { f.addBytes(objects, off, length) })
	}
	return "", err
}

// olderSnapshot names a snapshot that one could have rolled back to.
func (f *finder) olderSnapshot() string {
	for _, id := range f.o.Base.Others {
		if id != f.o.Base.Previous {
			return fmt.Sprintf("there was %s beside the newest point's", f.name(id))
		}
	}
	return ""
}

// between gives the snapshots made since the base's that are still there, or tells why the account is incomplete.
func (f *finder) between() (between []rbd.Snapshot, reason string) {
	base := f.o.Base.Snapshot.ID
	for _, s := range append(slices.Clone(f.snapshots), f.newer) {
		switch {
		case s.ID < base && s != f.newer || f.newer.ID != 0 && s.ID > f.newer.ID:
			continue
		case s.Flags != 0:
			return nil, fmt.Sprintf("of %s the %s", f.name(s.ID), invalid(s.Flags))
		case s.Size != f.size:
			return nil, fmt.Sprintf("%s has another size", f.name(s.ID))
		case s.ID != base && s.ID != f.newer.ID:
			between = append(between, s)
		}
	}
	for _, s := range f.o.Before {
		if _, ok := f.snapshot(s.ID); s.ID > base && !ok {
			return nil, fmt.Sprintf("snapshot %d was removed while the new one was made", s.ID)
		}
	}
	return between, ""
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
		return nil, damageError(fmt.Sprintf("of %s the %s", f.name(s.ID), invalid(s.Flags)))
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

// invalid says what flags mean, as "rbd info" calls it.
func invalid(flags rbd.Flags) string {
	return strings.Replace(flags.String(), " invalid, ", " and ", 1)
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
