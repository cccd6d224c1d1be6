package backup

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// newIdentity begins the identity of the point to be made: all that is known before its snapshot.
func (j *job) newIdentity(b *base, reason string) *repo.Identity {
	newest := repo.PointName("")
	if j.newest != nil {
		newest = j.newest.Name
	}
	id := &repo.Identity{
		Program:     j.Program,
		Repository:  j.Repo.ID(),
		Chain:       uuid.NewString(),
		PointID:     uuid.NewString(),
		Point:       repo.NextPointName(time.Now(), newest),
		Folder:      j.folder.Name,
		Changes:     repo.Changes{Method: "full", Reason: reason},
		Compression: j.Compression.Name,
	}
	id.Snapshot.Name = j.Repo.SnapshotName(id.Point)
	if b != nil {
		id.Changes = repo.Changes{} // by the time that they are found it is known how
		id.Parent = b.point.AsParent()
		id.Generation = len(b.chain.Points)
		if parent := b.point.Identity; parent != nil {
			id.Chain = parent.Chain
			id.Generation = parent.Generation + 1
		}
	}
	j.report.Method, j.report.Reason = id.Changes.Method, id.Changes.Reason
	return id
}

// describeSnapshot completes the identity by what the image was at our snapshot.
func (j *job) describeSnapshot(ctx context.Context, src *rbd.Image, id *repo.Identity) error {
	snapshots, err := src.Snapshots(ctx)
	if err != nil {
		return err
	}
	parent, err := src.Parent(ctx)
	if err != nil {
		return err
	}
	for _, s := range snapshots {
		if s.Kind == rbd.UserSnapshot && s.Name == id.Snapshot.Name {
			id.Snapshot = describeSnapshot(s)
			id.Image.SnapFlags = s.Flags.String()
		}
	}
	if id.Snapshot.ID == 0 {
		return fmt.Errorf("snapshot %s of image %s is gone", id.Snapshot.Name, j.Pool.Spec(j.ref.Name))
	}
	id.SnapSeq, id.OtherSnapshots = j.info.SnapSeq, []repo.Snapshot{}
	listed := map[uint64]bool{}
	for _, s := range slices.Concat(snapshots, j.snapshots) { // one that is gone by now could be rolled back to for a moment
		if s.ID < id.Snapshot.ID && !listed[s.ID] { // later ones say nothing of ours
			listed[s.ID] = true
			id.OtherSnapshots = append(id.OtherSnapshots, describeSnapshot(s))
			id.SnapSeq = max(id.SnapSeq, s.ID) // made since we looked
		}
	}
	id.Image = repo.Image{
		FSID: j.source.FSID, PoolID: j.source.PoolID, Pool: j.source.Pool, Namespace: j.source.Namespace,
		ID: j.ref.ID, Size: src.Size(),
		ObjectSize: j.info.ObjectSize, StripeUnit: j.info.StripeUnit, StripeCount: j.info.StripeCount,
		Features: j.info.Features.Names(), Flags: j.info.Flags.String(), SnapFlags: id.Image.SnapFlags,
		DataPool: j.info.DataPool, Metadata: j.metadata,
	}
	id.Image.SetName(j.ref.Name)
	if p := parent; p != nil {
		id.Image.CloneParent = &repo.CloneParent{
			PoolID: p.PoolID, Pool: p.Pool, Namespace: p.Namespace, Image: p.Image, ImageID: p.ImageID,
			Snapshot: p.Snapshot, SnapshotID: p.SnapshotID, Overlap: p.Overlap,
		}
	}
	return nil
}

func describeSnapshot(s rbd.Snapshot) repo.Snapshot {
	return repo.Snapshot{Name: s.Name, ID: s.ID, Size: s.Size, Namespace: string(s.Kind)}
}
