package prune

import (
	"errors"
	"log/slog"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/glob"
	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/retention"
)

// Options says what to remove.
type Options struct {
	Images []string // names or shell patterns; none: all images
	Policy retention.Policy
	Gone   bool // also points of images that are gone from their pool
	DryRun bool // decide and estimate; nothing is changed; what is read is locked as readers do

	Program  string    // name and version, for identities
	Now      time.Time // its location is that of hours, days and so on
	Logger   *slog.Logger
	Progress progress.Reporter
}

// errNoRules is for those who would expect everything or nothing to be removed.
var errNoRules = errors.New("no rule says what to keep")

// Validate reports the first option that is out of its range.
func (o *Options) Validate() error {
	if o.Policy.Empty() {
		return errNoRules
	}
	if err := o.Policy.Validate(); err != nil {
		return err
	}
	return glob.Check(o.Images...)
}
