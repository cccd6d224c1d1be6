package prune

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/retention"
)

// Job is the pruning of one image.
type Job struct {
	Name    string // of the image
	Folder  *repo.Folder
	Program string // name and version, for the identities of points of the Python tool
	Policy  retention.Policy
	Now     time.Time // its location is that of hours, days and so on
	DryRun  bool
	Logger  *slog.Logger // with the image's name
	Task    progress.Task
}

// Run prunes the image. Unless it is a dry run the caller holds the folder's lock and has completed what was left half done
// (repo.Folder.Recover).
func (j *Job) Run(ctx context.Context) ImageReport {
	start := time.Now()
	w := &work{
		Job: j, report: j.newReport(),
		parent: map[repo.PointName]repo.PointName{}, broken: map[repo.PointName]string{}, moved: map[repo.PointName]int64{},
	}
	defer w.close()
	err := w.run(ctx)
	if ctx.Err() != nil && err != nil && !errors.Is(err, context.Cause(ctx)) {
		err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	if err != nil {
		w.report.fail(err)
	}
	w.report.Seconds = time.Since(start).Seconds()
	return w.report
}

func (j *Job) newReport() ImageReport {
	return ImageReport{Name: j.Name, Folder: j.Folder.Name, Points: []PointReport{}}
}

func (j *Job) failed(err error) ImageReport {
	report := j.newReport()
	report.fail(err)
	return report
}

// work is one call of Run.
type work struct {
	*Job
	points []*repo.Point                     // the oldest first, as they were
	parent map[repo.PointName]repo.PointName // of those that are there
	chains []*repo.Chain                     // of all points, as far as they can be read
	broken map[repo.PointName]string         // why the others can't be
	moved  map[repo.PointName]int64          // in a dry run: bytes that came into a point from below
	report ImageReport
}

func (w *work) run(ctx context.Context) error {
	if err := w.plan(ctx); err != nil {
		return err
	}
	if w.DryRun {
		w.report.Status = Planned
		return w.inOrder(ctx, w.estimate)
	}
	w.close() // nobody else may read what is folded, and that goes for this program too
	w.report.Status = Done
	if err := w.inOrder(ctx, w.remove); err != nil {
		return err
	}
	return w.outcome()
}

// outcome sets the status by what has become of the points, and gives an error where some could not be removed.
func (w *work) outcome() error {
	failed, first := 0, ""
	for i := range w.report.Points {
		switch p := &w.report.Points[i]; {
		case p.InUse:
			w.report.Status = Partly
		case p.Error != "":
			failed, first = failed+1, cmp.Or(first, p.Error)
		}
	}
	switch failed {
	case 0:
		return nil
	case 1:
		return errors.New(first)
	}
	return fmt.Errorf("%d points could not be removed, the first: %s", failed, first)
}

// step does something to a point that is to go; child is what lies on it, "" for nothing. gone says that the point is no more, for
// what lies on it and what is below. An error ends the run.
type step func(ctx context.Context, p *PointReport, child repo.PointName) (gone bool, err error)

// inOrder does something to each point that is to go: first to those that nothing lies on, the newest first, then to the
// others, the oldest first.
func (w *work) inOrder(ctx context.Context, do step) error {
	var toGo, others []*PointReport
	for i := range w.report.Points {
		if p := &w.report.Points[i]; p.Action == Remove {
			toGo = append(toGo, p)
		}
	}
	w.Task.Phase("prune")
	done := 0
	next := func(p *PointReport, child repo.PointName) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		gone, err := do(ctx, p, child)
		if gone {
			w.bridge(p.Point)
		}
		done++
		w.Task.Advance(int64(done), int64(len(toGo)))
		return err
	}
	for _, p := range slices.Backward(toGo) {
		if len(w.children(p.Point)) > 0 {
			others = append(others, p)
		} else if err := next(p, ""); err != nil {
			return err
		}
	}
	for _, p := range slices.Backward(others) {
		child, err := w.childToFold(p.Point)
		if err != nil {
			w.fail(p, err)
		} else if err := next(p, child); err != nil {
			return err
		}
	}
	return nil
}

// childToFold gives the one point that lies on another one, or an error where that can't be folded.
func (w *work) childToFold(of repo.PointName) (repo.PointName, error) {
	children := w.children(of)
	if len(children) > 1 {
		return "", fmt.Errorf("point %s: %d points lie on it (%s, %s), and it can be folded into one only", of, len(children), children[0], children[1])
	}
	if why := w.broken[children[0]]; why != "" {
		return "", fmt.Errorf("point %s: point %s, which lies on it, can't be read: %s", of, children[0], why)
	}
	return children[0], nil
}

// fail says why a point stays that was to go.
func (w *work) fail(p *PointReport, err error) {
	p.Error = err.Error()
	w.Logger.Error("point can't be removed", "point", p.Point, "error", err)
}

// children are the points that lie on one.
func (w *work) children(of repo.PointName) (names []repo.PointName) {
	for _, p := range w.points {
		if parent, there := w.parent[p.Name]; there && parent == of {
			names = append(names, p.Name)
		}
	}
	return names
}

// bridge takes a point out.
func (w *work) bridge(gone repo.PointName) {
	for _, child := range w.children(gone) {
		w.parent[child] = w.parent[gone]
	}
	delete(w.parent, gone)
}

// close closes the chains.
func (w *work) close() {
	for _, c := range w.chains {
		if err := c.Close(); err != nil {
			w.Logger.Debug("close chain", "error", err)
		}
	}
	w.chains = nil
}
