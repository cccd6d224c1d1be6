package rbd

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	librbd "github.com/ceph/go-ceph/rbd"
)

// SnapshotKind is the namespace of a snapshot: only user snapshots are found by name.
type SnapshotKind string

// The kinds, as RBD_SNAP_NAMESPACE_TYPE_*.
const (
	UserSnapshot   SnapshotKind = "user"
	GroupSnapshot  SnapshotKind = "group"
	TrashSnapshot  SnapshotKind = "trash"
	MirrorSnapshot SnapshotKind = "mirror"
)

// Snapshot describes one snapshot of an image.
type Snapshot struct {
	ID        uint64
	Name      string
	Kind      SnapshotKind
	Size      int64 // bytes
	Time      time.Time
	Protected bool // user snapshots only
	Flags     Flags
	// TrashedName is the name that a trash snapshot had as a user snapshot. Every removal takes a snapshot through the
	// trash where clones do without protection: one that is cut short leaves it there, for nobody to see.
	TrashedName string
}

// Snapshots returns the snapshots of all kinds that existed when the image was
// opened, and still did at the first call of any of Info, Metadata or Snapshots,
// in order of their ids.
func (i *Image) Snapshots(ctx context.Context) ([]Snapshot, error) {
	snaps, err := call(ctx, i.handle, i.snapshots, nil)
	return snaps, fail("list snapshots of", i.spec, err)
}

func (i *Image) snapshots() ([]Snapshot, error) {
	listed, err := i.image.GetSnapshotNames()
	if err != nil {
		return nil, err
	}
	snaps := make([]Snapshot, 0, len(listed))
	err = i.useBeside(func(n native) error {
		defer i.returnBeside()
		for _, s := range listed {
			if s.Size > maxSize {
				return fmt.Errorf("header holds an impossible number: snapshot size %d", s.Size)
			}
			snap := Snapshot{ID: s.Id, Name: s.Name, Size: int64(s.Size)}
			switch err := translate(i.describe(n, &snap)); {
			case errors.Is(err, ErrNotFound): // removed since the image was opened
			case err != nil:
				return fmt.Errorf("snapshot %d: %w", s.Id, err)
			default:
				snaps = append(snaps, snap)
			}
		}
		return nil
	})
	return snaps, err
}

func (i *Image) describe(n native, s *Snapshot) error {
	kind, err := i.image.GetSnapNamespaceType(s.ID)
	if err != nil {
		return err
	}
	s.Kind = kindOf(kind)
	t, err := i.image.GetSnapTimestamp(s.ID)
	if err != nil {
		return err
	}
	s.Time = time.Unix(t.Sec, t.Nsec).UTC()
	if s.Kind == UserSnapshot && s.Name != "" {
		if s.Protected, err = i.image.GetSnapshot(s.Name).IsProtected(); err != nil {
			return err
		}
	}
	if s.Kind == TrashSnapshot {
		if s.TrashedName, err = i.image.GetSnapTrashNamespace(s.ID); err != nil {
			return err
		}
	}
	if err := n.setSnapshot(s.ID); err != nil {
		return err
	}
	s.Flags, err = n.flags()
	return err
}

// SnapshotID asks anew for the id of a snapshot of the user namespace; ids are
// never used twice in a pool. Errors match ErrNotFound.
//
// Ask again after the last Read and Diff at or from a snapshot: librbd reports
// no error when the snapshot is removed meanwhile, but reads zeros and finds
// no changes. The name goes before the data do, so that a snapshot that still
// has its id then was whole all the time.
func (p *Pool) SnapshotID(ctx context.Context, imageID, snapshot string) (uint64, error) {
	ids, err := p.SnapshotIDs(ctx, imageID, snapshot)
	if err != nil {
		return 0, err
	}
	return ids[0], nil
}

// SnapshotIDs is SnapshotID for several snapshots of one image, with one look at it.
func (p *Pool) SnapshotIDs(ctx context.Context, imageID string, snapshots ...string) ([]uint64, error) {
	for _, name := range append([]string{imageID}, snapshots...) {
		if err := checkName(name); err != nil {
			return nil, fail("find snapshot", p.idSpec(imageID, name), err)
		}
	}
	ids, err := call(ctx, p.handle, func() (ids []uint64, err error) {
		err = withNative(p.ioctx, imageID, "", func(n native) error {
			for _, name := range snapshots {
				id, err := n.snapshotID(name)
				if err != nil {
					return fail("find snapshot", p.idSpec(imageID, name), err)
				}
				ids = append(ids, id)
			}
			return nil
		})
		return ids, err
	}, nil)
	if err != nil && !errors.As(err, new(*Error)) {
		err = fail("find snapshots of", p.idSpec(imageID, ""), err)
	}
	return ids, err
}

