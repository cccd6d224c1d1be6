package serve

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// disk is a point as its guest saw it.
type disk struct {
	folder *repo.Folder
	name   repo.PointName

	once     sync.Once // for load, which sets the rest
	err      error
	chain    *repo.Chain
	files    []os.FileInfo // of the chain's points
	size     int64         // true one, in bytes
	etag     string
	modified time.Time

	// For disks, under its lock:
	users  int
	expiry *time.Timer
}

var _ io.ReaderAt = (*disk)(nil)

func (d *disk) load() {
	if d.err = d.open(); d.err != nil {
		d.close()
	}
}

func (d *disk) open() (err error) {
	// Not the context of the request that came first: others wait for this too.
	if d.chain, err = d.folder.OpenProvedChain(context.Background(), d.name); err != nil {
		// Perhaps it was there when it was asked for, and has been pruned since.
		if _, statErr := os.Stat(d.folder.Path(d.name)); errors.Is(statErr, fs.ErrNotExist) {
			return notFoundf("image folder %q has no point %s", d.folder.Name, d.name)
		}
		return err
	}
	if err := d.chain.CheckKey(); err != nil {
		return err
	}
	for _, p := range d.chain.Points {
		info, err := os.Stat(p.Path())
		if err != nil {
			return err
		}
		if info.Size() != p.FileSize || !info.ModTime().Equal(p.ModTime) {
			return fmt.Errorf("open point %s: it has changed meanwhile", p.Path())
		}
		d.files = append(d.files, info)
	}
	point := d.chain.Points[0]
	d.size = point.Header.Size
	if point.Identity != nil {
		d.size = point.Identity.Image.Size
	}
	if d.size < 0 {
		return fmt.Errorf("open point %s: virtual size %d", point.Path(), d.size)
	}
	d.etag, d.modified = etag(d.chain.Points), point.Created()
	return nil
}

// etag is a strong validator: by the identity that the point was made with, which names those below and outlives their
// removal, and where an identity does not prove its file, by that file's length and time.
func etag(chain []*repo.Point) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s %s\n", chain[0].Name, chain[0].OriginHash())
	for _, p := range chain {
		if p.State != repo.Good {
			fmt.Fprintf(h, "%d %d\n", p.FileSize, p.ModTime.UnixNano())
		}
	}
	return fmt.Sprintf(`"%x"`, h.Sum(nil)[:16])
}

// isCurrent says whether the files of the chain are still those that are open.
func (d *disk) isCurrent() bool {
	for i, p := range d.chain.Points {
		info, err := os.Stat(p.Path())
		was := d.files[i]
		if err != nil || !os.SameFile(info, was) || info.Size() != was.Size() || !info.ModTime().Equal(was.ModTime()) {
			return false
		}
	}
	return true
}

// ReadAt implements io.ReaderAt. What a file lacks at the end, which has whole sectors only, reads as zeroes.
func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	n := min(int64(len(p)), d.size-off)
	if n <= 0 {
		return 0, io.EOF
	}
	stored := max(0, min(n, d.chain.Size()-off))
	if done, err := d.chain.ReadAt(p[:stored], off); err != nil {
		return done, err
	}
	clear(p[stored:n])
	return int(n), nil
}

// close closes what load has opened, if it has.
func (d *disk) close() {
	if d.chain != nil {
		_ = d.chain.Close() // it was read only
	}
}
