package backup

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// base is what an increment is made on: the newest point, and the snapshot that it was read from.
type base struct {
	point    *repo.Point
	chain    *repo.Chain
	snapshot rbd.Snapshot
}

// chooseBase gives the base of an increment, or nil and the reason why there has to be a full point. It fails where
// what there is can't be read now, which says nothing against it. The caller closes base.chain.
func (j *job) chooseBase(ctx context.Context) (b *base, reason string, err error) {
	newest := j.newest
	switch {
	case newest == nil:
		return nil, "first backup of this image", nil
	case j.Full:
		return nil, "asked for", nil
	case newest.State == repo.Damaged:
		return nil, fmt.Sprintf("newest point %s is damaged: %v", newest.Name, newest.Err), unreadable(newest.Err)
	}
	if reason, err := otherKey(newest, j.Repo.DigestKey); reason != "" || err != nil {
		return nil, reason, err
	}
	snapshotName := string(newest.Name)
	if newest.State != repo.Foreign {
		if reason := j.otherImage(newest.Identity); reason != "" {
			return nil, reason, nil
		}
		snapshotName = newest.Identity.Snapshot.Name
	}
	snapshot, ok := j.snapshot(snapshotName)
	if !ok {
		return nil, fmt.Sprintf("snapshot %s, which newest point %s was read from, is gone", snapshotName, newest.Name), nil
	}
	if reason := j.otherSnapshot(newest, snapshot); reason != "" {
		return nil, reason, nil
	}
	chain, err := j.folder.OpenProvedChain(ctx, newest.Name)
	if err != nil {
		return nil, fmt.Sprintf("chain of newest point %s can't be used: %v", newest.Name, err), unreadable(err)
	}
	b = &base{newest, chain, snapshot}
	for _, p := range chain.Points[1:] {
		if reason, err := otherKey(p, j.Repo.DigestKey); reason != "" || err != nil {
			return nil, reason, errors.Join(err, chain.Close())
		}
	}
	if err := chain.Refuse(); err != nil {
		return nil, err.Error(), chain.Close()
	}
	if err := j.checkContent(ctx, b); err != nil {
		err = errors.Join(err, chain.Close())
		return nil, fmt.Sprintf("chain of newest point %s can't be used: %v", newest.Name, err), unreadable(err)
	}
	return b, "", nil
}

// unreadable gives err where it is the system's or the cluster's, which may be over soon, and not the content's.
func unreadable(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) && errno != syscall.ENOENT {
		return err
	}
	return nil
}

// otherImage says why an identity is not of this image, "" if it is.
func (j *job) otherImage(id *repo.Identity) string {
	switch {
	case id.Repository != j.Repo.ID():
		return fmt.Sprintf("newest point %s belongs to another repository", id.Point)
	case id.Image.FSID != j.source.FSID:
		return fmt.Sprintf("newest point %s was made of another cluster, %s", id.Point, id.Image.FSID)
	case id.Image.PoolID != j.source.PoolID:
		return fmt.Sprintf("the pool was made anew: its id is %d, newest point %s was made of pool id %d",
			j.source.PoolID, id.Point, id.Image.PoolID)
	case id.Image.ID != j.ref.ID:
		return fmt.Sprintf("the image was made anew under its name: its id is %s, newest point %s was made of id %s",
			j.ref.ID, id.Point, id.Image.ID)
	}
	return ""
}

// otherKey says why the digests of a point and of those to come can't be in one chain, "" if they can. Without the key
// there is no going on: a chain whose digests need none is not what was asked for when this one was begun.
func otherKey(p *repo.Point, key *qcow2.DigestKey) (reason string, err error) {
	r := p.Header.Record // nil for the Python tool's
	keyed := r != nil && r.Digests == qcow2.BLAKE3
	switch {
	case keyed && key == nil:
		return "", fmt.Errorf("point %s: %w: give it (--digest-key-file), or begin a chain that needs none (--full)",
			p.Name, &qcow2.KeyError{Need: r.KeyID})
	case keyed && r.KeyID != key.ID():
		return fmt.Sprintf("digests of point %s were made with another key, %s", p.Name, r.KeyID), nil
	case !keyed && key != nil:
		return fmt.Sprintf("digests of point %s were made without the key", p.Name), nil
	}
	return "", nil
}

