package backup

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/rbd2qcow2/rbd2qcow2/internal/changes"
	"github.com/rbd2qcow2/rbd2qcow2/internal/extent"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// findChanges finds what differs between the base's snapshot, or nothing, and src, in whole clusters of the file to write, whose
// size it decides. It completes the identity by that, and by how it was done.
func (j *job) findChanges(ctx context.Context, src *rbd.Image, b *base, id *repo.Identity) ([]extent.Extent, error) {
	j.task.Phase("diff")
	id.ClusterSize = j.clusterSize(src.Size(), b)
	list := extent.NewList(src.Size(), id.ClusterSize)
	end := endToRewrite(src.Size(), b)
	add := func(e extent.Extent) error {
		if e.Data || b != nil { // in a full point nothing lies below a hole
			return list.Add(e)
		}
		return nil
	}
	found, err := changes.Find(ctx, src, j.searchOptions(ctx, b, id), func(e rbd.Extent) error {
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
	id.Changes.Method = found.Method
	if b != nil {
		id.Changes.Reason = found.Reason
	}
	if found.Lied {
		warning := found.Reason + "; every object was asked about; run \"rbd object-map rebuild\" on the image and its snapshots"
		j.report.Warnings = append(j.report.Warnings, warning)
		j.log.Warn("don't trust the object map", "reason", warning)
	}
	j.log.Debug("found changes", "method", found.Method, "reason", found.Reason, "asked", found.Asked, "objects", found.Objects)
	j.report.Method, j.report.Reason, j.report.DiffBytes = id.Changes.Method, id.Changes.Reason, id.Changes.DiffBytes
	return list.Extents(), nil
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
func (j *job) searchOptions(ctx context.Context, b *base, id *repo.Identity) changes.Options {
	o := changes.Options{Snapshot: id.Snapshot.ID, Before: j.snapshots, Mode: j.Diff, Progress: j.task.Advance}
	if j.trackingLied {
		o.Mode = changes.Precise
	}
	if b == nil {
		return o
	}
	o.Base = &changes.Base{Snapshot: b.snapshot}
	known := b.point.Identity
	if known == nil {
		return o
	}
	o.Base.Others = make([]uint64, 0, len(known.OtherSnapshots))
	for _, s := range known.OtherSnapshots {
		o.Base.Others = append(o.Base.Others, s.ID)
	}
	if p := known.Image.CloneParent; p != nil {
		o.Base.Parent = &rbd.Parent{
			PoolID: p.PoolID, Namespace: p.Namespace, ImageID: p.ImageID, SnapshotID: p.SnapshotID, Overlap: p.Overlap,
		}
	}
	if known.Parent != nil {
		o.Base.Previous = known.Parent.SnapshotID
		o.Base.PreviousChanges = func(add func(off, length int64)) error { return stored(ctx, b.chain.Image, add) }
	}
	return o
}

// stored calls add with every range that the uppermost file of a chain stores anything for.
func stored(ctx context.Context, image *qcow2.Image, add func(off, length int64)) error {
	for off := int64(0); ; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e, err := image.FileExtent(off)
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read tables of the newest point: %w", err)
		}
		if e.Kind != qcow2.Unallocated {
			add(e.Offset, e.Length)
		}
		off = e.Offset + e.Length
	}
}

// defaultClusterSize is a compromise between the size of increments and that of the tables of full points.
const defaultClusterSize = 64 << 10

// clusterSize decides on the clusters of a file: those of an increment are never larger than its chain's, or folding
// a small change into the full point would rewrite large clusters.
func (j *job) clusterSize(size int64, b *base) int64 {
	want := j.ClusterSize
	if want == 0 {
		want = defaultClusterSize
	}
	if b != nil {
		want = min(want, b.chain.Header().ClusterSize())
	}
	return qcow2.MinimumClusterSize(size, want)
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
	extents, err := j.findChanges(ctx, head, b, id)
	if err != nil {
		return err
	}
	j.report.ReadBytes, _ = extent.Bytes(extents)
	j.report.Status = Planned
	return nil
}
