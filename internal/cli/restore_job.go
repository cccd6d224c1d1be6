package cli

import (
	"context"
	"io"
	"log/slog"
	"os"

	"golang.org/x/term"

	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/restore"
)

// restoreJob is one restore.
type restoreJob struct {
	*restoreFlags
	program *Program
	repo    *repo.Repository
	folder  *repo.Folder
	source  *restore.Source
	target  string
	task    progress.Task
	log     *slog.Logger
	report  restoreReport
}

func (j *restoreJob) run(ctx context.Context) (restore.Stats, error) {
	if isRBD(j.target) {
		return j.toRBD(ctx)
	}
	t, err := j.openTarget()
	if err != nil {
		return restore.Stats{}, err
	}
	return restore.Run(ctx, j.source, t, j.options())
}

func (j *restoreJob) options() restore.Options {
	return restore.Options{Parallel: j.parallel, Progress: j.task}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
