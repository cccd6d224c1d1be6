package backup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// openingTime is how long a client may take, while it opens an image, from reading the list of snapshots to
// registering for notifications.
const openingTime = 100 * time.Millisecond

// settle sees to it that no client writes into our snapshot any more: one that was opening the image when it was made
// may not have heard of it.
func (j *job) settle(ctx context.Context) {
	select {
	case <-time.After(time.Until(j.snapshotMade.Add(openingTime))):
	case <-ctx.Done():
		return
	}
	err := j.Pool.Refresh(ctx, j.ref.ID)
	if errors.Is(err, rbd.ErrTimeout) {
		err = j.Pool.Refresh(ctx, j.ref.ID)
	}
	if err != nil {
		j.warn("a client of the image has not answered: if it was opening the image at the moment of the snapshot, "+
			"what it writes may be in the point", err)
	}
}

// warn logs what makes a point doubtful, and reports it.
func (j *job) warn(what string, err error) {
	j.report.Warnings = append(j.report.Warnings, fmt.Sprintf("%s: %v", what, err))
	j.log.Warn(what, "error", err)
}

// settleRollback ends that a rollback, or a shrink, which is under way writes into our snapshot: it goes on with the
// snapshots that it knew when it began, until it is made to make another one. If nobody has the image open there is none.
func (j *job) settleRollback(ctx context.Context, id *repo.Identity) (err error) {
	open, err := j.Pool.HasWatchers(ctx, j.ref.ID)
	if err != nil || !open || j.settled {
		return err
	}
	j.log.Debug("making another snapshot, in case a rollback is under way")
	name := id.Snapshot.Name + "-settled" // with our prefix: should it stay behind, the next run removes it
	ctx, cancel := withGrace(ctx, snapshotGrace)
	defer cancel()
	if err = j.Pool.CreateSnapshot(ctx, j.ref.ID, name); errors.Is(err, rbd.ErrQuota) {
		j.warn("can't make another snapshot: if a rollback is under way, the point may be wrong", err)
		return nil
	}
	j.abandoned = j.abandoned || errors.Is(err, rbd.ErrAbandoned)
	if err == nil {
		j.settled = true
		j.removeSnapshot(ctx, name, "it has done its service")
	}
	return err
}
