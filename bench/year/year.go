package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd2qcow2/rbd2qcow2/internal/prune"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// state is what a point has to read as.
type state struct {
	day      version
	versions []version
	sum      uint64
}

// year is the simulation and what it has found.
type year struct {
	o               options
	dir             string
	disk            *disk
	pruned, control *history
	states          map[repo.PointName]state // of the points that there are to be, in pruned
	all             map[repo.PointName]state // of the points of control: without versions
	rows            []row
	folds           []fold
}

// row is what a day gave. Sizes are in bytes.
type row struct {
	day       version
	points    int   // left
	removed   int   // points, on that day
	changed   int64 // of the disk
	increment int64 // allocated by the new point
	written   int64 // by folds
	freed     int64 // by folds
	allocated int64 // by all points
	live      int64 // of that, data that can be read
	prune     cost
	restore   cost // of the newest point
	sample    *sample
}

// sample is what is looked at now and then.
type sample struct {
	freshAllocated, freshLive int64 // of the same points, made afresh
	points                    int   // without pruning, and so the following
	allocated                 int64
	restore                   cost
}

// fold is one removal of a point.
type fold struct {
	day            version
	point          repo.PointName
	method         prune.Method
	written, freed int64
	pointLive      int64 // data of the point, and of the one above it, before the day's removals
	childLive      int64
}

// increment is how much less there is to be moved at least: the data of the smaller one of the two points.
func (f *fold) increment() int64 { return min(f.pointLive, f.childLive) }

// cost is what something took, in seconds.
type cost struct{ elapsed, cpu float64 }

// timed measures what do costs this process.
func timed(do func() error) (c cost, err error) {
	runtime.GC()
	cpu, start := cpuTime(), time.Now()
	err = do()
	return cost{time.Since(start).Seconds(), cpuTime() - cpu}, err
}

// cpuTime is how much processor time this process has taken, in seconds.
func cpuTime() float64 {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u) // which has no reason to fail
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

func newYear(o options, dir string) (y *year, err error) {
	y = &year{o: o, dir: dir, states: map[repo.PointName]state{}, all: map[repo.PointName]state{}}
	if y.pruned, err = newHistory(filepath.Join(dir, "pruned"), o); err != nil {
		return nil, err
	}
	if y.control, err = newHistory(filepath.Join(dir, "control"), o); err != nil {
		return nil, err
	}
	y.disk = newDisk(o.size, o.seed)
	return y, nil
}

func (y *year) run(ctx context.Context) error {
	for day := version(1); day <= version(y.o.days); day++ {
		r, err := y.oneDay(ctx, day)
		if err != nil {
			return fmt.Errorf("day %d: %w", day, err)
		}
		if last := int(day) == y.o.days; last || int(day)%y.o.sample == 0 {
			if r.sample, err = y.look(ctx, last); err != nil {
				return fmt.Errorf("day %d: %w", day, err)
			}
			say("day %3d  %2d points  %6.1f MiB written by folds  prune %5.2f s  restore %5.2f s  %4d MiB on disk", day, r.points,
				inMiB(r.written), r.prune.elapsed, r.restore.elapsed, r.allocated/mib)
		}
		y.rows = append(y.rows, r)
	}
	return nil
}

// oneDay changes the disk, backs it up, prunes, and restores.
func (y *year) oneDay(ctx context.Context, day version) (r row, err error) {
	r.day = day
	if day > 1 {
		r.changed = y.disk.change(day)
	}
	for _, h := range []*history{y.pruned, y.control} {
		if err := h.add(y.disk.versions, day, day-1); err != nil {
			return r, err
		}
	}
	name := pointOf(day)
	y.states[name] = state{day, slices.Clone(y.disk.versions), y.disk.sum}
	y.all[name] = state{day: day, sum: y.disk.sum}
	r.increment = y.pruned.Point(name).DiskSize
	if err := y.prune(ctx, &r); err != nil {
		return r, err
	}
	if r.allocated, err = y.pruned.allocated(); err != nil {
		return r, err
	}
	if r.live, err = y.pruned.live(); err != nil {
		return r, err
	}
	r.restore, err = timed(func() error { return y.pruned.restoreTo(ctx, name, discard{}) })
	return r, err
}

// prune removes what the rules do not keep.
func (y *year) prune(ctx context.Context, r *row) error {
	points, err := y.pruned.Points()
	if err != nil {
		return err
	}
	live := make([]int64, len(points))
	for i, p := range points {
		if live[i], err = liveData(p); err != nil {
			return err
		}
	}
	var report *prune.ImageReport
	r.prune, err = timed(func() error {
		report, err = y.pruned.prune(ctx, r.day)
		return err
	})
	if err != nil {
		return err
	}
	r.points, r.removed, r.written, r.freed = report.Kept, report.Removed, report.Written, report.Freed
	for i, p := range report.Points {
		if p.Action == prune.Remove {
			y.folds = append(y.folds, fold{r.day, p.Point, p.Method, p.Written, p.Freed, live[i], live[i+1]})
			delete(y.states, p.Point)
		}
	}
	return nil
}

// look verifies all points, and measures what it is to be compared with.
func (y *year) look(ctx context.Context, last bool) (*sample, error) {
	if err := y.pruned.verify(ctx, y.states, last); err != nil {
		return nil, err
	}
	if last && len(y.all) < 2*y.o.sample { // each by way of all below it: that is for short tries
		if err := y.control.verify(ctx, y.all, false); err != nil {
			return nil, err
		}
	}
	fresh, err := y.pruned.afresh(y.dir, y.states)
	if err != nil {
		return nil, err
	}
	s := &sample{points: len(y.all)}
	if s.freshAllocated, err = fresh.allocated(); err != nil {
		return nil, err
	}
	if s.freshLive, err = fresh.live(); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(fresh.repository.Dir); err != nil {
		return nil, err
	}
	if s.allocated, err = y.control.allocated(); err != nil {
		return nil, err
	}
	newest, err := y.control.Newest()
	if err != nil {
		return nil, err
	}
	s.restore, err = timed(func() error { return y.control.restoreTo(ctx, newest.Name, discard{}) })
	return s, err
}
