package rbdtarget

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/changes"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
)

// open opens an image that nobody else has open, and keeps others from writing to it where the image has the feature for that.
// After a restore that was killed the cluster takes its client for alive for a while: for that of a marked image open waits.
func open(ctx context.Context, pool *rbd.Pool, ref rbd.ImageRef, marked bool, log *slog.Logger) (*Target, error) {
	w, err := pool.OpenWriter(ctx, ref.ID)
	if err != nil {
		return nil, err
	}
	wait := time.Duration(0)
	if marked {
		wait = deadClientWait
	}
	err = awaitUnused(ctx, w, wait, log)
	t := &Target{writer: w, log: log}
	if err == nil {
		t.locked, err = w.Lock(ctx)
	}
	if err == nil && t.locked { // whoever came before the lock
		err = awaitUnused(ctx, w, 0, log)
	}
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return t, nil
}

// openExisting is open for images that may hold data.
func openExisting(ctx context.Context, pool *rbd.Pool, ref rbd.ImageRef, marked bool, log *slog.Logger) (*Target, error) {
	t, err := open(ctx, pool, ref, marked, log)
	if err != nil {
		return nil, err
	}
	if err := checkSeen(ctx, pool, ref); err != nil {
		return nil, errors.Join(err, t.Abort())
	}
	return t, nil
}

// checkSeen refuses an image that has data which librbd does not see now, and might later: nothing would write over them.
func checkSeen(ctx context.Context, pool *rbd.Pool, ref rbd.ImageRef) error {
	img, err := pool.OpenAt(ctx, ref.ID, "")
	if err != nil {
		return err
	}
	object, err := changes.Unseen(ctx, img, 0, nil)
	if err = errors.Join(err, img.Close()); err == nil && object >= 0 {
		spec := pool.Spec(ref.Name)
		err = refused("restore to %s: its object map lacks objects that are there, such as number %d; repair it first: rbd object-map rebuild %s",
			spec, object, spec)
	}
	return err
}

// deadClientWait is longer than osd_client_watch_timeout, which is 30 seconds by default.
const deadClientWait = 40 * time.Second

// awaitUnused waits until no other client has the image open.
func awaitUnused(ctx context.Context, w *rbd.Writer, wait time.Duration, log *slog.Logger) error {
	deadline := time.Now().Add(wait)
	for first := true; ; first = false {
		others, err := w.OtherWatchers(ctx)
		switch {
		case err != nil || len(others) == 0:
			return err
		case time.Now().After(deadline):
			return refused("restore to %s: it is in use, by %s: stop what uses it", w, strings.Join(others, ", "))
		case first:
			log.Info("waiting for a client that has the image open; it may be one that was killed", "client", strings.Join(others, ", "))
		}
		select {
		case <-time.After(time.Second / 2):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// RefusedError says why an image is not restored to: as it is, it stays.
type RefusedError struct{ err error }

func (e *RefusedError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *RefusedError) Unwrap() error { return e.err }

func refused(format string, args ...any) error { return &RefusedError{fmt.Errorf(format, args...)} }

// refuse says why an image is not restored to.
func refuse(ctx context.Context, pool *rbd.Pool, ref rbd.ImageRef) error {
	m, err := Unfinished(ctx, pool, ref.ID)
	if err != nil {
		return err
	}
	if m != nil {
		return refused("restore to %s: it is unfinished, from a restore of %s that began at %s: --resume goes on, --overwrite starts over",
			pool.Spec(ref.Name), m.Point, m.Started.Local().Format(time.DateTime))
	}
	return refused("restore to %s: it %w: --overwrite replaces all that it holds, --in-place writes what differs",
		pool.Spec(ref.Name), rbd.ErrExists)
}

// checkAlone finds those who could have written meanwhile. They may have gone again: then nothing tells.
func (t *Target) checkAlone(ctx context.Context) error {
	if t.locked {
		return nil
	}
	others, err := t.writer.OtherWatchers(ctx)
	if err == nil && len(others) > 0 {
		err = fmt.Errorf("restore to %s: meanwhile %s opened it for writing, which may have changed what was restored: stop what uses it",
			t.writer, strings.Join(others, ", "))
	}
	return err
}
