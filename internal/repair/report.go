package repair

import (
	"fmt"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// Report is the outcome of a run. Its JSON form is documented in docs/json.md.
type Report struct {
	Images []ImageReport `json:"images"`
	Error  string        `json:"error,omitempty"` // of the run as a whole
}

// ImageReport is the outcome of one image.
type ImageReport struct {
	Name     string           `json:"name"`
	Folder   string           `json:"folder"`
	Points   int              `json:"points"` // of the newest point's chain, which were looked at
	Damages  []Damage         `json:"damages"`
	Replaced []repo.PointName `json:"replaced"`        // points whose files are new
	Error    string           `json:"error,omitempty"` // why it could not be done to its end
}

// Damage is one thing that was not as it was stored.
type Damage struct {
	Point   repo.PointName `json:"point"`
	What    string         `json:"what"`   // the structure: "cluster", "L2 table", "refcount", …
	Start   int64          `json:"start"`  // bytes of the disk that could not be relied on
	Length  int64          `json:"length"` // 0: none, or not to be told
	Message string         `json:"message"`
	Mended  bool           `json:"mended"`
	Reason  string         `json:"reason,omitempty"` // why it is not
	// Hidden says that the newest point reads right all the same: it holds the data itself.
	Hidden bool `json:"hidden,omitempty"`
}

// String names a damage for people, and what has become of it.
func (d *Damage) String() string {
	s := fmt.Sprintf("%s: %s", d.What, d.Message)
	if d.Length > 0 {
		s = fmt.Sprintf("guest bytes %d to %d: %s", d.Start, d.Start+d.Length, d.Message)
	}
	switch {
	case d.Mended:
		return s + "; mended"
	case d.Hidden:
		return s + "; not mended: " + d.Reason + "; the newest point reads right"
	}
	return s + "; not mended: " + d.Reason
}

func (d *Damage) guest() qcow2.Range { return qcow2.Range{Offset: d.Start, Length: d.Length} }

// Left counts the damages that are not mended.
func (r *ImageReport) Left() (n int) {
	for i := range r.Damages {
		if !r.Damages[i].Mended {
			n++
		}
	}
	return n
}
