package prune

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// Status is the outcome of an image.
type Status string

// The outcomes.
const (
	Done    Status = "done"
	Partly  Status = "partly"  // points that are in use stay, the next run will do
	Skipped Status = "skipped" // the image is gone, and that is to say: nothing
	Failed  Status = "failed"  // what was removed before is removed
	Planned Status = "planned" // in a dry run: would be done
)

// Report is the outcome of a run. Its JSON form is documented in docs/json.md.
type Report struct {
	Images []ImageReport `json:"images"`
	Error  string        `json:"error,omitempty"` // of the run as a whole
}

// ImageReport is the outcome of one image.
type ImageReport struct {
	Name    string        `json:"name"`
	Folder  string        `json:"folder"`
	Status  Status        `json:"status"`
	Reason  string        `json:"reason,omitempty"` // for skipping
	Points  []PointReport `json:"points"`           // the oldest first, with those that are removed
	Kept    int           `json:"kept"`
	Removed int           `json:"removed"` // in a dry run, would be
	Written int64         `json:"written_bytes"`
	Freed   int64         `json:"freed_bytes"`
	Seconds float64       `json:"seconds"`
	Error   string        `json:"error,omitempty"`
	Err     error         `json:"-"`
}

// PointReport is what becomes of a point.
type PointReport struct {
	Point   repo.PointName `json:"point"`
	Time    time.Time      `json:"time"`
	Action  Action         `json:"action"`
	Reasons []string       `json:"reasons"`
	Method  Method         `json:"method,omitempty"` // of the removal
	Written int64          `json:"written_bytes"`    // by the removal; in a dry run, about as much
	Freed   int64          `json:"freed_bytes"`      // on disk, after what was written
	InUse   bool           `json:"in_use,omitempty"`
	Error   string         `json:"error,omitempty"` // why it is still there
}

// Action is what is decided about a point.
type Action string

// The actions.
const (
	Keep   Action = "keep"
	Remove Action = "remove"
)

// Method is how a point is removed.
type Method string

// The methods.
const (
	Unlink      Method = "unlink"       // nothing lies on it
	IntoChild   Method = "into-child"   // what the point above lacks is added to that one's file
	IntoBacking Method = "into-backing" // what the point above has is put into this one's file, which takes its name
)

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

// Removed counts the points of all images that have been removed.
func (r *Report) Removed() int {
	n := 0
	for i := range r.Images {
		n += r.Images[i].Removed
	}
	return n
}

// fail makes err the outcome.
func (r *ImageReport) fail(err error) { r.Status, r.Err, r.Error = Failed, err, err.Error() }

// InUse lists the points that were to go and that somebody reads.
func (r *ImageReport) InUse() (points []repo.PointName) {
	for _, p := range r.Points {
		if p.InUse {
			points = append(points, p.Point)
		}
	}
	return points
}

// Log writes the line that remains of an image. Its name is with the logger.
func (r *ImageReport) Log(log *slog.Logger) {
	figures := []any{"kept", r.Kept, "removed", r.Removed, "written", progress.Bytes(r.Written), "freed", progress.Bytes(r.Freed),
		"seconds", fmt.Sprintf("%.1f", r.Seconds)}
	switch r.Status {
	case Failed:
		log.Error("pruning failed", append([]any{"error", r.Error}, figures...)...)
	case Skipped:
		log.Info("not pruned", "reason", r.Reason)
	case Planned:
		log.Info("would be pruned", figures...)
	case Done, Partly:
		log.Info("pruned", figures...)
	}
}
