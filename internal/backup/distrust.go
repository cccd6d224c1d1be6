package backup

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/google/uuid"

	"github.com/rbd2qcow2/rbd2qcow2/internal/changes"
	"github.com/rbd2qcow2/rbd2qcow2/internal/extent"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// unprovableError says why what differs from the base can't be told.
type unprovableError struct{ reason string }

func (e *unprovableError) Error() string { return e.reason }

// findOrStartOver finds what differs from the base. Where that can't be told it begins a full point: the base that it
// gives then is nil.
func (j *job) findOrStartOver(ctx context.Context, src *rbd.Image, b *base, id *repo.Identity) (*base, []extent.Extent, error) {
	extents, err := j.findChanges(ctx, src, b, id)
	var unprovable *unprovableError
	if !errors.As(err, &unprovable) {
		return b, extents, err
	}
	extents, err = j.startOver(ctx, src, id, unprovable.reason)
	return nil, extents, err
}

// startOver makes what was to be an increment a full point of the same snapshot.
func (j *job) startOver(ctx context.Context, src *rbd.Image, id *repo.Identity, reason string) ([]extent.Extent, error) {
	j.log.Warn("a full point is made instead of an increment", "reason", reason)
	id.Chain, id.Generation, id.Parent = uuid.NewString(), 0, nil
	id.Changes = repo.Changes{Method: changes.MethodFull, Reason: reason}
	j.report.DiffBytes = 0
	return j.findChanges(ctx, src, nil, id)
}

// distrust compares a share of what was not found changed with the chain. Where it differs there is no increment to be
// made: the base that it gives then is nil, and the extents are those of a full point.
func (j *job) distrust(ctx context.Context, src *rbd.Image, b *base, id *repo.Identity, extents []extent.Extent,
) (*base, []extent.Extent, error) {
	if b == nil || j.VerifyUnchanged == 0 {
		return b, extents, nil
	}
	check := unchangedCheck{
		src: src, size: src.Size(), base: b.chain.Image, percent: j.VerifyUnchanged, parallel: j.Parallel,
		engine: j.engine,
	}
	j.task.Phase("verify")
	var compared atomic.Int64
	total := check.expected(extents)
	check.compared = func(n int64) { j.task.Advance(compared.Add(n), total) }
	err := check.run(ctx, extents)
	var lie *lieError
	if !errors.As(err, &lie) {
		return b, extents, err
	}
	// A snapshot that is removed meanwhile reads as zeroes.
	if err := j.confirmSnapshots(ctx, b, id); err != nil {
		return nil, nil, err
	}
	j.trackingLied = true
	extents, err = j.startOver(ctx, src, id, fmt.Sprintf("%v (%s: %s)", lie, id.Changes.Method, id.Changes.Reason))
	return nil, extents, err
}
