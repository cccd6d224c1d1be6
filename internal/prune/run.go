package prune

import (
	"context"
	"fmt"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// Run prunes the images that the options name, one after the other. One that fails does not stop the others: its error is in
// the report. The error returned is for what concerns them all: nothing matched, or ctx has ended.
func Run(ctx context.Context, r *repo.Repository, o Options) (*Report, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	images, unmatched, err := r.Select(o.Images)
	if err != nil {
		return nil, fmt.Errorf("prune: %w", err)
	}
	report := &Report{Images: []ImageReport{}}
	for _, pattern := range unmatched {
		failed := ImageReport{Name: pattern, Points: []PointReport{}}
		failed.fail(fmt.Errorf("%w %q", repo.ErrNothingMatched, pattern))
		failed.Log(o.Logger.With("image", pattern))
		report.Images = append(report.Images, failed)
	}
	o.Progress.Images(len(images))
	for _, image := range images {
		if ctx.Err() != nil {
			return report, context.Cause(ctx)
		}
		report.Images = append(report.Images, pruneImage(ctx, image, o))
	}
	if ctx.Err() != nil {
		return report, context.Cause(ctx)
	}
	return report, nil
}

// pruneImage prunes one image, and reports whatever happens.
func pruneImage(ctx context.Context, i repo.ImageFolder, o Options) (report ImageReport) {
	task := o.Progress.Start(i.Image)
	job := Job{
		Name: i.Image, Folder: i.Folder, Program: o.Program, Policy: o.Policy, Now: o.Now, DryRun: o.DryRun,
		Logger: o.Logger.With("image", i.Image), Task: task,
	}
	defer func() {
		task.End()
		report.Log(job.Logger)
	}()
	since, gone, err := i.Gone()
	switch {
	case err != nil:
		return job.failed(err)
	case gone && !o.Gone:
		report = job.newReport()
		report.Status = Skipped
		report.Reason = fmt.Sprintf("the image is gone from its pool, as noticed at %s; --gone prunes it all the same",
			since.Local().Format(time.DateTime))
		return report
	case o.DryRun:
		if pending := i.PendingRemoval(); pending != "" {
			job.Logger.Warn("the removal of a point was cut short, or is under way: a run completes it before all else", "point", pending)
		}
		return job.Run(ctx)
	}
	return job.lockAndRun(ctx)
}

// lockAndRun does what Run leaves to its caller.
func (j *Job) lockAndRun(ctx context.Context) (report ImageReport) {
	if err := j.Folder.Create(); err != nil { // a folder of the Python tool has no place for a lock
		return j.failed(err)
	}
	lock, err := j.Folder.AwaitLock(ctx, repo.Pruning, func(holder *repo.LockedError) {
		j.Logger.Info("waiting for another run", "reason", holder.Error())
	})
	if err != nil {
		return j.failed(err)
	}
	defer func() {
		if err := lock.Unlock(); err != nil && report.Err == nil {
			report.fail(err)
		}
	}()
	removed, err := j.Folder.RemoveDeadTemporaries()
	if err != nil {
		return j.failed(fmt.Errorf("remove leftovers: %w", err))
	}
	for _, name := range removed {
		j.Logger.Info("removed a temporary file of a killed run", "file", name)
	}
	done, err := j.Folder.Recover(ctx)
	for _, what := range done {
		j.Logger.Info(what)
	}
	if err != nil {
		return j.failed(fmt.Errorf("complete the removal of a point: %w", err))
	}
	return j.Run(ctx)
}
