package rbdtarget

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/extent"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/restore"
)

// InPlaceRequest says which image to bring back to a point.
type InPlaceRequest struct {
	Pool   *rbd.Pool
	Name   string
	Source *restore.Source
	FSID   string // of the pool's cluster
	// Newest is the chain of the newest point of all, where the source is one of its points. Where it is nil, NoNewest says why.
	Newest   *repo.Chain
	NoNewest string
	// Resume finishes what has begun: without a snapshot, and only where the image is marked. Metadata are those that it
	// gets in the end, where it is a new one.
	Resume         bool
	Metadata       map[string]string
	SafetySnapshot string // its name; "" for none
	Parallel       int    // calls of librbd that look for differences at once
	Progress       func(done, total int64)
	Logger         *slog.Logger
}

// InPlace is an image that is being brought back, and where it may differ.
type InPlace struct {
	*Target
	Extents []extent.Extent
	Method  string // "diff": by the changes since the newest point; "compare": all that either side holds
	Reason  string // why
}

// The methods.
const (
	MethodDiff    = "diff"
	MethodCompare = "compare"
)

// OpenInPlace makes the safety snapshot, finds out where the image may differ from the point, marks the image, and gives it the
// point's size. Where it fails before the mark, the image is as it was.
func OpenInPlace(ctx context.Context, r InPlaceRequest) (*InPlace, error) {
	ref, err := r.Pool.FindImage(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	mark, err := Unfinished(ctx, r.Pool, ref.ID)
	if err == nil && r.Resume && mark == nil {
		err = fmt.Errorf("resume restore of %s: it has no mark of an unfinished one (--in-place writes what differs)", r.Pool.Spec(r.Name))
	}
	if err != nil {
		return nil, err
	}
	t, err := openExisting(ctx, r.Pool, ref, mark != nil, r.Logger)
	if err != nil {
		return nil, err
	}
	p := &InPlace{Target: t}
	if mark != nil && mark.New {
		t.metadata = r.Metadata
	}
	if err := p.begin(ctx, r, ref, mark); err != nil {
		return nil, errors.Join(err, t.Abort())
	}
	return p, nil
}

func (p *InPlace) begin(ctx context.Context, r InPlaceRequest, ref rbd.ImageRef, mark *Mark) error {
	if r.SafetySnapshot != "" && !r.Resume {
		if err := p.writer.CreateSnapshot(ctx, r.SafetySnapshot); err != nil {
			return err
		}
		r.Logger.Info("made a snapshot of the image as it was", "snapshot", r.Pool.Spec(ref.Name)+"@"+r.SafetySnapshot)
	}
	if err := p.find(ctx, r, ref); err != nil {
		return err
	}
	if err := p.mark(ctx, r.Source, mark != nil && mark.New); err != nil {
		return err
	}
	if p.writer.Size() == r.Source.Size {
		return nil
	}
	return p.writer.Resize(ctx, r.Source.Size)
}

// find collects where the image may differ from the point.
func (p *InPlace) find(ctx context.Context, r InPlaceRequest, ref rbd.ImageRef) error {
	img, err := r.Pool.OpenAt(ctx, ref.ID, "")
	if err != nil {
		return err
	}
	s := &search{InPlaceRequest: r, img: img}
	p.Extents, err = s.differing(ctx)
	p.Method, p.Reason = s.method, s.reason
	return errors.Join(err, img.Close())
}

// SafetySnapshotName names a snapshot made now.
func SafetySnapshotName() string {
	return "before-restore-" + time.Now().UTC().Format("20060102T150405Z")
}
