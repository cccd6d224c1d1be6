package verify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// Options say what is verified, and for how long.
type Options struct {
	Targets   []string      // IMAGE, a shell pattern of images, or IMAGE@POINT with all that lies below it; none: all points
	NewerThan time.Time     // only points made after that; zero: all
	Sample    float64       // percent of the data of each point, chosen at random; 0 or 100: all
	MaxTime   time.Duration // about when to end; 0: never
	Parallel  int           // goroutines that read and hash
	// Source opens the image that a point was made from, as it was then; nil: points are verified by their files. Otherwise the newest
	// point of each image is compared with it, and nothing else.
	Source   func(ctx context.Context, p *repo.Point) (Source, error)
	Logger   *slog.Logger
	Progress progress.Reporter
}

// Validate reports the first option that makes no sense.
func (o *Options) Validate() error {
	switch {
	case o.Sample < 0 || o.Sample > 100:
		return fmt.Errorf("sample of %g percent: must be from 0 to 100", o.Sample)
	case o.MaxTime < 0:
		return fmt.Errorf("time limit of %s: must not be negative", o.MaxTime)
	case o.Source != nil && (o.isSample() || o.MaxTime > 0):
		return errors.New("a comparison with the source is of all data: no sample, no time limit")
	case o.Parallel < 1:
		return errors.New("parallel: must be at least 1")
	}
	return nil
}

func (o *Options) isSample() bool { return o.Sample > 0 && o.Sample < 100 }
