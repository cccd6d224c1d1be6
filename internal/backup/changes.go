package backup

import (
	"context"
	"slices"

	"github.com/rbd2qcow2/rbd2qcow2/internal/changes"
	"github.com/rbd2qcow2/rbd2qcow2/internal/extent"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// findChanges finds what differs between the base's snapshot, or nothing, and src, in whole clusters of the file to write, whose
// size it decides. It completes the identity by that, and by how it was done.
func (j *job) findChanges(ctx context.Context, src *rbd.Image, b *base, id *repo.Identity) ([]extent.Extent, error) {
	j.task.Phase("diff")
	sizes := j.sizing(src.Size(), b)
	list := extent.NewList(src.Size(), sizes.unit())
	end := endToRewrite(src.Size(), b)
	add := func(e extent.Extent) error {
		if e.Data || b != nil { // in a full point nothing lies below a hole
			return list.Add(e)
		}
		return nil
	}
	found, err := changes.Find(ctx, src, j.searchOptions(b, id), func(e rbd.Extent) error {
		id.Changes.DiffBytes += e.Length
		e.Length = min(e.Length, end-e.Offset) // the rest comes with the end
		if e.Length <= 0 {
			return nil
		}
		return add(extent.Extent{Offset: e.Offset, Length: e.Length, Data: e.Exists})
	})
	if err != nil {
		return nil, err
	}
	if err := add(extent.Extent{Offset: end, Length: src.Size() - end, Data: true}); err != nil {
		return nil, err
	}
	id.Changes.Method, id.Changes.Existence = found.Method, found.Existence
	// A rebuild of the head's map, which it may need, can take marks away while the image is written to.
	id.Changes.Quiet = found.Quiet && j.info.Flags == 0
	id.Changes.Marks = convert(found.Marks, func(m changes.Marks) repo.Marks { return repo.Marks(m) })
	if b != nil {
		id.Changes.Reason = found.Reason
	}
	if found.Unprovable {
		return nil, &unprovableError{found.Reason}
	}
	if found.Lied {
		warning := found.Reason + "; every object was asked about; run \"rbd object-map rebuild\" on the image and its snapshots, " +
			"while nobody writes to it"
		j.report.Warnings = append(j.report.Warnings, warning)
		j.log.Warn("don't trust the object map", "reason", warning)
	}
	j.log.Debug("found changes", "method", found.Method, "reason", found.Reason, "asked", found.Asked, "objects", found.Objects)
	j.report.Method, j.report.Reason, j.report.DiffBytes = id.Changes.Method, id.Changes.Reason, id.Changes.DiffBytes
	extents := list.Extents()
	if id.ClusterSize, err = sizes.choose(ctx, src, extents); err != nil {
		return nil, err
	}
	return slices.Collect(extent.Widen(extents, src.Size(), id.ClusterSize)), nil
}

// endToRewrite is where the part of the disk begins that has to be read whether it changed or not. A qcow2 file ends
// with a whole sector, an image anywhere: what lies below the rest of that sector would come to light in a point of
// another size. So wherever the size has changed to one inside a sector, its last byte is read, and with it, widened
// to a cluster and filled with zeroes, that sector is written anew.
func endToRewrite(size int64, b *base) int64 {
	if b != nil && size%512 != 0 && size != b.snapshot.Size {
		return size - 1
	}
	return size
}

// searchOptions says what is known of both ends. Without an identity of the base's that is little.
func (j *job) searchOptions(b *base, id *repo.Identity) changes.Options {
	o := changes.Options{Snapshot: id.Snapshot.ID, SnapSeq: j.info.SnapSeq, Mode: j.Diff, Distrust: j.distrustMaps,
		Parallel: j.Parallel, Progress: j.task.Advance}
	if id.Snapshot.ID != 0 { // it is no dry run
		o.Settle = func(ctx context.Context) error { return j.settleRollback(ctx, id) }
	}
	if j.trackingLied {
		o.Distrust = "change tracking lied"
	}
	if b == nil {
		return o
	}
	o.Base = changes.NewBase(b.snapshot, b.point.Identity)
	return o
}

// convert converts each element. nil, for what is not known, stays nil.
func convert[From, To any](from []From, one func(From) To) []To {
	if from == nil {
		return nil
	}
	to := make([]To, len(from))
	for i, f := range from {
		to[i] = one(f)
	}
	return to
}

// preview says what a backup would do now, by the image's head instead of a snapshot.
func (j *job) preview(ctx context.Context) error {
	if err := j.inspect(ctx); err != nil {
		return err
	}
	b, reason, err := j.chooseBase(ctx)
	if b != nil {
		defer b.chain.Close()
	}
	if err != nil {
		return err
	}
	id := j.newIdentity(b, reason)
	head, err := j.Pool.OpenAt(ctx, j.ref.ID, "")
	if err != nil {
		return err
	}
	defer head.Close()
	_, extents, err := j.findOrStartOver(ctx, head, b, id)
	if err != nil {
		return err
	}
	for p := range parts(extents, readSize) {
		if p.data {
			j.report.ReadBytes += p.length
		}
	}
	j.report.Status = Planned
	return nil
}
