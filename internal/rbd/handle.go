package rbd

import (
	"context"
	"errors"
	"sync"
	"time"
)

// closeGrace is how long Close waits for calls that still run: seconds, so that
// an interrupted program ends soon, even if the cluster is down.
const closeGrace = 2 * time.Second

// handle counts the users of one C object: its owner, the C calls running on
// it, and the handles of objects made from it. The object is freed when the
// last of them leaves, so never under a call that was abandoned.
type handle struct {
	parent   *handle
	watchdog time.Duration // bound of one call on this object
	free     func() error  // blocks in C

	mu     sync.Mutex
	users  int
	closed bool

	freed   chan struct{} // closed after free has returned
	freeErr error         // valid once freed is closed
}

// newHandle takes a reference on parent, which may be nil.
func newHandle(parent *handle, watchdog time.Duration, free func() error) (*handle, error) {
	if parent != nil && !parent.acquire() {
		return nil, ErrClosed
	}
	return &handle{parent: parent, watchdog: watchdog, free: free, users: 1, freed: make(chan struct{})}, nil
}

func (h *handle) acquire() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.users++
	return true
}

func (h *handle) release() {
	h.mu.Lock()
	h.users--
	last := h.users == 0
	h.mu.Unlock()
	if !last {
		return
	}
	h.freeErr = h.free()
	close(h.freed)
	if h.parent != nil {
		h.parent.release()
	}
}

// closeAll gives up the owner's reference of each handle and waits until the
// objects are freed, in all at most closeGrace. A second close does nothing.
func closeAll(handles ...*handle) error {
	var closing []*handle
	for _, h := range handles {
		h.mu.Lock()
		if !h.closed {
			h.closed = true
			closing = append(closing, h)
			go h.release()
		}
		h.mu.Unlock()
	}
	timer := time.NewTimer(closeGrace)
	defer timer.Stop()
	var errs []error
	for _, h := range closing {
		select {
		case <-h.freed:
			errs = append(errs, h.freeErr)
		case <-timer.C:
			return errors.Join(append(errs, ErrAbandoned)...)
		}
	}
	return errors.Join(errs...)
}

// call runs f, which blocks in C, and returns its result, or an error matching
// ErrAbandoned as soon as ctx ends or h's watchdog fires. In that case f is
// still running; what it returns in the end goes to late, if that is not nil.
func call[T any](ctx context.Context, h *handle, f func() (T, error), late func(T)) (T, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, h.watchdog, errWatchdog)
	defer cancel()
	return callUnwatched(ctx, h, f, late)
}

// callUnwatched is call without the watchdog, for what takes longer the larger
// an image is. A cluster that is down must end such a call by other means.
func callUnwatched[T any](ctx context.Context, h *handle, f func() (T, error), late func(T)) (T, error) {
	var none T
	if ctx.Err() != nil {
		return none, context.Cause(ctx)
	}
	if !h.acquire() {
		return none, ErrClosed
	}
	type result struct {
		value T
		err   error
	}
	results, gone := make(chan result), make(chan struct{})
	go func() {
		defer h.release()
		value, err := f()
		select {
		case results <- result{value, err}:
		case <-gone:
			if err == nil && late != nil {
				late(value)
			}
		}
	}()
	select {
	case r := <-results:
		return r.value, r.err
	case <-ctx.Done():
		close(gone)
		return none, abandoned(ctx)
	}
}

// runner is do or doUnwatched.
type runner func(ctx context.Context, h *handle, f func() error) error

// do is call for functions without a result.
func do(ctx context.Context, h *handle, f func() error) error {
	_, err := call(ctx, h, func() (struct{}, error) { return struct{}{}, f() }, nil)
	return err
}

// doUnwatched is callUnwatched for functions without a result.
func doUnwatched(ctx context.Context, h *handle, f func() error) error {
	_, err := callUnwatched(ctx, h, func() (struct{}, error) { return struct{}{}, f() }, nil)
	return err
}