// adoptionSlack is how far the time of a snapshot of the Python tool may be from the time in its name.
const adoptionSlack = 5 * time.Minute

// madeAtItsName says that a snapshot named by seconds was made then, as the Python tool does it.
func madeAtItsName(s rbd.Snapshot) bool {
	return repo.IsForeignSnapshot(s.Name) && s.Time.Sub(repo.PointName(s.Name).Time()).Abs() <= adoptionSlack
}

// otherSnapshot says why a snapshot is not the one that the newest point was read from, "" if it is.
func (j *job) otherSnapshot(newest *repo.Point, s rbd.Snapshot) string {
	if newest.State != repo.Foreign {
		if id := newest.Identity.Snapshot.ID; s.ID != id {
			return fmt.Sprintf("snapshot %s was made anew: its id is %d, newest point %s was read from id %d",
				s.Name, s.ID, newest.Name, id)
		}
		return ""
	}
	if !madeAtItsName(s) {
		return fmt.Sprintf("snapshot %s was made at %s, which is not when point %s was",
			s.Name, s.Time.Format(time.RFC3339), newest.Name)
	}
	if (s.Size+511)/512*512 != newest.Header.Size {
		return fmt.Sprintf("snapshot %s has %d bytes, point %s has %d", s.Name, s.Size, newest.Name, newest.Header.Size)
	}
	return ""
}

// checkContent checks the points of the chain as far as their states demand: of what is good nothing more, all of a
// copy, and of what the Python tool made last a sample.
func (j *job) checkContent(ctx context.Context, b *base) error {
	image := b.chain.Image
	for _, p := range b.chain.Points {
		if p.State == repo.Copied {
			if err := j.checkCopy(ctx, p, image); err != nil {
				return fmt.Errorf("point %s: %w", p.Name, err)
			}
		}
		image = image.Backing()
	}
	unproved := b.point.State == repo.Copied && b.point.Header.Record.Digests == qcow2.NoDigest
	if b.point.State == repo.Foreign || unproved {
		return j.checkForeign(ctx, b)
	}
	return nil
}

// checkCopy verifies a point by its digests, and notes by its mtime that this has been done. One that data of the Python
// tool were folded into has none: nothing proves it, so that it stays what it is.
func (j *job) checkCopy(ctx context.Context, p *repo.Point, image *qcow2.Image) error {
	j.log.Info("point has another mtime or length than it was made with: verifying its digests", "point", p.Name)
	j.stale = true
	err := image.VerifyDigests(ctx)
	if errors.Is(err, qcow2.ErrNoDigests) {
		return image.CheckStructure(ctx)
	}
	if err != nil || j.DryRun {
		return err
	}
	// No harm if that is not allowed: the next run does it again.
	if err := p.Confirm(); err != nil {
		j.log.Debug("can't restore mtime", "point", p.Name, "error", err)
	}
	return nil
}

// snapshot finds a user snapshot of the image by its name.
func (j *job) snapshot(name string) (rbd.Snapshot, bool) {
	for _, s := range j.snapshots {
		if s.Kind == rbd.UserSnapshot && s.Name == name {
			return s, true
		}
	}
	return rbd.Snapshot{}, false
}

// ownSnapshots are this repository's snapshots of the image but for one.
func (j *job) ownSnapshots(keep string) []string {
	var names []string
	for _, s := range j.snapshots {
		if s.Kind == rbd.UserSnapshot && strings.HasPrefix(s.Name, j.Repo.SnapshotPrefix()) && s.Name != keep {
			names = append(names, s.Name)
		}
	}
	return names
}
