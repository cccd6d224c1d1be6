package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// A chain of the Python tool carries no digests. Its structure, and this many clusters that its newest file stores
// besides as many anywhere on the disk, are compared with the snapshot before anything is put on top of it.
const adoptionSamples = 256

// checkForeign checks the newest file of a chain that the Python tool made.
func (j *job) checkForeign(ctx context.Context, b *base) error {
	if err := b.chain.CheckStructure(ctx); err != nil {
		return err
	}
	src, err := j.Pool.OpenAt(ctx, j.ref.ID, b.snapshot.Name)
	if err != nil {
		return err
	}
	err = compareSample(ctx, b.chain.Image, src, src.Size())
	return errors.Join(err, src.Close())
}

// compareSample compares clusters of a disk of size bytes with what src has there.
func compareSample(ctx context.Context, image *qcow2.Image, src source, size int64) error {
	cluster := image.Header().ClusterSize()
	stored, err := sampleStored(ctx, image, size)
	if err != nil {
		return err
	}
	for range adoptionSamples {
		stored = append(stored, rand.Int64N(size/cluster+1)*cluster)
	}
	want, got := make([]byte, cluster), make([]byte, cluster)
	for _, off := range stored {
		n := min(cluster, size-off)
		if n <= 0 {
			continue
		}
		if err := src.Read(ctx, want[:n], off); err != nil {
			return err
		}
		if _, err := image.ReadAt(got[:n], off); err != nil {
			return err
		}
		if !bytes.Equal(want[:n], got[:n]) {
			return fmt.Errorf("it differs from its snapshot at offset %d", off)
		}
	}
	return nil
}

// sampleStored picks clusters that the uppermost file of a chain stores, evenly from the whole disk.
func sampleStored(ctx context.Context, image *qcow2.Image, size int64) ([]int64, error) {
	cluster := image.Header().ClusterSize()
	var picked []int64
	seen := 0
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		e, err := image.FileExtent(off)
		if err != nil {
			return nil, err
		}
		if e.Kind == qcow2.Data {
			// Reservoir sampling.
			for at := e.Offset; at < e.Offset+e.Length; at += cluster {
				if seen++; len(picked) < adoptionSamples {
					picked = append(picked, at)
				} else if i := rand.IntN(seen); i < adoptionSamples {
					picked[i] = at
				}
			}
		}
		off = e.Offset + e.Length
	}
	return picked, nil
}

// staleForeignSnapshots are the snapshots of the Python tool that go after a commit: the one of the point that was
// continued, and with RemoveOldSnapshots all others, where it has been at work and by what can be told made them.
func (j *job) staleForeignSnapshots(b *base) []string {
	var names []string
	foreign := j.RemoveOldSnapshots && j.folder.HasForeignPoints()
	for _, s := range j.snapshots {
		if s.Kind != rbd.UserSnapshot {
			continue
		}
		continued := b != nil && b.point.State == repo.Foreign && s.Name == b.snapshot.Name
		if continued || foreign && madeAtItsName(s) {
			names = append(names, s.Name)
		}
	}
	return names
}
