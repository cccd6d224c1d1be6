package prune

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/glob"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// ErrNothingMatched says that no image of the repository was asked for.
var ErrNothingMatched = errors.New("no image matches")

// image is a folder that has points, and the name of its image.
type image struct {
	name   string
	folder *repo.Folder
}

// Run prunes the images that the options name, one after the other. One that fails does not stop the others: its error is in
// the report. The error returned is for what concerns them all: nothing matched, or ctx has ended.
func Run(ctx context.Context, r *repo.Repository, o Options) (*Report, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	images, unmatched, err := selectImages(r, o.Images)
	if err != nil {
		return nil, err
	}
	report := &Report{Images: []ImageReport{}}
	for _, pattern := range unmatched {
		failed := ImageReport{Name: pattern, Points: []PointReport{}}
		failed.fail(fmt.Errorf("%w %q", ErrNothingMatched, pattern))
		failed.Log(o.Logger.With("image", pattern))
		report.Images = append(report.Images, failed)
	}
	o.Progress.Images(len(images))
	for _, image := range images {
		if ctx.Err() != nil {
			return report, context.Cause(ctx)
		}
		report.Images = append(report.Images, image.prune(ctx, o))
	}
	if ctx.Err() != nil {
		return report, context.Cause(ctx)
	}
	return report, nil
}

// selectImages picks the images that have points and were asked for, by their names or those of their folders, in the order
// of the folders, and gives the patterns that match nothing. If none does at all, that is an error.
func selectImages(r *repo.Repository, patterns []string) (picked []image, unmatched []string, err error) {
	folders, err := r.Folders()
	if err != nil {
		return nil, nil, err
	}
	found := map[string]bool{}
	for _, f := range folders {
		if newest, err := f.Newest(); err != nil {
			return nil, nil, err
		} else if newest == nil {
			continue
		}
		i := image{r.ImageName(f), f}
		wanted := len(patterns) == 0
		for _, p := range patterns {
			if glob.Match(p, i.name) || p == f.Name {
				wanted, found[p] = true, true
			}
		}
		if wanted {
			picked = append(picked, i)
		}
	}
	for _, p := range patterns {
		if !found[p] {
			found[p] = true // names it once
			unmatched = append(unmatched, p)
		}
	}
	if len(picked) == 0 && len(patterns) > 0 {
		return nil, nil, fmt.Errorf("prune %s: %w %q", r.Dir, ErrNothingMatched, patterns)
	}
	return picked, unmatched, nil
}

// prune prunes one image, and reports whatever happens.
func (i image) prune(ctx context.Context, o Options) (report ImageReport) {
	task := o.Progress.Start(i.name)
	job := Job{
		Name: i.name, Folder: i.folder, Program: o.Program, Policy: o.Policy, Now: o.Now, DryRun: o.DryRun,
		Logger: o.Logger.With("image", i.name), Task: task,
	}
	defer func() {
		task.End()
		report.Log(job.Logger)
	}()
	since, gone, err := i.folder.Gone()
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
