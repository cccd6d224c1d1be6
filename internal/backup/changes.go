package backup

import (
	"context"

	"github.com/rbd2qcow2/rbd2qcow2/internal/extent"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// changes asks the cluster what differs between the base's snapshot, or nothing, and src, in whole clusters of the
// file to write, whose size it decides.
func (j *job) changes(ctx context.Context, src *rbd.Image, b *base, id *repo.Identity) ([]extent.Extent, error) {
	id.ClusterSize = j.clusterSize(src.Size(), b)
	list := extent.NewList(src.Size(), id.ClusterSize)
	from := ""
	if b != nil {
		from = b.snapshot.Name
	}
	end := endToRewrite(src.Size(), b)
	add := func(e extent.Extent) error {
		if e.Data || b != nil { // in a full point nothing lies below a hole
			return list.Add(e)
		}
		return nil
	}
	err := j.diff(ctx, src, from, func(e extent.Extent) error {
		id.Changes.DiffBytes += e.Length
		e.Length = min(e.Length, end-e.Offset) // the rest comes with the end
		if e.Length <= 0 {
			return nil
		}
		return add(e)
	})
	if err != nil {
		return nil, err
	}
	if err := add(extent.Extent{Offset: end, Length: src.Size() - end, Data: true}); err != nil {
		return nil, err
	}
	j.report.DiffBytes = id.Changes.DiffBytes
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

// diff passes on what the cluster reports as changed since the snapshot from.
func (j *job) diff(ctx context.Context, src *rbd.Image, from string, add func(extent.Extent) error) error {
	return src.Diff(ctx, from, 0, src.Size(), func(e rbd.Extent) error {
		return add(extent.Extent{Offset: e.Offset, Length: e.Length, Data: e.Exists})
	})
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
	extents, err := j.changes(ctx, head, b, id)
	if err != nil {
		return err
	}
	j.report.ReadBytes, _ = extent.Bytes(extents)
	j.report.Status = Planned
	return nil
}
