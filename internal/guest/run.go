package guest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/verify"
)

// Run tries points, one after the other. What comes of it is in the report. The error is for what concerns all: nothing matched,
// a program is not installed, or ctx has ended.
func Run(ctx context.Context, r *repo.Repository, o Options) (*verify.Report, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	for _, name := range o.programs() {
		if _, err := lookUp(name); err != nil {
			return nil, fmt.Errorf("try points: %w", err)
		}
	}
	images, err := selectPoints(r, o.Targets)
	if err != nil {
		return nil, fmt.Errorf("try points: %w", err)
	}
	report := &verify.Report{Images: []verify.ImageReport{}}
	for _, image := range images {
		report.Images = append(report.Images, image.report())
	}
	o.Progress.Images(len(images))
	for i, image := range images {
		task := o.Progress.Start(image.Image)
		for j := range report.Images[i].Points {
			o.try(ctx, image.Folder, &report.Images[i].Points[j], task)
		}
		task.End()
		if ctx.Err() != nil {
			return report, context.Cause(ctx)
		}
	}
	return report, nil
}

// selection is what is tried of an image.
type selection struct {
	repo.ImageFolder
	points map[repo.PointName]bool
}

func (s *selection) report() verify.ImageReport {
	image := verify.ImageReport{Name: s.Image, Folder: s.Name, Points: []verify.PointReport{}}
	for name := range s.points {
		image.Points = append(image.Points, verify.PointReport{Point: name, Status: verify.Pending})
	}
	slices.SortFunc(image.Points, func(a, b verify.PointReport) int { return a.Point.Time().Compare(b.Point.Time()) })
	return image
}

// selectPoints finds the points that were asked for, by image.
func selectPoints(r *repo.Repository, targets []string) ([]*selection, error) {
	if len(targets) == 0 {
		targets = []string{"*"}
	}
	images := map[string]*selection{}
	for _, target := range targets {
		pattern, point := repo.SplitTarget(target)
		picked, _, err := r.Select([]string{pattern})
		if err != nil {
			return nil, err
		}
		for _, image := range picked {
			s := images[image.Name]
			if s == nil {
				s = &selection{image, map[repo.PointName]bool{}}
				images[image.Name] = s
			}
			if err := s.want(point); err != nil {
				return nil, err
			}
		}
	}
	list := make([]*selection, 0, len(images))
	for _, s := range images {
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b *selection) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

// want adds a point; "" adds the newest.
func (s *selection) want(point repo.PointName) error {
	points, err := s.Points()
	if err != nil {
		return err
	}
	i := len(points) - 1
	if point != "" {
		i = slices.IndexFunc(points, func(p *repo.Point) bool { return p.Name == point })
	}
	if i < 0 {
		return fmt.Errorf("there is no %s", s.Path(point))
	}
	s.points[points[i].Name] = true
	return nil
}

// try tries a point. It stays pending where ctx ends.
func (o *Options) try(ctx context.Context, f *repo.Folder, r *verify.PointReport, task progress.Task) {
	start := time.Now()
	err := o.tryOpen(ctx, f, r, task)
	if ctx.Err() != nil {
		return
	}
	r.Status, r.Seconds = verify.Tried, time.Since(start).Seconds()
	if err != nil {
		r.Status, r.Error = verify.Failed, err.Error()
	}
}

func (o *Options) tryOpen(ctx context.Context, f *repo.Folder, r *verify.PointReport, task progress.Task) error {
	// QEMU's own locks keep folds away, too, but begin one file after the other, and end with each program.
	chain, err := f.OpenChain(ctx, r.Point)
	switch {
	case err == nil:
		defer chain.Close()
	case ctx.Err() != nil || isPassing(err):
		return err
	default:
		o.fail(r, err)
		return nil
	}
	log := o.Logger.With("image", f.Name, "point", r.Point)
	timed := func(what string, trial func(context.Context, string) (*verify.Trial, error)) (*verify.Trial, error) {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		task.Phase(what)
		start := time.Now()
		t, err := trial(ctx, f.Path(r.Point))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		t.Seconds = time.Since(start).Seconds()
		log.Info("tried", "what", what, "result", t.Status, "seconds", math.Round(t.Seconds*10)/10)
		return t, nil
	}
	if o.Boot != nil {
		if r.Boot, err = timed("boot", o.Boot.boot); err != nil {
			return err
		}
	}
	if o.Fsck != nil {
		if r.Fsck, err = timed("fsck", o.Fsck.fsck); err != nil {
			return err
		}
	}
	return nil
}

// isPassing says whether an error is no fault of the point's files.
func isPassing(err error) bool {
	return slices.ContainsFunc([]error{fs.ErrPermission, unix.EAGAIN, unix.EMFILE, unix.ENFILE, unix.ENOMEM},
		func(passing error) bool { return errors.Is(err, passing) })
}

// fail is for a point that can't even be opened.
func (o *Options) fail(r *verify.PointReport, err error) {
	failed := verify.Trial{Status: verify.TrialFailed, Message: err.Error()}
	if o.Boot != nil {
		boot := failed
		r.Boot = &boot
	}
	if o.Fsck != nil {
		r.Fsck = &failed
	}
}
