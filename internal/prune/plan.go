package prune

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/retention"
)

// plan reads what there is, and decides.
func (w *work) plan(ctx context.Context) (err error) {
	if w.points, err = w.Folder.Points(); err != nil {
		return err
	}
	pins, err := w.Folder.Pins()
	if err != nil {
		return err
	}
	if err := w.open(ctx); err != nil {
		return err
	}
	points := make([]retention.Point, len(w.points))
	for i, p := range w.points {
		w.parent[p.Name] = p.Parent()
		points[i] = retention.Point{
			Name:       string(p.Name),
			Time:       p.Created(),
			Parent:     string(p.Parent()),
			Pinned:     slices.ContainsFunc(pins, func(pin repo.Pin) bool { return pin.Point == p.Name }),
			Unreadable: w.broken[p.Name],
		}
	}
	for i, d := range retention.Decide(points, w.Policy, w.Now) {
		r := PointReport{Point: w.points[i].Name, Time: points[i].Time.UTC(), Action: Remove, Reasons: d.Reasons}
		if d.Keep {
			r.Action = Keep
			w.report.Kept++
		}
		w.report.Points = append(w.report.Points, r)
	}
	return nil
}

// planWait bounds the wait for files that are locked.
const planWait = 30 * time.Second

// open opens the chains that all points are in, as far as they can be read.
func (w *work) open(ctx context.Context) error {
	// All together wait no longer than a reader of one chain does.
	wait, cancel := context.WithTimeoutCause(ctx, planWait, errors.New("it is locked: another program writes to it"))
	defer cancel()
	readable := map[repo.PointName]bool{}
	for _, p := range slices.Backward(w.points) {
		if readable[p.Name] {
			continue
		}
		chain, err := w.Folder.OpenChain(wait, p.Name)
		if err != nil && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			w.broken[p.Name] = err.Error()
			w.Logger.Warn("point can't be read: it is not counted, and not removed", "point", p.Name, "error", err)
			continue
		}
		w.chains = append(w.chains, chain)
		for _, below := range chain.Points {
			if below.State != repo.Removing {
				readable[below.Name] = true
			}
		}
	}
	return nil
}
