package verify

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// Run verifies points, those first that have waited longest for it. What it finds is in the report. The error is for what concerns all:
// nothing matched, or ctx has ended.
func Run(ctx context.Context, r *repo.Repository, o Options) (*Report, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	w := &work{Options: o, report: &Report{Images: []ImageReport{}}, tasks: map[int]progress.Task{}}
	if o.MaxTime > 0 {
		w.deadline = time.Now().Add(o.MaxTime)
	}
	if err := w.selectPoints(r); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	o.Progress.Images(len(w.report.Images))
	defer w.endTasks()
	slices.SortStableFunc(w.jobs, func(a, b *job) int { return a.last().Compare(b.last()) })
	for _, j := range w.jobs {
		if ctx.Err() != nil {
			return w.report, context.Cause(ctx)
		}
		if w.timeIsUp() {
			j.report().Status = Pending
			continue
		}
		j.run(ctx)
	}
	if ctx.Err() != nil {
		return w.report, context.Cause(ctx)
	}
	return w.report, nil
}

// work is one call of Run.
type work struct {
	Options
	deadline time.Time // zero: none
	jobs     []*job
	report   *Report
	tasks    map[int]progress.Task // of the images that have begun
}

func (w *work) timeIsUp() bool { return !w.deadline.IsZero() && time.Now().After(w.deadline) }

// selectPoints makes a job for each point that was asked for, once, and a place in the report.
func (w *work) selectPoints(r *repo.Repository) error {
	targets := w.Targets
	if len(targets) == 0 {
		targets = []string{"*"}
	}
	images := map[string]*selection{}
	var folders []*selection
	for _, target := range targets {
		pattern, point := repo.SplitTarget(target)
		picked, _, err := r.Select([]string{pattern})
		if err != nil && len(w.Targets) > 0 {
			return err
		}
		for _, image := range picked {
			s := images[image.Name]
			if s == nil {
				if s, err = newSelection(image); err != nil {
					return err
				}
				images[image.Name] = s
				folders = append(folders, s)
			}
			if err := s.want(point); err != nil {
				return err
			}
		}
	}
	slices.SortFunc(folders, func(a, b *selection) int { return cmp.Compare(a.image.Name, b.image.Name) })
	for _, s := range folders {
		w.addImage(s)
	}
	return nil
}

// selection is what is verified of an image.
type selection struct {
	image  repo.ImageFolder
	points []*repo.Point // all of them, the oldest first
	wanted map[repo.PointName]bool
}

func newSelection(image repo.ImageFolder) (*selection, error) {
	points, err := image.Points()
	return &selection{image, points, map[repo.PointName]bool{}}, err
}

// want adds a point and all below it; "" adds all.
func (s *selection) want(point repo.PointName) error {
	if point == "" {
		for _, p := range s.points {
			s.wanted[p.Name] = true
		}
		return nil
	}
	found := false
	for _, p := range slices.Backward(s.points) {
		if p.Name == point {
			s.wanted[p.Name], found = true, true
			point = p.Parent()
		}
	}
	if !found {
		return fmt.Errorf("there is no %s", s.image.Path(point))
	}
	return nil
}

func (w *work) addImage(s *selection) {
	noted := s.image.Verified(s.points)
	image := ImageReport{Name: s.image.Image, Folder: s.image.Name, Points: []PointReport{}}
	for _, p := range s.points {
		isNewest := p == s.points[len(s.points)-1]
		if !s.wanted[p.Name] || !p.Created().After(w.NewerThan) || w.Source != nil && !isNewest {
			continue
		}
		image.Points = append(image.Points, PointReport{Point: p.Name})
		w.jobs = append(w.jobs, &job{
			work: w, image: len(w.report.Images), index: len(image.Points) - 1, selection: s, point: p, noted: noted[p.Name],
		})
	}
	w.report.Images = append(w.report.Images, image)
}

// task gives the progress of an image, which begins with the first call.
func (w *work) task(image int) progress.Task {
	if w.tasks[image] == nil {
		w.tasks[image] = w.Progress.Start(w.report.Images[image].Name)
		w.tasks[image].Phase("verify")
	}
	return w.tasks[image]
}

func (w *work) endTasks() {
	for _, t := range w.tasks {
		t.End()
	}
}
