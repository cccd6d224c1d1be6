package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/crashpoint"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// Clean-up goes on after a run was told to end, for as long as this at most.
const (
	snapshotGrace = time.Second     // for a snapshot that is being made
	cleanupGrace  = 3 * time.Second // for one that has to go
)

// deadLockWait bounds the wait for the cluster to notice that a killed run is dead: by default that takes 30 seconds.
const deadLockWait = 2 * time.Minute

// breakDeadLock frees the image from the lock that a killed run of ours has left in the cluster.
func (j *job) breakDeadLock(ctx context.Context, lock *repo.Lock) error {
	dead := lock.DeadClients()
	if len(dead) == 0 {
		return nil
	}
	j.stale = true
	ctx, cancel := context.WithTimeout(ctx, deadLockWait)
	defer cancel()
	var once sync.Once
	broke, err := j.Pool.BreakDeadLock(ctx, j.ref.ID, func(client string) bool {
		if !slices.Contains(dead, client) {
			return false
		}
		once.Do(func() { j.log.Info("the image is locked by a killed run: waiting for the cluster to notice its end") })
		return true
	})
	if broke {
		j.log.Info("freed the image from the lock of a killed run")
	}
	if err == nil {
		lock.Forget(dead...)
	}
	return err
}

// recordClient notes in the folder's lock which client this run changes snapshots by, before the first change: with
// it, librbd takes the image's lock, and this run may be killed.
func (j *job) recordClient(ctx context.Context, lock *repo.Lock) (string, error) {
	client, err := j.Cluster.SnapshotClient(ctx)
	if err != nil {
		return "", err
	}
	if err := lock.AddClient(client); err != nil {
		return "", err
	}
	crashpoint.Reach(crashpoint.ClientRecorded)
	return client, nil
}

// changed notes how a change of snapshots has ended. After an error this run's client may be left with the image's lock: librbd is
// still busy, say, or the cluster has blocklisted the client. Then the next run has to look after it.
func (j *job) changed(err error) error {
	j.mayHoldLock = j.mayHoldLock || err != nil
	return err
}

// removeStray removes snapshots that killed runs have left. What can't be removed is in nobody's way.
func (j *job) removeStray(ctx context.Context) {
	keep := ""
	if j.newest != nil {
		keep = j.Repo.SnapshotName(j.newest.Name)
	}
	strays := j.ownSnapshots(keep)
	if len(strays) > 0 {
		j.stale = true
		j.task.Phase("clean-up")
	}
	for _, name := range strays {
		j.removeSnapshot(ctx, name, "left by a killed run")
	}
	for _, s := range j.snapshots {
		if s.Kind == rbd.TrashSnapshot && strings.HasPrefix(s.TrashedName, j.Repo.SnapshotPrefix()) {
			err := j.Pool.RemoveTrashedSnapshot(ctx, j.ref.ID, s)
			if errors.Is(err, rbd.ErrBusy) {
				continue // in the trash for the sake of a clone
			}
			j.snapshotRemoved(s.TrashedName, "its removal was cut short", err)
		}
	}
}

// makeSnapshot makes our snapshot and completes the identity by it.
func (j *job) makeSnapshot(ctx context.Context, id *repo.Identity) error {
	j.task.Phase("snapshot")
	ctx, cancel := withGrace(ctx, snapshotGrace)
	defer cancel()
	id.Created = time.Now().UTC().Truncate(time.Microsecond)
	if err := j.changed(j.Pool.CreateSnapshot(ctx, j.ref.ID, id.Snapshot.Name)); err != nil {
		if errors.Is(err, rbd.ErrExists) {
			return err // and is not ours to remove
		}
		return j.dropSnapshot(ctx, id, err) // it may exist all the same, or come to exist
	}
	j.snapshotMade = time.Now()
	crashpoint.Reach(crashpoint.SnapshotMade)
	return nil
}

// dropSnapshot removes our new snapshot again, also when the run has been told to end, unless its point exists. It
// gives the failure that was the cause, with the name of a snapshot that had to stay.
func (j *job) dropSnapshot(ctx context.Context, id *repo.Identity, failure error) error {
	if p := j.folder.Point(id.Point); p.Identity != nil && p.Identity.PointID == id.PointID {
		return failure
	}
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), cleanupGrace,
		fmt.Errorf("no answer within %v", cleanupGrace))
	defer cancel()
	if _, err := j.Pool.SnapshotID(ctx, j.ref.ID, id.Snapshot.Name); errors.Is(err, rbd.ErrNotFound) {
		return failure // so who may make none is not told that it can't be removed either
	}
	err := j.changed(j.Pool.RemoveSnapshot(ctx, j.ref.ID, id.Snapshot.Name))
	if err != nil && !errors.Is(err, rbd.ErrNotFound) {
		return fmt.Errorf("%w; snapshot %s could not be removed, the next run will do so", failure, id.Snapshot.Name)
	}
	return failure
}

// removeOld removes what the new point has made superfluous.
func (j *job) removeOld(ctx context.Context, b *base, id *repo.Identity) {
	ctx, cancel := withGrace(ctx, cleanupGrace)
	defer cancel()
	for _, name := range slices.Concat(j.ownSnapshots(id.Snapshot.Name), j.staleForeignSnapshots(b)) {
		j.removeSnapshot(ctx, name, "superseded")
	}
	crashpoint.Reach(crashpoint.SnapshotRemoved)
}

// removeSnapshot removes a snapshot. Where that fails it is named; the next run tries again.
func (j *job) removeSnapshot(ctx context.Context, name, why string) {
	j.snapshotRemoved(name, why, j.Pool.RemoveSnapshot(ctx, j.ref.ID, name))
}

func (j *job) snapshotRemoved(name, why string, err error) {
	switch err = j.changed(err); {
	case err == nil:
		j.log.Debug("removed snapshot", "snapshot", name, "because", why)
	case !errors.Is(err, rbd.ErrNotFound):
		j.report.Warnings = append(j.report.Warnings, err.Error())
		j.log.Warn("can't remove snapshot, the next run will try again", "snapshot", name, "error", err)
	}
}
