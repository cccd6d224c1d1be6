package live

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
)

const (
	// deadWatch is for how long the cluster takes a client that has crashed for alive (osd_client_watch_timeout), and some more.
	deadWatch = 40 * time.Second
	abortPoll = time.Second
)

// Abort removes the image of a restore that was interrupted, and all that its users have written. The server is not needed.
// Errors match rbd.ErrBusy where a client has the image open; one that has crashed is waited for.
func Abort(ctx context.Context, r Request) (err error) {
	j, err := openJournal(r.journalPath())
	if err != nil {
		return r.fail(err)
	}
	defer func() { err = errors.Join(err, j.close()) }()
	ref, err := r.find(ctx, j)
	if errors.Is(err, rbd.ErrNotFound) {
		return j.remove()
	}
	if err != nil {
		return err
	}
	r.Progress.Phase("abort")
	err = r.whileBusy(ctx, func() error { return r.Pool.AbortMigration(ctx, r.Image) })
	if errors.Is(err, rbd.ErrNotMigrating) {
		if j.entry.ImageID == "" {
			return r.fail(errNotOurs)
		}
		err = r.whileBusy(ctx, func() error { return r.Pool.RemoveImage(ctx, ref.ID) })
	}
	if err != nil {
		return err
	}
	return j.remove()
}

// whileBusy tries again for as long as a dead client may be in the way.
func (r *Request) whileBusy(ctx context.Context, remove func() error) error {
	start, said := time.Now(), false
	for {
		err := remove()
		if !errors.Is(err, rbd.ErrBusy) {
			return err
		}
		if time.Since(start) > deadWatch {
			return fmt.Errorf("%w: a client has it open: stop what uses it (\"rbd status %s\" may tell)", err, r.Pool.Spec(r.Image))
		}
		if !said {
			r.Logger.Info("a client has the image open, or was killed less than half a minute ago: waiting", "image", r.Pool.Spec(r.Image),
				"at_most", deadWatch)
			said = true
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(abortPoll):
		}
	}
}
