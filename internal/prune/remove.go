package prune

import (
	"context"
	"errors"
	"runtime"
	"syscall"

	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// fold folds a point into the one that lies on it.
func (w *work) fold(ctx context.Context, p *PointReport) error {
	result, err := w.Folder.FoldPoint(ctx, p.Point, repo.FoldOptions{Program: w.Program, Parallel: runtime.GOMAXPROCS(0)})
	if err != nil {
		return err
	}
	p.Method, p.Written, p.Freed = IntoBacking, result.Written, result.Freed
	if result.IntoChild {
		p.Method = IntoChild
	}
	if result.PunchError != nil {
		w.Logger.Warn("point is removed, but not all of its space came back", "point", p.Point, "error", result.PunchError)
	}
	return nil
}

// remove removes a point; child is what lies on it, "" for nothing. What keeps it from that is in p, and given as an error
// where it is the system's: a full disk is full for other points too.
func (w *work) remove(ctx context.Context, p *PointReport, child repo.PointName) (gone bool, err error) {
	if child == "" {
		p.Freed, err = w.Folder.RemoveLeaf(p.Point)
		p.Method = Unlink
	} else {
		err = w.fold(ctx, p)
	}
	var (
		inUse  *repo.InUseError
		pinned *repo.PinnedError
		errno  syscall.Errno
	)
	switch {
	case err == nil:
		w.removed(p)
		return true, nil
	case errors.As(err, &inUse):
		p.InUse, p.Error = true, err.Error()
		w.Logger.Warn("point stays for now", "point", p.Point, "reason", err)
		return false, nil
	case errors.As(err, &pinned): // meanwhile
		p.Action, p.Reasons = Keep, []string{"pinned"}
		w.report.Kept++
		return false, nil
	}
	if ctx.Err() != nil || errors.As(err, &errno) {
		p.Error = err.Error()
		return false, err
	}
	w.fail(p, err)
	return false, nil
}

func (w *work) removed(p *PointReport) {
	w.report.Removed++
	w.report.Written += p.Written
	w.report.Freed += p.Freed
	w.Logger.Debug("removed point", "point", p.Point, "method", p.Method,
		"written", progress.Bytes(p.Written), "freed", progress.Bytes(p.Freed))
}
