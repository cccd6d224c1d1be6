package backup

import (
	"context"
	"fmt"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/prune"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// prune removes the points that no rule keeps, now that there is a new one. The backup is done, whatever comes of it.
func (j *job) prune(ctx context.Context) {
	if j.Policy.Empty() {
		return
	}
	job := prune.Job{
		Name: j.ref.Name, Folder: j.folder, Program: j.Program, Policy: j.Policy, Now: time.Now(), Logger: j.log, Task: j.task,
	}
	report := job.Run(ctx)
	j.report.Pruned = &report
	if report.Err != nil {
		j.report.Warnings = append(j.report.Warnings, fmt.Sprintf("prune: %v", report.Err))
	}
	for _, p := range report.InUse() {
		j.report.Warnings = append(j.report.Warnings, fmt.Sprintf("prune: point %s is in use, the next run will try again", p))
	}
}

// noteGone notes in the repository's folders which images the pool has no more: where there is no cluster nobody could tell.
// It comes last, when folders have got new owners.
func (r *run) noteGone(images []rbd.ImageRef, homes *folders) {
	now := time.Now()
	for name, owner := range homes.owner {
		folder := r.Repo.Folder(name)
		gone := !homes.live[owner]
		if owner == "" { // no identity, which is so with the Python tool
			if !folder.HasForeignPoints() {
				continue
			}
			gone = !hasImage(images, name)
		}
		news, err := folder.NoteGone(gone, now)
		switch {
		case err != nil:
			r.Logger.Warn("can't note whether an image is gone", "folder", name, "error", err)
		case news && gone:
			r.Logger.Info("the image is gone from the pool, its points stay", "image", r.Repo.ImageName(folder))
		}
	}
}

func hasImage(images []rbd.ImageRef, folder string) bool {
	for _, i := range images {
		if i.Name == folder || repo.Escape(i.Name) == folder {
			return true
		}
	}
	return false
}
