package backup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/crashpoint"
	"github.com/rbd2qcow2/rbd2qcow2/internal/extent"
	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

// Clean-up goes on after a run was told to end, for as long as this at most.
const (
	snapshotGrace = time.Second     // for a snapshot that is being made
	cleanupGrace  = 5 * time.Second // for one that has to go
)

// deadLockWait bounds the wait for the cluster to notice that a killed run is dead: by default that takes 30 seconds.
const deadLockWait = 2 * time.Minute

// skipKey is the key in an image's metadata that keeps it from being backed up, as in the Python tool.
const skipKey = "backup-skip"

// job is the backup of one image.
type job struct {
	*run
	ref    rbd.ImageRef
	folder *repo.Folder
	task   progress.Task
	log    *slog.Logger
	report ImageReport

	// What was found before our snapshot was made.
	newest    *repo.Point // nil: none
	info      rbd.Info
	snapshots []rbd.Snapshot
	metadata  map[string]string

	abandoned bool // a change of snapshots that librbd is still busy with
}

// do carries the backup through; see the package documentation for its steps.
func (j *job) do(ctx context.Context) error {
	if err := j.inspect(ctx); err != nil {
		return err
	}
	if _, skip := j.metadata[skipKey]; skip {
		j.report.Status, j.report.Reason = Skipped, "the image's metadata has "+skipKey
		return nil
	}
	if j.DryRun {
		return j.preview(ctx)
	}
	if err := j.folder.Create(); err != nil {
		return err
	}
	lock, err := j.folder.Lock()
	if err != nil {
		return err
	}
	err = j.locked(ctx, lock)
	return errors.Join(err, lock.Unlock())
}

// locked is what is done under the folder's lock.
func (j *job) locked(ctx context.Context, lock *repo.Lock) error {
	crashpoint.Reach(crashpoint.Locked)
	removed, err := j.folder.RemoveDeadTemporaries()
	if err != nil {
		return fmt.Errorf("remove leftovers: %w", err)
	}
	for _, name := range removed {
		j.log.Info("removed a temporary file of a killed run", "file", name)
	}
	// Only now: a run that held the lock may have changed both.
	if err := j.inspect(ctx); err != nil {
		return err
	}
	b, reason := j.chooseBase(ctx)
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if b != nil {
		defer b.chain.Close()
	}
	if err := j.breakDeadLock(ctx, lock); err != nil {
		return err
	}
	client, err := j.recordClient(ctx, lock)
	if err != nil {
		return err
	}
	defer func() {
		if !j.abandoned {
			lock.Forget(client)
		}
	}()
	j.removeStray(ctx)

	id := j.newIdentity(b, reason)
	if err := j.makeSnapshot(ctx, id); err != nil {
		return err
	}
	if err := j.makePoint(ctx, b, id); err != nil {
		j.dropSnapshot(ctx, id)
		return err
	}
	j.report.Status = Done
	j.report.Points = []status.Point{status.Describe(j.folder.Point(id.Point))}
	j.removeOld(ctx, b, id)
	return nil
}

// inspect finds out what image and folder have.
func (j *job) inspect(ctx context.Context) (err error) {
	img, err := j.Pool.Open(ctx, j.ref.Name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	if img.ID() != j.ref.ID {
		return fmt.Errorf("image %s was renamed or made anew while the run began: its next run will do", j.Pool.Spec(j.ref.Name))
	}
	if j.metadata, err = img.Metadata(ctx); err != nil {
		return err
	}
	if j.info, err = img.Info(ctx); err != nil {
		return err
	}
	if j.snapshots, err = img.Snapshots(ctx); err != nil {
		return err
	}
	j.newest, err = j.folder.Newest()
	return err
}

// breakDeadLock frees the image from the lock that a killed run of ours has left in the cluster.
func (j *job) breakDeadLock(ctx context.Context, lock *repo.Lock) error {
	dead := lock.DeadClients()
	if len(dead) == 0 {
		return nil
	}
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

// removeStray removes snapshots that killed runs have left. What can't be removed is in nobody's way.
func (j *job) removeStray(ctx context.Context) {
	keep := ""
	if j.newest != nil {
		keep = j.Repo.SnapshotName(j.newest.Name)
	}
	for _, name := range j.ownSnapshots(keep) {
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
	if err := j.Pool.CreateSnapshot(ctx, j.ref.ID, id.Snapshot.Name); err != nil {
		j.abandoned = j.abandoned || errors.Is(err, rbd.ErrAbandoned)
		// It may exist all the same, or come to exist.
		j.dropSnapshot(ctx, id)
		return err
	}
	crashpoint.Reach(crashpoint.SnapshotMade)
	return nil
}

// makePoint reads what has changed and makes the point of it.
func (j *job) makePoint(ctx context.Context, b *base, id *repo.Identity) (err error) {
	src, err := j.Pool.OpenAt(ctx, j.ref.ID, id.Snapshot.Name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	if err := j.describeSnapshot(ctx, src, id); err != nil {
		return err
	}
	j.task.Phase("diff")
	extents, err := j.changes(ctx, src, b, id)
	if err != nil {
		return err
	}
	crashpoint.Reach(crashpoint.Diffed)
	data, _ := extent.Bytes(extents)
	j.task.Total(data)
	j.task.Phase("copy")
	return j.writePoint(ctx, src, b, id, extents)
}

// dropSnapshot removes our new snapshot again, also when the run has been told to end, unless its point exists.
func (j *job) dropSnapshot(ctx context.Context, id *repo.Identity) {
	if p := j.folder.Point(id.Point); p.Identity != nil && p.Identity.PointID == id.PointID {
		return
	}
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), cleanupGrace,
		fmt.Errorf("no answer within %v", cleanupGrace))
	defer cancel()
	if _, err := j.Pool.SnapshotID(ctx, j.ref.ID, id.Snapshot.Name); errors.Is(err, rbd.ErrNotFound) {
		return // so who may make none is not told that it can't be removed either
	}
	j.removeSnapshot(ctx, id.Snapshot.Name, "its point was not made")
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
	j.abandoned = j.abandoned || errors.Is(err, rbd.ErrAbandoned)
	switch {
	case err == nil:
		j.log.Debug("removed snapshot", "snapshot", name, "because", why)
	case !errors.Is(err, rbd.ErrNotFound):
		j.report.Warnings = append(j.report.Warnings, err.Error())
		j.log.Warn("can't remove snapshot, the next run will try again", "snapshot", name, "error", err)
	}
}