func kindOf(t librbd.SnapNamespaceType) SnapshotKind {
	switch t {
	case librbd.SnapNamespaceTypeUser:
		return UserSnapshot
	case librbd.SnapNamespaceTypeGroup:
		return GroupSnapshot
	case librbd.SnapNamespaceTypeTrash:
		return TrashSnapshot
	case 3: // RBD_SNAP_NAMESPACE_TYPE_MIRROR, which go-ceph lacks
		return MirrorSnapshot
	}
	return SnapshotKind(fmt.Sprintf("unknown-%d", t))
}

// CreateSnapshot makes a snapshot in the user namespace (rbd_snap_create). For
// that librbd takes the image's exclusive lock if nobody holds it, or asks the
// holder, such as a running VM, to make the snapshot; the image is open for
// writing just for the call.
//
// An error that matches ErrExists, ErrNotFound, ErrPermission, ErrQuota,
// ErrNotPrimary, ErrMigrating or ErrLocked means that there is no new snapshot.
// After any other error, ErrAbandoned and ErrTimeout above all, it may exist or
// come into being later: list the snapshots before drawing conclusions, and
// again at the next run. ErrLocked comes with a [*LockedError].
func (p *Pool) CreateSnapshot(ctx context.Context, imageID, snapshot string) error {
	return p.change(ctx, "create snapshot", imageID, snapshot, func(img *librbd.Image) error {
		features, err := img.GetFeatures()
		if err != nil {
			return err
		}
		if Features(features).Has(FeatureNonPrimary) {
			return ErrNotPrimary
		}
		if Features(features).Has(FeatureMigrating) {
			return ErrMigrating
		}
		_, err = img.CreateSnapshot(snapshot)
		return err
	})
}

// RemoveSnapshot removes a snapshot of the user namespace (rbd_snap_remove).
// Errors match ErrNotFound, ErrBusy (protected, or with clones) and those of
// [Pool.CreateSnapshot]; after other errors it may be gone later.
func (p *Pool) RemoveSnapshot(ctx context.Context, imageID, snapshot string) error {
	return p.change(ctx, "remove snapshot", imageID, snapshot, func(img *librbd.Image) error {
		return img.GetSnapshot(snapshot).Remove()
	})
}

// RemoveTrashedSnapshot completes the removal of a snapshot that is in the trash
// (rbd_snap_remove_by_id). Errors are those of [Pool.RemoveSnapshot]; ErrBusy
// says that it has clones, the last of which takes it along.
func (p *Pool) RemoveTrashedSnapshot(ctx context.Context, imageID string, s Snapshot) error {
	return p.change(ctx, "remove trashed snapshot", imageID, s.Name, func(img *librbd.Image) error {
		kind, err := img.GetSnapNamespaceType(s.ID)
		if err != nil {
			return err
		}
		if kindOf(kind) != TrashSnapshot {
			return syscall.EINVAL
		}
		return img.RemoveSnapByID(s.ID)
	})
}

// change runs f with the image open for writing, on the connection for
// snapshots, and closes it at once: an image that stays open keeps the lock. If
// the call is abandoned it still closes the image in the end.
func (p *Pool) change(ctx context.Context, op, imageID, snapshot string, f func(*librbd.Image) error) error {
	object := p.idSpec(imageID, snapshot)
	if imageID == "" || snapshot == "" {
		return fail(op, object, syscall.EINVAL)
	}
	if err := errors.Join(checkName(imageID), checkName(snapshot)); err != nil {
		return fail(op, object, err)
	}
	conn, err := p.cluster.snapshotConn(ctx)
	if err != nil {
		return fail(op, object, err)
	}
	err = do(ctx, conn.handle, func() error {
		ioctx, err := p.ioctxOn(conn)
		if err != nil {
			return err
		}
		defer ioctx.Destroy()
		img, err := librbd.OpenImageById(ioctx, imageID, librbd.NoSnapshot)
		if err != nil {
			return err
		}
		err = translate(f(img))
		if closeErr := img.Close(); closeErr != nil {
			p.cluster.cfg.Logger.Debug("close image after "+op, "image", object, "error", closeErr)
		}
		if errors.Is(err, syscall.EROFS) {
			err = p.lockedError(ioctx, imageID, err)
		}
		return err
	})
	return fail(op, object, err)
}

// ioctxOn returns an I/O context for p on another connection.
func (p *Pool) ioctxOn(c *conn) (*rados.IOContext, error) {
	ioctx, err := c.rados.OpenIOContext(p.name)
	if err != nil {
		return nil, err
	}
	ioctx.SetNamespace(p.namespace)
	return ioctx, nil
}
