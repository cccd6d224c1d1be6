package repair

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/verify"
)

// Options say what is mended.
type Options struct {
	Images   []string // shell patterns; none: all
	Parallel int      // goroutines that read and hash
	// Source opens the snapshot that a point was made from, or says that it is gone. It is asked again when all is read, as one
	// that is removed meanwhile reads as zeroes. nil: only what can be mended without is.
	Source   func(ctx context.Context, p *repo.Point) (verify.Source, error)
	Logger   *slog.Logger
	Progress progress.Reporter
}

// Run mends the chains of the newest points of images. What it has found and done is in the report. The error is for what
// concerns all: nothing matched, or ctx has ended.
func Run(ctx context.Context, r *repo.Repository, o Options) (*Report, error) {
	if o.Parallel < 1 {
		return nil, errors.New("parallel: must be at least 1")
	}
	images, unmatched, err := r.Select(o.Images)
	if err != nil {
		return nil, fmt.Errorf("repair: %w", err)
	}
	report := &Report{Images: []ImageReport{}}
	for _, pattern := range unmatched {
		report.Images = append(report.Images, ImageReport{
			Name: pattern, Damages: []Damage{}, Replaced: []repo.PointName{}, Error: repo.ErrNothingMatched.Error(),
		})
	}
	o.Progress.Images(len(images))
	for _, image := range images {
		if ctx.Err() != nil {
			break
		}
		j := job{Options: &o, folder: image.Folder, log: o.Logger.With("image", image.Image), task: o.Progress.Start(image.Image)}
		j.report = ImageReport{Name: image.Image, Folder: image.Name, Damages: []Damage{}, Replaced: []repo.PointName{}}
		if err := j.lockAndRun(ctx); err != nil {
			j.report.Error = err.Error()
		}
		j.task.End()
		report.Images = append(report.Images, j.report)
	}
	if ctx.Err() != nil {
		return report, context.Cause(ctx)
	}
	return report, nil
}

// lockAndRun keeps other runs from changing the folder meanwhile.
func (j *job) lockAndRun(ctx context.Context) error {
	if err := j.folder.Create(); err != nil { // a folder of the Python tool has no place for a lock
		return err
	}
	lock, err := j.folder.AwaitLock(ctx, repo.BackingUp, func(holder *repo.LockedError) {
		j.log.Info("waiting for another run", "reason", holder.Error())
	})
	if err != nil {
		return err
	}
	err = j.locked(ctx)
	return errors.Join(err, lock.Unlock())
}

// locked is what is done under the folder's lock.
func (j *job) locked(ctx context.Context) error {
	if _, err := j.folder.RemoveDeadTemporaries(); err != nil {
		return fmt.Errorf("remove leftovers: %w", err)
	}
	done, err := j.folder.Recover(ctx)
	for _, what := range done {
		j.log.Info(what)
	}
	if err != nil {
		return err
	}
	return j.run(ctx)
}
