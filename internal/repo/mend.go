package repo

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/crashpoint"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// Mend puts a file in the place of a point's own: one that holds the same, with the same identity, but for damage. At every
// instant one of the two is there as a whole; who has the old one open reads on in that. It gets mode and owner of the old one,
// and the mtime that the point was made with. The caller holds the folder's lock, and with l the point's.
func (p *Point) Mend(file *Pending, l *PointLock) error {
	info, err := l.File(p.Name).Stat()
	if err != nil {
		return err
	}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		_ = file.Chown(int(sys.Uid), int(sys.Gid)) // only root can, and only for root does it matter
	}
	if err := file.Chmod(info.Mode()); err != nil {
		return err
	}
	if err := setTime(file.File, p.Created()); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	crashpoint.Reach(crashpoint.Synced)
	if err := file.nameTemporarily(); err != nil {
		return err
	}
	if err := file.replace(p.Path()); err != nil {
		return err
	}
	crashpoint.Reach(crashpoint.Linked)
	if err := SyncDir(p.Folder.Dir); err != nil {
		return err
	}
	crashpoint.Reach(crashpoint.DirectorySynced)
	return file.Close()
}

// OpenLockedAlone is OpenAlone for who has locked the point. The lock must outlive the chain.
func (f *Folder) OpenLockedAlone(ctx context.Context, name PointName, l *PointLock) (*Chain, error) {
	return (&Chain{prove: true, alone: true, held: l}).openAll(ctx, f, name)
}

// OpenMended opens a pending file that is to take the place of the point's, as OpenProvedChain opens a point. The file stays the
// caller's.
func (p *Point) OpenMended(ctx context.Context, file *Pending) (*Chain, error) {
	return p.openMended(ctx, file, &Chain{prove: true})
}

// OpenMendedAlone is OpenMended without the points below.
func (p *Point) OpenMendedAlone(ctx context.Context, file *Pending) (*Chain, error) {
	return p.openMended(ctx, file, &Chain{prove: true, alone: true})
}

func (p *Point) openMended(ctx context.Context, file *Pending, c *Chain) (*Chain, error) {
	c.wait, c.key = time.Now().Add(lockWait), p.Folder.key
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	c.Image, err = c.image(file.File, info.Size(), func(backing, _ string) (*qcow2.Image, error) {
		parent, ok := p.Folder.parseBacking(backing)
		if !ok {
			return nil, fmt.Errorf("open backing file %q: %w", backing, errOutside)
		}
		return c.open(ctx, p.Folder, parent, p)
	})
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}
