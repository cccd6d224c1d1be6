package rbdtest

import (
	"encoding/binary"
	"fmt"
	"slices"

	librbd "github.com/ceph/go-ceph/rbd"
)

// Image is an image, open for writing: it holds the exclusive lock as soon as it has written, as a virtual machine does.
// All that go-ceph's image can do, it can do.
type Image struct {
	*librbd.Image
	Name, ID string
	pool     *Pool
}

// Open opens the image again that was closed.
func (i *Image) Open() (err error) {
	i.Image, err = librbd.OpenImage(i.pool.ioctx, i.Name, librbd.NoSnapshot)
	return err
}

// Reopen closes and opens the image, which gives up its lock.
func (i *Image) Reopen() error {
	if err := i.Close(); err != nil {
		return err
	}
	return i.Open()
}

// Bytes returns the size.
func (i *Image) Bytes() (int64, error) {
	size, err := i.GetSize()
	return int64(size), err
}

// Zero writes zeroes, exactly where it is told to.
func (i *Image) Zero(off, length int64) error {
	if rest := length % 512; rest > 0 { // librbd repeats whole sectors
		if _, err := i.WriteAt(make([]byte, rest), off+length-rest); err != nil {
			return err
		}
		length -= rest
	}
	if length == 0 {
		return nil
	}
	_, err := i.WriteSame(uint64(off), uint64(length), make([]byte, 512), 0)
	return err
}

// Same writes a pattern of 512 bytes again and again.
func (i *Image) Same(off, sectors int64, pattern []byte) error {
	_, err := i.WriteSame(uint64(off), uint64(sectors*512), pattern, 0)
	return err
}

// Trim discards a range; librbd's options say how much of it.
func (i *Image) Trim(off, length int64) error {
	_, err := i.Discard(uint64(off), uint64(length))
	return err
}

// Sparsify frees what is zero.
func (i *Image) Sparsify() error {
	return i.SparsifyWithProgress(4096, func(uint64, uint64, any) int { return 0 }, nil)
}

// Snapshot is an image opened at one of its snapshots, to be closed.
type Snapshot struct{ image *librbd.Image }

// At opens the image at a snapshot, or at its head if name is empty.
func (i *Image) At(name string) (*Snapshot, error) {
	img, err := librbd.OpenImageByIdReadOnly(i.pool.ioctx, i.ID, name)
	return &Snapshot{img}, err
}

// Close closes the image at the snapshot.
func (s *Snapshot) Close() error { return s.image.Close() }

// Content reads all.
func (s *Snapshot) Content() ([]byte, error) {
	size, err := s.image.GetSize()
	if err != nil || size == 0 {
		return nil, err
	}
	data := make([]byte, size)
	_, err = s.image.ReadAt(data, 0)
	return data, err
}

// Extent is a range of an image that differs; Exists tells data from a hole.
type Extent struct {
	Offset, Length int64
	Exists         bool
}

// FastDiff is librbd's own diff by whole objects since an older snapshot, by name (rbd_diff_iterate2).
func (s *Snapshot) FastDiff(from string) ([]Extent, error) {
	size, err := s.image.GetSize()
	if err != nil || size == 0 { // librbd would abort
		return nil, err
	}
	var extents []Extent
	err = s.image.DiffIterate(librbd.DiffIterateConfig{
		SnapName:    from,
		Length:      size,
		WholeObject: librbd.EnableWholeObject,
		Callback: func(off, length uint64, exists int, _ any) int {
			extents = append(extents, Extent{int64(off), int64(length), exists != 0})
			return 0
		},
	})
	return extents, err
}

// SnapshotIDs returns the ids of the snapshots of all namespaces, in no particular order.
func (i *Image) SnapshotIDs() ([]uint64, error) {
	infos, err := i.GetSnapshotNames()
	var ids []uint64
	for _, s := range infos {
		ids = append(ids, s.Id)
	}
	return ids, err
}

// SnapSeq returns the id of the last snapshot that was made, from the image's header.
func (i *Image) SnapSeq() (uint64, error) {
	const key = "snap_seq"
	values, err := i.pool.ioctx.GetOmapValues("rbd_header."+i.ID, "", key, 1)
	if err != nil {
		return 0, err
	}
	if len(values[key]) < 8 {
		return 0, fmt.Errorf("header has no %s", key)
	}
	return binary.LittleEndian.Uint64(values[key]), nil
}

// Snapshots returns the names of the snapshots of the user namespace, oldest first.
func (i *Image) Snapshots() ([]string, error) {
	infos, err := i.GetSnapshotNames()
	if err != nil {
		return nil, err
	}
	slices.SortFunc(infos, func(a, b librbd.SnapInfo) int { return int(a.Id) - int(b.Id) })
	var names []string
	for _, s := range infos {
		kind, err := i.GetSnapNamespaceType(s.Id)
		if err != nil {
			continue // removed meanwhile
		}
		if kind == librbd.SnapNamespaceTypeUser {
			names = append(names, s.Name)
		}
	}
	return names, nil
}

// MakeSnapshot makes a snapshot.
func (i *Image) MakeSnapshot(name string) error {
	_, err := i.CreateSnapshot(name)
	return err
}

// RemoveSnapshot removes a snapshot. One that has clones goes to the trash.
func (i *Image) RemoveSnapshot(name string) error { return i.GetSnapshot(name).Remove() }

// Rollback rolls back to a snapshot.
func (i *Image) Rollback(name string) error { return i.GetSnapshot(name).Rollback() }

// Tracked tells whether the image has object-map and fast-diff.
func (i *Image) Tracked() (objectMap, fastDiff bool, err error) {
	features, err := i.GetFeatures()
	return features&librbd.FeatureObjectMap != 0, features&librbd.FeatureFastDiff != 0, err
}

// SetTracking enables or disables object-map and fast-diff.
func (i *Image) SetTracking(on bool) error { return i.UpdateFeatures(Tracking, on) }

// SetFastDiff enables or disables fast-diff alone.
func (i *Image) SetFastDiff(on bool) error { return i.UpdateFeatures(librbd.FeatureFastDiff, on) }

// Rebuild rebuilds the object map of a snapshot, or of the head if snapshot is empty.
func (i *Image) Rebuild(snapshot string) error {
	_, err := i.pool.TryRBD("object-map", "rebuild", "--no-progress", i.Spec(snapshot))
	return err
}

// CheckMap lets librbd compare the object map of a snapshot with the objects, and mark it invalid if it is wrong.
func (i *Image) CheckMap(snapshot string) error {
	_, err := i.pool.TryRBD("object-map", "check", "--no-progress", i.Spec(snapshot))
	return err
}

// MapObject returns the name of the RADOS object that holds the object map of a snapshot, or of the head if id is 0.
func (i *Image) MapObject(id uint64) string {
	if id == 0 {
		return "rbd_object_map." + i.ID
	}
	return fmt.Sprintf("rbd_object_map.%s.%016x", i.ID, id)
}

// Destroy removes the image and all its snapshots, in groups or not.
func (i *Image) Destroy() error {
	names, err := i.Snapshots()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := i.RemoveSnapshot(name); err != nil {
			return err
		}
	}
	if err := i.Close(); err != nil {
		return err
	}
	return i.pool.Remove(i.Name)
}

// Spec returns the name of the image, or with a name of one of its snapshots, as the rbd program takes it.
func (i *Image) Spec(snapshot string) string {
	if snapshot == "" {
		return i.pool.Spec(i.Name)
	}
	return i.pool.Spec(i.Name + "@" + snapshot)
}
