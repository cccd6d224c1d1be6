package repo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// maxChain bounds the number of files of a chain; QEMU becomes slow long before.
const maxChain = 4096

// errOutside is for backing names that lead out of the folder: this program follows none of them.
var errOutside = errors.New("backing file is no point of the folder")

// Chain is a point opened together with all points below it. Reads give what the guest had.
type Chain struct {
	*qcow2.Image
	Points []*Point // the opened one first, the full one last; foreign ones included
	files  []*os.File
	prove  bool
	alone  bool
	key    *qcow2.DigestKey
	held   *PointLock // whose files are used, and not closed; may be nil
	wait   time.Time  // until then files that are locked are waited for
}

// Close closes the files. Until then no point of the chain is folded.
func (c *Chain) Close() error {
	var errs []error
	for _, f := range c.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// OpenChain opens a point with everything below. It fails where a point below is missing, damaged, or not the one
// that its child was made on; where the same holds for the mtime alone, that is no error here. Where another process folds
// one of the points it waits, for half a minute at most.
func (f *Folder) OpenChain(ctx context.Context, name PointName) (*Chain, error) {
	return new(Chain).openAll(ctx, f, name)
}

// OpenProvedChain is OpenChain for those who rely on every byte: what they read is compared with the points' digests,
// and other content than was stored is a *qcow2.CorruptError. Points of the Python tool have none; see Unproved.
func (f *Folder) OpenProvedChain(ctx context.Context, name PointName) (*Chain, error) {
	return (&Chain{prove: true}).openAll(ctx, f, name)
}

// OpenLockedChain is OpenProvedChain for who has locked some of the points. The lock must outlive the chain.
func (f *Folder) OpenLockedChain(ctx context.Context, name PointName, l *PointLock) (*Chain, error) {
	return (&Chain{prove: true, held: l}).openAll(ctx, f, name)
}

// OpenAlone opens one point without those below it: for what concerns its own file. Nobody folds that meanwhile. It is proved, as by
// OpenProvedChain. The error is the point's own where it is Damaged.
func (f *Folder) OpenAlone(ctx context.Context, name PointName) (*Chain, error) {
	return (&Chain{prove: true, alone: true}).openAll(ctx, f, name)
}

// Unproved lists the points of a chain whose content nothing is known of to compare it with; where there is a key, also those
// whose digests were made without one.
func (c *Chain) Unproved() (points []*Point) {
	for image, i := c.Image, 0; image != nil && i < len(c.Points); image, i = image.Backing(), i+1 {
		if !image.Proved() || c.key != nil && !image.Keyed() {
			points = append(points, c.Points[i])
		}
	}
	return points
}

// CheckKey refuses points that a key was given for, but whose digests were made without it.
func (c *Chain) CheckKey() error {
	if unproved := c.Unproved(); c.key != nil && len(unproved) > 0 {
		return fmt.Errorf("open point %s: its digests were not made with the key given", unproved[0].Path())
	}
	return nil
}

func (c *Chain) openAll(ctx context.Context, f *Folder, name PointName) (_ *Chain, err error) {
	c.wait, c.key = time.Now().Add(lockWait), f.key
	if c.Image, err = c.open(ctx, f, name, nil); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// open opens one point, and by way of its header those below.
func (c *Chain) open(ctx context.Context, f *Folder, name PointName, child *Point) (*qcow2.Image, error) {
	if len(c.Points) == maxChain {
		return nil, fmt.Errorf("open chain: more than %d points", maxChain)
	}
	file, err := c.file(ctx, f, name)
	if err != nil {
		return nil, err
	}
	p := f.pointIn(name, file)
	switch {
	case p.State == Damaged:
		return nil, fmt.Errorf("open point %s: %w", p.Path(), p.Err)
	case p.State == Removing && child == nil && !c.alone:
		return nil, fmt.Errorf("open point %s: it is being removed; its file is that of %s already", p.Path(), p.Identity.Point)
	case child != nil && !p.carries(child):
		return nil, fmt.Errorf("open point %s: it is not the one that %s was made on", p.Path(), child.Name)
	}
	c.Points = append(c.Points, p)
	return c.image(file, p.FileSize, func(backing, format string) (*qcow2.Image, error) {
		if format != "qcow2" {
			return nil, fmt.Errorf("open backing file of %s: format %q, must be qcow2", p.Path(), format)
		}
		if backing == foreignBase && p.State == Foreign {
			return c.openEmpty(f)
		}
		parent, ok := f.parseBacking(backing)
		if !ok {
			return nil, fmt.Errorf("open backing file %q of %s: %w", backing, p.Path(), errOutside)
		}
		if !parent.Time().Before(name.Time()) {
			return nil, fmt.Errorf("open backing file %q of %s: it is not older", backing, p.Path())
		}
		return c.open(ctx, f, parent, p)
	})
}

// openEmpty opens the file below a full point of the Python tool.
func (c *Chain) openEmpty(f *Folder) (*qcow2.Image, error) {
	file, err := os.Open(filepath.Join(f.Dir, foreignBase))
	if err != nil {
		return nil, err
	}
	c.files = append(c.files, file)
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	return c.image(file, info.Size(), nil)
}

// file opens a point's file, so that nobody folds it.
func (c *Chain) file(ctx context.Context, f *Folder, name PointName) (*os.File, error) {
	if c.held != nil {
		if file := c.held.File(name); file != nil {
			return file, nil
		}
	}
	file, err := openShared(ctx, f.Path(name), c.wait)
	if err != nil {
		return nil, fmt.Errorf("open point: %w", err)
	}
	c.files = append(c.files, file)
	return file, nil
}

// opener opens the backing file that a header names.
type opener = func(name, format string) (*qcow2.Image, error)

func (c *Chain) image(file *os.File, length int64, backing opener) (*qcow2.Image, error) {
	img, err := qcow2.Open(file, length, qcow2.OpenOptions{Backing: backing, Prove: c.prove, Alone: c.alone, Key: c.key})
	if errors.As(err, new(*qcow2.KeyError)) {
		err = fmt.Errorf("%w (--digest-key-file)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", file.Name(), err)
	}
	return img, nil
}

// parseBacking gives the point that a backing name means: a file of the same folder, with or without "./" before it.
func (f *Folder) parseBacking(name string) (PointName, bool) {
	return parseFileName(f.Name, strings.TrimPrefix(name, "./"))
}
