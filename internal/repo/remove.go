package repo

import (
	"errors"
	"fmt"
	"os"
)

// RemoveLeaf removes a point that no other one lies on, and says how many bytes were freed. The error is an *InUseError or a
// *PinnedError where that is the reason; the newest point is not removed either. The caller holds the folder's lock.
func (f *Folder) RemoveLeaf(name PointName) (freed int64, err error) {
	points, err := f.Points()
	if err != nil {
		return 0, err
	}
	if err := f.removable(points, name); err != nil {
		return 0, fmt.Errorf("remove point: %w", err)
	}
	above, err := children(points, name)
	if err != nil {
		return 0, fmt.Errorf("remove point %s: %w", f.Path(name), err)
	}
	if len(above) > 0 {
		return 0, fmt.Errorf("remove point %s: point %s lies on it", f.Path(name), above[0].Name)
	}
	lock, err := f.LockPoints(name)
	switch {
	case err == nil:
		defer lock.Close()
		freed = allocated(lock.File(name))
	case !hasNoLocks(err): // who reads a file that is unlinked reads on
		return 0, fmt.Errorf("remove point: %w", err)
	}
	if err := f.checkPin(name); err != nil { // again: who pins it from now on waits for the lock
		return 0, fmt.Errorf("remove point: %w", err)
	}
	return freed, f.unlink(name)
}

// removable says why a point must not be removed.
func (f *Folder) removable(points []*Point, name PointName) error {
	switch {
	case !f.has(name):
		return fmt.Errorf("there is no %s", f.Path(name))
	case points[len(points)-1].Name == name:
		return fmt.Errorf("%s is the newest one", f.Path(name))
	}
	return f.checkPin(name)
}

// children are the points that lie on one. Those that a later point might be one of, for all that can be read of it, are an
// error.
func children(points []*Point, name PointName) (above []*Point, err error) {
	for _, p := range points {
		if p.Header == nil && name.Time().Before(p.Name.Time()) {
			return nil, fmt.Errorf("point %s may lie on it, which can't be read: %w", p.Name, p.Err)
		}
		if p.Parent() == name {
			above = append(above, p)
		}
	}
	return above, nil
}

// unlink removes a point's file, for good. The file that it was folded into may have its data in memory only.
func (f *Folder) unlink(name PointName) error {
	points, err := f.Points()
	if err != nil {
		return err
	}
	for _, p := range points {
		if p.State == Damaged || p.Identity == nil || p.Identity.Folded == nil || p.Identity.Folded.Point != name {
			continue
		}
		if err := p.settleUnlocked(); err != nil {
			return fmt.Errorf("remove point: settle %s: %w", p.Path(), err)
		}
	}
	if err := os.Remove(f.Path(name)); err != nil {
		return fmt.Errorf("remove point: %w", err)
	}
	return SyncDir(f.Dir)
}

// settleUnlocked is settle for a file that somebody may be reading: it stays as it is.
func (p *Point) settleUnlocked() error {
	file, err := openWritable(p.Path())
	if err != nil {
		return err
	}
	return errors.Join(settle(file), file.Close())
}

// allocated is how much of the disk a file takes that goes with its last name, in bytes.
func allocated(file *os.File) int64 {
	var p Point
	if err := p.stat(file); err != nil || p.links > 1 {
		return 0
	}
	return p.DiskSize
}

// Confirm notes that a point which was copied has been compared with its digests: what a fold that was cut short has
// appended is cut off, and the mtime put right.
func (p *Point) Confirm() error {
	open := os.Open
	if p.excess() > 0 {
		open = openWritable
	}
	file, err := open(p.Path())
	if err != nil {
		return err
	}
	defer file.Close()
	if p.excess() > 0 {
		if err := p.cutExcess(file); err != nil {
			return err
		}
	}
	return setTime(file, p.Identity.Created)
}

func (p *Point) cutExcess(file *os.File) error {
	return errors.Join(file.Truncate(p.Header.Record.FileLength), file.Sync())
}
