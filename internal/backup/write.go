package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/rbd2qcow2/rbd2qcow2/internal/crashpoint"
	"github.com/rbd2qcow2/rbd2qcow2/internal/extent"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// writePoint writes the extents of src to a file without a name, and gives it its name when it is whole.
func (j *job) writePoint(ctx context.Context, src source, b *base, id *repo.Identity, extents []extent.Extent) error {
	file, err := j.folder.CreatePending()
	if err != nil {
		return err
	}
	defer file.Discard()
	if err := j.fill(ctx, file, src, b, id, extents); err != nil {
		return err
	}
	if err := j.confirmSnapshots(ctx, b, id); err != nil {
		return err
	}
	// From here on to the end there is less to do than to undo: no look at ctx any more.
	return file.Commit(j.folder.FileName(id.Point), id.Created)
}

// confirmSnapshots proves that the snapshots lasted to the end of reading: librbd reads zeroes from one that was
// removed meanwhile, and leaves its data out of a diff, without an error.
func (j *job) confirmSnapshots(ctx context.Context, b *base, id *repo.Identity) error {
	names, ids := []string{id.Snapshot.Name}, []uint64{id.Snapshot.ID}
	if b != nil {
		names, ids = append(names, b.snapshot.Name), append(ids, b.snapshot.ID)
	}
	now, err := j.Pool.SnapshotIDs(ctx, j.ref.ID, names...)
	if err != nil {
		return fmt.Errorf("confirm what was read: %w", err)
	}
	if !slices.Equal(now, ids) {
		return fmt.Errorf("confirm what was read: one of the snapshots %q was made anew meanwhile", names)
	}
	return nil
}

// fill makes the file a complete qcow2 file.
func (j *job) fill(ctx context.Context, file *repo.Pending, src source, b *base, id *repo.Identity,
	extents []extent.Extent,
) (err error) {
	o := qcow2.WriterOptions{
		Size:        id.Image.Size,
		ClusterSize: id.ClusterSize,
		Codec:       j.Compression.Codec,
		Key:         j.Repo.DigestKey,
		Scratch:     j.folder.Scratch,
	}
	if b != nil {
		o.BackingFile = j.folder.BackingName(b.point.Name)
		o.BackingMayHoldData = func(off, n int64) (bool, error) { return holdsData(b.chain.Image, off, n) }
	}
	w, err := qcow2.NewWriter(stepFile{file}, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()

	c := copyJob{engine: j.engine, src: src, dst: w, written: j.task.Add}
	if id.Changes.ReadBytes, err = c.run(ctx, extents); err != nil {
		return err
	}
	crashpoint.Reach(crashpoint.Data)
	j.task.Phase("commit")
	if err := w.Flush(); err != nil {
		return err
	}
	crashpoint.Reach(crashpoint.Tables)
	id.Changes.StoredBytes = w.Stats().StoredBytes
	j.report.ReadBytes, j.report.StoredBytes = id.Changes.ReadBytes, id.Changes.StoredBytes
	identity, err := id.Encode()
	if err != nil {
		return err
	}
	return w.Finish(identity)
}

// stepFile names the steps inside qcow2, which knows nothing of crashes.
type stepFile struct{ *repo.Pending }

func (f stepFile) Sync() error {
	err := f.Pending.Sync()
	crashpoint.Reach(crashpoint.DataSynced)
	return err
}

func (f stepFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.Pending.WriteAt(p, off)
	if off == 0 {
		crashpoint.Reach(crashpoint.HeaderWritten)
	}
	return n, err
}

// holdsData says whether a chain stores anything in a range. What it does not store reads as zeroes. The tables that say so are
// compared with their digests, as the chain is opened for that: one that has lost its entries must not have zeroes left out.
func holdsData(chain *qcow2.Image, off, n int64) (bool, error) {
	for end := min(off+n, chain.Size()); off < end; {
		e, err := chain.Extent(off)
		if err != nil {
			return false, err
		}
		if e.Kind == qcow2.Data {
			return true, nil
		}
		off = e.Offset + e.Length
	}
	return false, nil
}
