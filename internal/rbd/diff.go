package rbd

import (
	"context"
	"errors"
	"fmt"
	"sync"

	librbd "github.com/ceph/go-ceph/rbd"
)

// Extent is a changed range of an image, in bytes. Exists tells data from a
// hole, which reads as zeros.
type Extent struct {
	Offset int64
	Length int64
	Exists bool
}

// diffObjects is how many objects one call of librbd covers: enough to keep its
// ten operations in flight busy, few enough that an abandoned call ends soon.
const diffObjects = 1024

// Diff calls fn for each range inside [off, off+length) that differs between
// the snapshot from (of the user namespace, by name) and the point that the
// image is open at, in ascending order. With an empty from, it reports all that
// exists, in parents too (rbd_diff_iterate2, precise, not by whole objects).
//
// Some of what is reported as data may be zero or unchanged; nothing that
// changed is left out. Diff ends with fn's error if it returns one. fn is never
// called after Diff has returned; it should watch ctx itself if it may block.
// Errors match ErrNotFound if from does not exist. Several may run at once.
func (i *Image) Diff(ctx context.Context, from string, off, length int64, fn func(Extent) error) error {
	if from == "" {
		return fail("list data of", i.spec, i.diff(ctx, "", librbd.IncludeParent, off, length, fn))
	}
	return fail("find changes", fmt.Sprintf("from %s to %s", from, i.spec), i.diff(ctx, from, librbd.ExcludeParent, off, length, fn))
}

// OwnData is Diff with an empty from, but for what exists in parents alone.
func (i *Image) OwnData(ctx context.Context, off, length int64, fn func(Extent) error) error {
	return fail("list data of", i.spec, i.diff(ctx, "", librbd.ExcludeParent, off, length, fn))
}

func (i *Image) diff(ctx context.Context, from string, parents librbd.DiffIncludeParent, off, length int64,
	fn func(Extent) error,
) error {
	err := errors.Join(i.checkRange(off, length), checkName(from))
	step := i.diffStep()
	for end := off + length; err == nil && off < end; {
		next := min(end, off/step*step+step)
		err = i.diffRange(ctx, from, parents, off, next, fn)
		off = next
	}
	return err
}

// diffStep returns the distance of borders that cut neither objects nor stripes.
func (i *Image) diffStep() int64 {
	if i.stripeCount > maxSize/diffObjects/i.objectSize {
		return maxSize
	}
	return i.Period() * max(1, diffObjects/i.stripeCount)
}

// diffRange is one call of librbd. The range must not be empty, which could
// abort the process in librbd.
func (i *Image) diffRange(ctx context.Context, from string, parents librbd.DiffIncludeParent, off, end int64,
	fn func(Extent) error,
) error {
	w := &extentWalk{next: off, end: end, fn: fn}
	err := do(ctx, i.handle, func() error {
		return i.image.DiffIterate(librbd.DiffIterateConfig{
			SnapName:      from,
			Offset:        uint64(off),
			Length:        uint64(end - off),
			IncludeParent: parents,
			WholeObject:   librbd.DisableWholeObject,
			Callback:      w.callback,
		})
	})
	if own := w.stop(); own != nil {
		return own
	}
	return err
}

// extentWalk hands librbd's extents to fn until it is stopped.
type extentWalk struct {
	mu      sync.Mutex
	next    int64 // extents before it were seen
	end     int64
	fn      func(Extent) error
	err     error
	stopped bool
}

// abortDiff is any negative number: librbd ends the iteration with it.
const abortDiff = -125 // ECANCELED

// callback is called from C and must not panic.
func (w *extentWalk) callback(off, length uint64, exists int, _ any) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped || w.err != nil {
		return abortDiff
	}
	if w.err = w.visit(off, length, exists != 0); w.err != nil {
		return abortDiff
	}
	return 0
}

func (w *extentWalk) visit(off, length uint64, exists bool) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: panic: %v", errCallback, p)
		}
	}()
	if off < uint64(w.next) || off > uint64(w.end) || length > uint64(w.end)-off {
		return fmt.Errorf("librbd reported %d+%d out of order or outside [%d, %d)", off, length, w.next, w.end)
	}
	w.next = int64(off + length)
	return w.fn(Extent{Offset: int64(off), Length: int64(length), Exists: exists})
}

// stop lets fn never be called again and returns the first error that is ours.
func (w *extentWalk) stop() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	return w.err
}
