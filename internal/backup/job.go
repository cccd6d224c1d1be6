package backup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/crashpoint"
	"github.com/rbd2qcow2/rbd2qcow2/internal/extent"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

// Clean-up goes on after a run was told to end, for as long as this at most.
const (
	snapshotGrace = time.Second     // for a snapshot that is being made
	cleanupGrace  = 5 * time.Second // for one that has to go
)

// skipKey is the key in an image's metadata that keeps it from being backed up, as in the Python tool.
const skipKey = "backup-skip"

// job is the backup of one image.
type job struct {
	*run
	ref    rbd.ImageRef
	folder *repo.Folder
	task   Task
	log    *slog.Logger
	report ImageReport

	// What was found before our snapshot was made.
	newest    *repo.Point // nil: none
	info      rbd.Info
	snapshots []rbd.Snapshot
	metadata  map[string]string
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
	j.removeStray(ctx)

	id := j.newIdentity(b, reason)
	if err := j.makeSnapshot(ctx, lock, id); err != nil {
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
	broke, err := j.Pool.BreakDeadLock(ctx, j.ref.ID, func(client string) bool { return slices.Contains(dead, client) })
	if broke {
		j.log.Info("freed the image from the lock of a killed run")
	}
	return err
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
}

// makeSnapshot makes our snapshot and completes the identity by it.
func (j *job) makeSnapshot(ctx context.Context, lock *repo.Lock, id *repo.Identity) error {
	j.task.Phase("snapshot")
	ctx, cancel := withGrace(ctx, snapshotGrace)
	defer cancel()
	client, err := j.Cluster.SnapshotClient(ctx)
	if err != nil {
		return err
	}
	if err := lock.AddClient(client); err != nil {
		return err
	}
	id.Created = time.Now().UTC().Truncate(time.Microsecond)
	if err := j.Pool.CreateSnapshot(ctx, j.ref.ID, id.Snapshot.Name); err != nil {
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
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupGrace)
	defer cancel()
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
	err := j.Pool.RemoveSnapshot(ctx, j.ref.ID, name)
	switch {
	case err == nil:
		j.log.Debug("removed snapshot", "snapshot", name, "because", why)
	case !errors.Is(err, rbd.ErrNotFound):
		j.report.Warnings = append(j.report.Warnings, err.Error())
		j.log.Warn("can't remove snapshot, the next run will try again", "snapshot", name, "error", err)
	}
}
