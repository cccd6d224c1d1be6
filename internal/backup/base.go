package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// base is what an increment is made on: the newest point, and the snapshot that it was read from.
type base struct {
	point    *repo.Point
	chain    *repo.Chain
	snapshot rbd.Snapshot
}

// chooseBase gives the base of an increment, or nil and the reason why there has to be a full point.
// The caller closes base.chain.
func (j *job) chooseBase(ctx context.Context) (b *base, reason string) {
	newest := j.newest
	switch {
	case newest == nil:
		return nil, "first backup of this image"
	case j.Full:
		return nil, "asked for"
	case newest.State == repo.Damaged:
		return nil, fmt.Sprintf("newest point %s is damaged: %v", newest.Name, newest.Err)
	}
	snapshotName := string(newest.Name)
	if newest.State != repo.Foreign {
		if reason := j.otherImage(newest.Identity); reason != "" {
			return nil, reason
		}
		snapshotName = newest.Identity.Snapshot.Name
	}
	snapshot, ok := j.snapshot(snapshotName)
	if !ok {
		return nil, fmt.Sprintf("snapshot %s, which newest point %s was read from, is gone", snapshotName, newest.Name)
	}
	if reason := j.otherSnapshot(newest, snapshot); reason != "" {
		return nil, reason
	}
	chain, err := j.folder.OpenChain(newest.Name)
	if err != nil {
		return nil, fmt.Sprintf("chain of newest point %s can't be used: %v", newest.Name, err)
	}
	b = &base{newest, chain, snapshot}
	if err := j.checkContent(ctx, b); err != nil {
		return nil, fmt.Sprintf("newest point %s can't be used: %v", newest.Name, errors.Join(err, chain.Close()))
	}
	return b, ""
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

// adoptionSlack is how far the time of a snapshot of the Python tool may be from the time in its name.
const adoptionSlack = 5 * time.Minute

// otherSnapshot says why a snapshot is not the one that the newest point was read from, "" if it is.
func (j *job) otherSnapshot(newest *repo.Point, s rbd.Snapshot) string {
	if newest.State != repo.Foreign {
		if id := newest.Identity.Snapshot.ID; s.ID != id {
			return fmt.Sprintf("snapshot %s was made anew: its id is %d, newest point %s was read from id %d",
				s.Name, s.ID, newest.Name, id)
		}
		return ""
	}
	if d := s.Time.Sub(newest.Name.Time()).Abs(); d > adoptionSlack {
		return fmt.Sprintf("snapshot %s was made at %s, which is not when point %s was",
			s.Name, s.Time.Format(time.RFC3339), newest.Name)
	}
	if (s.Size+511)/512*512 != newest.Header.Size {
		return fmt.Sprintf("snapshot %s has %d bytes, point %s has %d", s.Name, s.Size, newest.Name, newest.Header.Size)
	}
	return ""
}

// checkContent checks the newest point as far as its state demands: nothing that is good, all of a copy, a sample of
// what the Python tool made.
func (j *job) checkContent(ctx context.Context, b *base) error {
	switch b.point.State {
	case repo.Copied:
		j.log.Info("newest point has another mtime than it was made with: verifying its digests", "point", b.point.Name)
		if err := b.chain.VerifyDigests(ctx); err != nil {
			return err
		}
		if j.DryRun {
			return nil
		}
		// So that the next run need not do it again; no harm if that is not allowed.
		created := b.point.Identity.Created
		if err := os.Chtimes(b.point.Path(), created, created); err != nil {
			j.log.Debug("can't restore mtime", "point", b.point.Name, "error", err)
		}
	case repo.Foreign:
		return j.checkForeign(ctx, b)
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
