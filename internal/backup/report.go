package backup

import (
	"fmt"
	"log/slog"

	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/prune"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

// Status is the outcome of an image.
type Status string

// The outcomes.
const (
	Done    Status = "done"
	Skipped Status = "skipped" // because of its metadata
	Failed  Status = "failed"
	Planned Status = "planned" // in a dry run: would be done
)

// Report is the outcome of a run. Its JSON form is documented in docs/json.md.
type Report struct {
	Images []ImageReport `json:"images"`
	Error  string        `json:"error,omitempty"` // of the run as a whole
}

// ImageReport is the outcome of one image.
type ImageReport struct {
	Name        string         `json:"name"`
	Status      Status         `json:"status"`
	Points      []status.Point `json:"points"`           // the new one, if there is one
	Method      string         `json:"method,omitempty"` // "full", "precise" or "narrowed"
	Reason      string         `json:"reason,omitempty"` // for the method, or for skipping
	DiffBytes   int64          `json:"diff_bytes"`
	ReadBytes   int64          `json:"read_bytes"`
	StoredBytes int64          `json:"stored_bytes"`
	Seconds     float64        `json:"seconds"`
	Warnings    []string       `json:"warnings,omitempty"` // what was left undone, though the point is good
	// Pruned is what became of older points, nil if nothing was asked for. Its failure is none of the backup.
	Pruned *prune.ImageReport `json:"pruned,omitempty"`
	Error  string             `json:"error,omitempty"`
	Err    error              `json:"-"`
}

// Count counts the images with a status.
func (r *Report) Count(s Status) int {
	n := 0
	for i := range r.Images {
		if r.Images[i].Status == s {
			n++
		}
	}
	return n
}

// Unpruned counts the images of which points should have been removed and could not be.
func (r *Report) Unpruned() int {
	n := 0
	for i := range r.Images {
		if p := r.Images[i].Pruned; p != nil && p.Status == prune.Failed {
			n++
		}
	}
	return n
}

// log writes the line that remains of an image. Its name is with the logger.
func (r *ImageReport) log(log *slog.Logger) {
	switch r.Status {
	case Failed:
		log.Error("failed", "error", r.Error)
	case Skipped:
		log.Info("skipped", "reason", r.Reason)
	case Planned:
		log.Info("would be backed up", "method", r.Method, "reason", r.Reason, "read", progress.Bytes(r.ReadBytes))
	case Done:
		log.Info("done", "point", r.Points[0].Point, "method", r.Method, "reason", r.Reason,
			"changed", progress.Bytes(r.DiffBytes), "read", progress.Bytes(r.ReadBytes),
			"stored", progress.Bytes(r.StoredBytes), "seconds", fmt.Sprintf("%.1f", r.Seconds))
		if r.Pruned != nil {
			r.Pruned.Log(log)
		}
	}
}
