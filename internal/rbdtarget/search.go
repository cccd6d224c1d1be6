package rbdtarget

import (
	"context"
	"errors"
	"slices"

	"github.com/rbd2qcow2/rbd2qcow2/internal/changes"
	"github.com/rbd2qcow2/rbd2qcow2/internal/extent"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// unit is what places that may differ are widened to, in bytes: little, for all that is found there is compared.
const unit = 4096

// mapped is how much of the chain is mapped at once, in bytes.
const mapped = 64 << 20

// search finds the places where an image may differ from a point.
type search struct {
	InPlaceRequest
	img    *rbd.Image // its head
	places []extent.Extent
	method string
	reason string
}

// differing gives them in ascending order.
func (s *search) differing(ctx context.Context) (_ []extent.Extent, err error) {
	if s.reason, err = s.whyCompare(ctx); err == nil && s.reason == "" {
		err = s.byDiff(ctx)
	}
	if err == nil && s.method == "" {
		s.places = nil
		err = s.byContent(ctx)
	}
	return s.places, err
}

// add adds places.
func (s *search) add(list *extent.List) { s.places = extent.Union(s.places, list.Extents()) }

// whyCompare says why changes can't be told from the newest point on, or "".
func (s *search) whyCompare(ctx context.Context) (string, error) {
	if s.Newest == nil {
		return s.NoNewest, nil
	}
	id := s.Newest.Points[0].Identity
	switch {
	case id == nil:
		return "the newest point does not tell what image it is of", nil
	case id.Image.FSID != s.FSID || id.Image.PoolID != s.Pool.ID() || id.Image.Namespace != s.Pool.Namespace() || id.Image.ID != s.img.ID():
		return "it is another image than the one that was backed up", nil
	}
	gone, err := s.gone(ctx, rbd.Snapshot{ID: id.Snapshot.ID, Name: id.Snapshot.Name})
	if gone {
		return "the newest point's snapshot is gone", nil
	}
	return "", err
}

// gone says whether the image has a snapshot no longer.
func (s *search) gone(ctx context.Context, snapshot rbd.Snapshot) (bool, error) {
	now, err := s.Pool.SnapshotID(ctx, s.img.ID(), snapshot.Name)
	if errors.Is(err, rbd.ErrNotFound) {
		return true, nil
	}
	return err == nil && now != snapshot.ID, err
}

// byDiff takes what has changed in the image since the newest point, and what has in the chain since the point wanted.
func (s *search) byDiff(ctx context.Context) error {
	id := s.Newest.Points[0].Identity
	snapshot := rbd.Snapshot{ID: id.Snapshot.ID, Name: id.Snapshot.Name, Kind: rbd.UserSnapshot, Size: id.Snapshot.Size}
	list := extent.NewList(s.Source.Size, unit)
	found, err := s.find(ctx, changes.NewBase(snapshot, id), list)
	// librbd finds nothing, without an error, where the snapshot was removed meanwhile.
	if gone, goneErr := s.gone(ctx, snapshot); gone || goneErr != nil {
		s.reason = "the newest point's snapshot was removed meanwhile"
		return goneErr
	}
	if err != nil {
		return err
	}
	if found.Unprovable {
		s.reason = found.Reason
		return nil
	}
	s.add(list)
	known := min(s.Source.Size, s.img.Size(), snapshot.Size) // of the sizes that the disk had the least
	wanted := s.Source.Chain.Points[0].Name
	for i, file := 0, s.Newest.Image; s.Newest.Points[i].Name != wanted; i, file = i+1, file.Backing() {
		stored := func(off int64) ([]qcow2.Extent, error) {
			e, err := file.FileExtent(off)
			return []qcow2.Extent{e}, err
		}
		if err := s.addStored(ctx, 0, file.Size(), stored); err != nil {
			return s.giveUpDiff(err)
		}
		known = min(known, file.Size())
	}
	// Behind that, anything may differ that either side has.
	if err := s.addContent(ctx, known); err != nil {
		return err
	}
	s.method, s.reason = MethodDiff, "since the newest point's snapshot: "+found.Method+", "+found.Reason
	return nil
}

// giveUpDiff takes damage of a newer point for a reason to compare, and no more.
func (s *search) giveUpDiff(err error) error {
	var corrupt *qcow2.CorruptError
	if !errors.As(err, &corrupt) {
		return err
	}
	s.reason = "a newer point is damaged: " + err.Error()
	return nil
}

// byContent takes what the image has, and what the point has.
func (s *search) byContent(ctx context.Context) error {
	s.method = MethodCompare
	return s.addContent(ctx, 0)
}

// addContent adds what either side has from an offset on.
func (s *search) addContent(ctx context.Context, from int64) error {
	if from >= s.Source.Size {
		return nil
	}
	list := extent.NewList(s.Source.Size, unit)
	if _, err := s.find(ctx, nil, list); err != nil {
		return err
	}
	behind := slices.DeleteFunc(list.Extents(), func(e extent.Extent) bool { return e.End() <= from })
	s.places = extent.Union(s.places, behind)
	return s.addStored(ctx, from, s.Source.Size, func(off int64) ([]qcow2.Extent, error) {
		return s.Source.Chain.Extents(nil, off, mapped)
	})
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

// addStored adds what the chain, or one file of it, holds between two offsets. find gives some extents from an offset on.
func (s *search) addStored(ctx context.Context, from, end int64, find func(off int64) ([]qcow2.Extent, error)) error {
	list := extent.NewList(s.Source.Size, unit)
	for off := from; off < min(end, s.Source.Size); {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		extents, err := find(off)
		if err != nil || len(extents) == 0 {
			return err
		}
		for _, e := range extents {
			off = e.Offset + e.Length
			if e.Kind == qcow2.Unallocated {
				continue
			}
			if err := list.Add(extent.Extent{Offset: e.Offset, Length: e.Length, Data: true}); err != nil {
				return err
			}
		}
	}
	s.add(list)
	return nil
}
