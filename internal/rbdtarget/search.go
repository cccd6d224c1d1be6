package rbdtarget

import (
	"context"
	"errors"

	"github.com/rbd2qcow2/rbd2qcow2/internal/changes"
	"github.com/rbd2qcow2/rbd2qcow2/internal/extent"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// unit is what places that may differ are widened to, in bytes: little, for all that is found there is compared.
const unit = 4096

// search finds the places where an image may differ from a point.
type search struct {
	InPlaceRequest
	img    *rbd.Image // its head
	known  int64      // behind that many bytes anything may differ: the least of the sizes that the disk has had
	lists  [][]extent.Extent
	method string
	reason string
}

// differing gives them in ascending order.
func (s *search) differing(ctx context.Context) (_ []extent.Extent, err error) {
	if s.reason, err = s.whyCompare(ctx); err == nil && s.reason == "" {
		err = s.byDiff(ctx)
	}
	if err == nil && s.method == "" {
		s.lists, s.known = nil, min(s.Source.Size, s.img.Size())
		err = s.byContent(ctx)
	}
	if err != nil {
		return nil, err
	}
	if s.known < s.Source.Size {
		s.lists = append(s.lists, []extent.Extent{{Offset: s.known, Length: s.Source.Size - s.known, Data: true}})
	}
	return extent.Union(s.lists...), nil
}

// whyCompare says why changes can't be told from the newest point on, or "".
func (s *search) whyCompare(ctx context.Context) (string, error) {
	if s.Newest == nil {
		return "the point is not in the newest point's chain", nil
	}
	id := s.Newest.Points[0].Identity
	switch {
	case id == nil:
		return "the newest point does not tell what image it is of", nil
	case id.Image.FSID != s.FSID || id.Image.PoolID != s.Pool.ID() || id.Image.Namespace != s.Pool.Namespace() || id.Image.ID != s.img.ID():
		return "it is another image than the one that was backed up", nil
	}
	now, err := s.Pool.SnapshotID(ctx, s.img.ID(), id.Snapshot.Name)
	if errors.Is(err, rbd.ErrNotFound) || err == nil && now != id.Snapshot.ID {
		return "the newest point's snapshot is gone", nil
	}
	return "", err
}

// byDiff takes what has changed in the image since the newest point, and what has in the chain since the point wanted.
func (s *search) byDiff(ctx context.Context) error {
	id := s.Newest.Points[0].Identity
	snapshot := rbd.Snapshot{ID: id.Snapshot.ID, Name: id.Snapshot.Name, Kind: rbd.UserSnapshot, Size: id.Snapshot.Size}
	list := extent.NewList(s.Source.Size, unit)
	found, err := s.find(ctx, changes.NewBase(snapshot, id), list)
	if err != nil {
		return err
	}
	if found.Unprovable {
		s.reason = found.Reason
		return nil
	}
	// librbd finds nothing, without an error, where the snapshot was removed meanwhile.
	if now, err := s.Pool.SnapshotID(ctx, s.img.ID(), snapshot.Name); err != nil || now != snapshot.ID {
		return errors.Join(err, errors.New("the newest point's snapshot was removed while the image was compared with it"))
	}
	s.method, s.reason = MethodDiff, "since the newest point's snapshot: "+found.Method+", "+found.Reason
	s.lists = append(s.lists, list.Extents())
	s.known = min(s.known, snapshot.Size)
	wanted := s.Source.Chain.Points[0].Name
	for i, file := 0, s.Newest.Image; s.Newest.Points[i].Name != wanted; i, file = i+1, file.Backing() {
		if err := s.addStored(file.Size(), file.FileExtent); err != nil {
			return err
		}
		s.known = min(s.known, file.Size())
	}
	return nil
}

// byContent takes what the image has, and what the point has.
func (s *search) byContent(ctx context.Context) error {
	s.method = MethodCompare
	list := extent.NewList(s.Source.Size, unit)
	if _, err := s.find(ctx, nil, list); err != nil {
		return err
	}
	s.lists = append(s.lists, list.Extents())
	return s.addStored(s.Source.Chain.Size(), s.Source.Chain.Extent)
}

// find asks the cluster: about each object what has changed since the base, or, without one, about those that exist.
func (s *search) find(ctx context.Context, base *changes.Base, list *extent.List) (changes.Result, error) {
	o := changes.Options{Base: base, Mode: changes.Precise, Parallel: s.Parallel, Progress: s.Progress}
	if base == nil {
		o.Mode = changes.Auto
	}
	return changes.Find(ctx, s.img, o, func(e rbd.Extent) error {
		return list.Add(extent.Extent{Offset: e.Offset, Length: e.Length, Data: true})
	})
}

// addStored adds what one file holds, or a chain, of so many bytes.
func (s *search) addStored(size int64, find func(off int64) (qcow2.Extent, error)) error {
	list := extent.NewList(s.Source.Size, unit)
	for off := int64(0); off < min(size, s.Source.Size); {
		e, err := find(off)
		if err != nil {
			return err
		}
		if e.Kind != qcow2.Unallocated {
			if err := list.Add(extent.Extent{Offset: e.Offset, Length: e.Length, Data: true}); err != nil {
				return err
			}
		}
		off = e.Offset + e.Length
	}
	s.lists = append(s.lists, list.Extents())
	return nil
}
