package rbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Flags tells what of an image's or a snapshot's change tracking is invalid,
// RBD_FLAG_* of librbd.
type Flags uint64

// The flags.
const (
	FlagObjectMapInvalid = Flags(1)
	FlagFastDiffInvalid  = Flags(2)
)

// String returns the flags as "rbd info" prints them.
func (f Flags) String() string {
	var names []string
	if f&FlagObjectMapInvalid != 0 {
		names = append(names, "object map invalid")
	}
	if f&FlagFastDiffInvalid != 0 {
		names = append(names, "fast diff invalid")
	}
	return strings.Join(names, ", ")
}

// Info describes an image at the point that it is open at.
type Info struct {
	Name        string // empty for an image in the trash
	ID          string
	Size        int64 // bytes
	ObjectSize  int64 // bytes
	StripeUnit  int64 // bytes
	StripeCount int64
	Features    Features
	Flags       Flags
	DataPool    string // name; empty if the data is in the image's own pool
	Parent      *Parent
	SnapSeq     uint64 // id of the last snapshot ever made, at the time of the call
}

// Parent is the snapshot that a clone was made from.
type Parent struct {
	PoolID       int64
	Pool         string
	Namespace    string
	Image        string
	ImageID      string
	Snapshot     string
	SnapshotID   uint64
	Overlap      int64 // bytes from the start that may come from the parent
	ImageInTrash bool
}

// Info asks librbd for everything but SnapSeq, which is read from the image's
// header object.
func (i *Image) Info(ctx context.Context) (Info, error) {
	info, err := call(ctx, i.handle, i.info, nil)
	return info, fail("describe image", i.spec, err)
}

func (i *Image) info() (info Info, err error) {
	info = Info{
		ID: i.id, Size: i.size, ObjectSize: i.objectSize,
		StripeUnit: i.stripeUnit, StripeCount: i.stripeCount, Features: i.features,
	}
	err = i.useBeside(func(n native) (err error) {
		if info.Flags, err = n.flags(); err != nil {
			return err
		}
		info.Name, err = n.name()
		return err
	})
	if err != nil {
		return info, err
	}
	if info.Parent, err = i.parent(); err != nil {
		return info, err
	}
	if info.DataPool, err = i.dataPool(); err != nil {
		return info, err
	}
	info.SnapSeq, err = i.snapSeq()
	return info, err
}

// Parent returns the parent that the image has at the point that it is open
// at, nil where it has none (rbd_get_parent, rbd_get_overlap).
func (i *Image) Parent(ctx context.Context) (*Parent, error) {
	p, err := call(ctx, i.handle, i.parent, nil)
	return p, fail("find parent of", i.spec, err)
}

func (i *Image) parent() (*Parent, error) {
	p, err := i.image.GetParent()
	if err = translate(err); errors.Is(err, ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	overlap, err := i.image.GetOverlap()
	if err != nil {
		return nil, err
	}
	if overlap > maxSize {
		return nil, fmt.Errorf("header holds an impossible number: overlap %d", overlap)
	}
	return &Parent{
		PoolID: int64(p.Image.PoolID), Pool: p.Image.PoolName, Namespace: p.Image.PoolNamespace,
		Image: p.Image.ImageName, ImageID: p.Image.ImageID, ImageInTrash: p.Image.Trash,
		Snapshot: p.Snap.SnapName, SnapshotID: p.Snap.ID, Overlap: int64(overlap),
	}, nil
}

func (i *Image) dataPool() (string, error) {
	id, err := i.image.GetDataPoolID()
	if err != nil || id == i.pool.id {
		return "", err
	}
	return i.pool.cluster.reader.rados.GetPoolByID(id)
}

// snapSeq reads the key snap_seq of the header object, a little-endian 64-bit
// number (cls_rbd). librbd has no call for it.
func (i *Image) snapSeq() (uint64, error) {
	const key = "snap_seq"
	values, err := i.pool.ioctx.GetOmapValues(headerObject(i.id), "", key, 1)
	if err != nil {
		return 0, err
	}
	value, ok := values[key]
	if !ok || len(value) < 8 {
		return 0, fmt.Errorf("header object has no valid %s", key)
	}
	return binary.LittleEndian.Uint64(value), nil
}

func headerObject(imageID string) string { return "rbd_header." + imageID }

// Metadata returns the image's key-value pairs, whatever point it is open at.
func (i *Image) Metadata(ctx context.Context) (map[string]string, error) {
	pairs, err := call(ctx, i.handle, func() (pairs map[string]string, err error) {
		err = i.useBeside(func(n native) error {
			pairs, err = n.metadata()
			return err
		})
		return pairs, err
	}, nil)
	return pairs, fail("read metadata of", i.spec, err)
}
