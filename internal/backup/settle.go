package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// openingTime is how long a client may take, while it opens an image, from reading the list of snapshots to
// registering for notifications.
const openingTime = 100 * time.Millisecond

// settle sees to it that no client writes into our snapshot any more: one that was opening the image when it was made
// may not have heard of it. What it has taken from its user by the time that it does hear goes into our snapshot all the
// same, until it is asked for another one.
func (j *job) settle(ctx context.Context, id *repo.Identity) error {
	select {
	case <-time.After(time.Until(j.snapshotMade.Add(openingTime))):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	err := j.Pool.Refresh(ctx, j.ref.ID)
	if errors.Is(err, rbd.ErrTimeout) {
		err = j.Pool.Refresh(ctx, j.ref.ID)
	}
	if err != nil {
		j.warn("a client of the image has not answered: if it was opening the image at the moment of the snapshot, "+
			"what it writes may be in the point", err)
	}
	now, err := j.Pool.Watchers(ctx, j.ref.ID)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(now, func(w string) bool { return !slices.Contains(j.watchers, w) }) {
		return nil
	}
	return j.makeAnother(ctx, id, "a client has just opened the image")
}

// warn logs what makes a point doubtful, and reports it.
func (j *job) warn(what string, err error) {
	j.report.Warnings = append(j.report.Warnings, fmt.Sprintf("%s: %v", what, err))
	j.log.Warn(what, "error", err)
}

// settleRollback ends that a rollback, or a shrink, which is under way writes into our snapshot: it goes on with the
// snapshots that it knew when it began, until it is made to make another one. If nobody has the image open there is none.
func (j *job) settleRollback(ctx context.Context, id *repo.Identity) error {
	watchers, err := j.Pool.Watchers(ctx, j.ref.ID)
	if err != nil || len(watchers) == 0 {
		return err
	}
	return j.makeAnother(ctx, id, "a rollback may be under way")
}

// makeAnother makes another snapshot, once, and removes it.
func (j *job) makeAnother(ctx context.Context, id *repo.Identity, why string) (err error) {
	if j.settled {
		return nil
	}
	j.log.Debug("making another snapshot", "because", why)
	name := id.Snapshot.Name + "-settled" // with our prefix: should it stay behind, the next run removes it
	ctx, cancel := withGrace(ctx, snapshotGrace)
	defer cancel()
	if err = j.changed(j.Pool.CreateSnapshot(ctx, j.ref.ID, name)); errors.Is(err, rbd.ErrQuota) {
		j.warn("can't make another snapshot, though "+why+": the point may be wrong", err)
		return nil
	}
	if err == nil {
		j.settled = true
		j.removeSnapshot(ctx, name, "it has done its service")
	}
	return err
}
