package changes

import (
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// Base is what has to be known of the older snapshot.
type Base struct {
	Snapshot rbd.Snapshot // of the user namespace
	Parent   *rbd.Parent  // of the image at that snapshot; nil: none
	// Others are the ids of the other snapshots that the image had when Snapshot was made. nil: that is not known.
	Others []uint64
	// Marks, Quiet and Existence are what the search for Snapshot has given; nil and "": that was not asked.
	Marks     []Marks
	Quiet     bool
	Existence string
}

// NewBase gives what the point that was read from a snapshot tells of it, which is little where its identity is nil.
func NewBase(snapshot rbd.Snapshot, id *repo.Identity) *Base {
	b := &Base{Snapshot: snapshot}
	if id == nil {
		return b
	}
	b.Others = make([]uint64, 0, len(id.OtherSnapshots))
	for _, s := range id.OtherSnapshots {
		b.Others = append(b.Others, s.ID)
	}
	if p := id.Image.CloneParent; p != nil {
		b.Parent = &rbd.Parent{
			PoolID: p.PoolID, Namespace: p.Namespace, ImageID: p.ImageID, SnapshotID: p.SnapshotID, Overlap: p.Overlap,
		}
	}
	b.Quiet, b.Existence = id.Changes.Quiet, id.Changes.Existence
	if id.Changes.Marks != nil {
		b.Marks = make([]Marks, 0, len(id.Changes.Marks))
	}
	for _, m := range id.Changes.Marks {
		b.Marks = append(b.Marks, Marks(m))
	}
	return b
}
