package backup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/crashpoint"
	"github.com/rbd2qcow2/rbd2qcow2/internal/extent"
	"github.com/rbd2qcow2/rbd2qcow2/internal/glob"
	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

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

	unfinished   bool     // a restore to the image is
	trackingLied bool     // what the cluster says of changes was proved wrong
	settled      bool     // another snapshot was made for the sake of ours
	watchers     []string // who had the image open before our snapshot
	snapshotMade time.Time

	stale       bool // what was found may be old: something that takes its time was done since, or snapshots removed
	mayHoldLock bool // this run's client, the image's, when the run is over: see changed
}

// do carries the backup through; see the package documentation for its steps.
func (j *job) do(ctx context.Context) error {
	if j.ref.ID == "" && glob.IsPattern(j.ref.Name) {
		return fmt.Errorf("%w %q", ErrNothingMatched, j.ref.Name)
	}
	skip, err := j.skipped(ctx)
	if err != nil {
		return err
	}
	if j.unfinished {
		return j.unfinishedError()
	}
	if skip {
		j.report.Status, j.report.Reason = Skipped, "the image's metadata has "+skipKey
		return nil
	}
	if j.DryRun {
		return j.preview(ctx)
	}
	if err := j.folder.Create(); err != nil {
		return err
	}
	lock, err := j.folder.AwaitLock(ctx, repo.BackingUp, func(holder *repo.LockedError) {
		j.log.Info("waiting for another run", "reason", holder.Error())
	})
	if err != nil {
		return err
	}
	err = j.locked(ctx, lock)
	return errors.Join(err, lock.Unlock())
}

func (j *job) unfinishedError() error {
	return fmt.Errorf("image %s: a restore to it is not finished (\"rbd2qcow2 restore --resume\" goes on with it)", j.Pool.Spec(j.ref.Name))
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
	j.recover(ctx)
	if err := j.inspect(ctx); err != nil {
		return err
	}
	b, reason, err := j.chooseBase(ctx)
	if b != nil {
		defer b.chain.Close()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	if err := j.breakDeadLock(ctx, lock); err != nil {
		return err
	}
	client, err := j.recordClient(ctx, lock)
	if err != nil {
		return err
	}
	defer func() {
		if !j.mayHoldLock {
			lock.Forget(client)
		}
	}()
	j.removeStray(ctx)
	if j.stale {
		if err := j.inspect(ctx); err != nil {
			return err
		}
	}
	id := j.newIdentity(b, reason)
	if err := j.makeSnapshot(ctx, id); err != nil {
		return err
	}
	if err := j.makePoint(ctx, b, id); err != nil {
		return j.dropSnapshot(ctx, id, err)
	}
	j.report.Status = Done
	j.report.Points = []status.Point{status.Describe(j.folder.Point(id.Point))}
	j.removeOld(ctx, b, id)
	if b != nil {
		_ = b.chain.Close() // what this run reads is not pruned
	}
	j.prune(ctx)
	return nil
}

// recover completes what was cut short of removing points. Where it can't, they read right all the same.
func (j *job) recover(ctx context.Context) {
	done, err := j.folder.Recover(ctx)
	for _, what := range done {
		j.log.Info(what)
	}
	if err != nil {
		j.log.Warn("can't complete the removal of a point", "error", err)
	}
}

// open opens the image's head.
func (j *job) open(ctx context.Context) (*rbd.Image, error) {
	img, err := j.Pool.Open(ctx, j.ref.Name)
	if err != nil {
		return nil, err
	}
	if img.ID() != j.ref.ID {
		return nil, errors.Join(img.Close(),
			fmt.Errorf("image %s was renamed or made anew while the run began: its next run will do", j.Pool.Spec(j.ref.Name)))
	}
	return img, nil
}

// skipped says whether the image's owner wants no backups of it.
func (j *job) skipped(ctx context.Context) (skip bool, err error) {
	img, err := j.open(ctx)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	metadata, err := img.Metadata(ctx)
	_, skip = metadata[skipKey]
	_, j.unfinished = metadata[repo.UnfinishedKey]
	return skip, err
}

// inspect finds out what image and folder have. Under the lock that stays so: no other run changes either.
func (j *job) inspect(ctx context.Context) (err error) {
	img, err := j.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	if j.metadata, err = img.Metadata(ctx); err != nil {
		return err
	}
	if j.info, err = img.Info(ctx); err != nil {
		return err
	}
	if j.snapshots, err = img.Snapshots(ctx); err != nil {
		return err
	}
	if j.watchers, err = img.Watchers(ctx); err != nil {
		return err
	}
	j.newest, err = j.folder.Newest()
	return err
}

// makePoint reads what has changed and makes the point of it.
func (j *job) makePoint(ctx context.Context, b *base, id *repo.Identity) (err error) {
	src, err := j.Pool.OpenAt(ctx, j.ref.ID, id.Snapshot.Name)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := src.Close(); err == nil {
			err = closeErr
		}
	}()
	// It may have begun since the run has looked.
	if metadata, err := src.Metadata(ctx); err != nil {
		return err
	} else if _, unfinished := metadata[repo.UnfinishedKey]; unfinished {
		return j.unfinishedError()
	}
	if err := j.describeSnapshot(ctx, src, id); err != nil {
		return err
	}
	if err := j.settle(ctx, id); err != nil {
		return err
	}
	b, extents, err := j.findOrStartOver(ctx, src, b, id)
	if err != nil {
		return err
	}
	err = j.copyChanges(ctx, src, b, id, extents)
	if b == nil || !errors.As(err, new(*qcow2.CorruptError)) {
		return err
	}
	// What the base has is looked at where it matters, and only then is seen to be damaged.
	reason := fmt.Sprintf("chain of newest point %s can't be used: %v", b.point.Name, err)
	if extents, err = j.startOver(ctx, src, id, reason); err != nil {
		return err
	}
	return j.copyChanges(ctx, src, nil, id, extents)
}

// copyChanges copies what has changed since the base.
func (j *job) copyChanges(ctx context.Context, src *rbd.Image, b *base, id *repo.Identity, extents []extent.Extent) (err error) {
	if b, extents, err = j.distrust(ctx, src, b, id, extents); err != nil {
		return err
	}
	crashpoint.Reach(crashpoint.Diffed)
	data, _ := extent.Bytes(extents)
	j.task.Total(data)
	j.task.Phase("copy")
	return j.writePoint(ctx, src, b, id, extents)
}
