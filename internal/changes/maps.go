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

// look reads what the cluster knows of the image: snapshots, parent, and object maps. What is wrong with a map is no
// error, but noted.
func (f *finder) look(ctx context.Context) (err error) {
	if f.snapshots, err = f.img.Snapshots(ctx); err != nil {
		return err
	}
	if f.parent, err = f.img.Parent(ctx); err != nil {
		return err
	}
	if err := f.lookAtNewer(ctx); err != nil {
		return err
	}
	if f.damage == "" && len(f.snapshots) <= maxMarkedSnapshots {
		if err := f.collectMarks(ctx); err != nil {
			return err
		}
	}
	return f.lookAtBase(ctx)
}

// lookAtNewer reads the newer snapshot's map.
func (f *finder) lookAtNewer(ctx context.Context) error {
	if err := f.findNewer(ctx); err != nil {
		f.damage, err = asDamage(err)
		return err
	}
	if !f.img.Features().Has(rbd.FeatureObjectMap) {
		f.damage, f.mapless = "the image has no object map", true
		return nil
	}
	m, err := f.objectMap(ctx, f.newer)
	if m != nil {
		f.maps[f.newer.ID] = m
	}
	f.damage, err = asDamage(err)
	f.mapless = f.damage != "" && f.newer.Flags&rbd.FlagObjectMapInvalid != 0
	return err
}

// lookAtBase reads the base's map, where that was not done already.
func (f *finder) lookAtBase(ctx context.Context) (err error) {
	if f.o.Base == nil {
		return nil
	}
	id := f.o.Base.Snapshot.ID
	if base, ok := f.snapshot(id); !ok {
		f.baseDamage = f.name(id) + " is gone"
	} else if f.maps[id] == nil {
		m, err := f.objectMap(ctx, base)
		if f.baseDamage, err = asDamage(err); err != nil {
			return err
		}
		if m != nil {
			f.maps[id] = m
		}
	}
	f.unprovable, err = f.compareExistence(ctx)
	return err
}

// collectMarks reads the maps of the older snapshots and notes down what the next search needs. Of a snapshot whose map
// is not to be trusted there is nothing to note.
func (f *finder) collectMarks(ctx context.Context) error {
	f.marks = []Marks{}
	for _, s := range f.snapshots {
		if f.newer.ID != 0 && s.ID > f.newer.ID || s.Flags != 0 {
			continue
		}
		m := f.maps[s.ID]
		if m == nil {
			var err error
			if m, err = f.objectMap(ctx, s); errors.As(err, new(damageError)) {
				continue
			} else if err != nil {
				return err
			}
			f.maps[s.ID] = m
		}
		marked := newObjectSet(m.Objects)
		marked.addMarked(m)
		f.marks = append(f.marks, Marks{Snapshot: s.ID, Objects: marked.sample(marksPerSnapshot)})
	}
	return nil
}

// lookAtHead reads the head's map as it has become since the snapshot, if it can be read. See the package documentation
// for what it is good for: without it the other maps are of no use.
func (f *finder) lookAtHead(ctx context.Context) (err error) {
	if f.newer.ID == 0 || f.damage != "" {
		return nil
	}
	f.head, err = f.img.ObjectMap(ctx, 0)
	f.damage, err = asDamage(mapDamage(err))
	return err
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
	if err != nil {
		return nil, mapDamage(err)
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

// damageError is what is wrong with a map: a reason not to use it, and no failure.
type damageError string

func (e damageError) Error() string { return string(e) }

// mapDamage tells errors that say something of a map from those of the cluster.
func mapDamage(err error) error {
	if errors.Is(err, rbd.ErrNotFound) || errors.Is(err, rbd.ErrDamaged) || errors.Is(err, rbd.ErrPermission) {
		return damageError(err.Error())
	}
	return err
}

// asDamage takes the damage out of an error.
func asDamage(err error) (damage string, other error) {
	var d damageError
	if errors.As(err, &d) {
		return string(d), nil
	}
	return "", err
}
