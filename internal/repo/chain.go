package repo

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

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
}

// Close closes the files.
func (c *Chain) Close() error {
	var errs []error
	for _, f := range c.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// OpenChain opens a point with everything below. It fails where a point below is missing, damaged, or not the one
// that its child was made on; where the same holds for the mtime alone, that is no error here.
func (f *Folder) OpenChain(name PointName) (*Chain, error) { return openChain(f, name, false) }

// OpenProvedChain is OpenChain for those who rely on every byte: what they read is compared with the points' digests,
// and other content than was stored is a *qcow2.CorruptError. Points of the Python tool have none; see Unproved.
func (f *Folder) OpenProvedChain(name PointName) (*Chain, error) { return openChain(f, name, true) }

// Unproved lists the points of a chain whose content nothing is known of to compare it with.
func (c *Chain) Unproved() (points []*Point) {
	for image, i := c.Image, 0; image != nil && i < len(c.Points); image, i = image.Backing(), i+1 {
		if !image.Proved() {
			points = append(points, c.Points[i])
		}
	}
	return points
}

func openChain(f *Folder, name PointName, prove bool) (*Chain, error) {
	c := &Chain{prove: prove}
	img, err := c.open(f, name, nil)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	c.Image = img
	return c, nil
}

// open opens one point, and by way of its header those below.
func (c *Chain) open(f *Folder, name PointName, child *Identity) (*qcow2.Image, error) {
	if len(c.Points) == maxChain {
		return nil, fmt.Errorf("open chain: more than %d points", maxChain)
	}
	p := f.Point(name)
	if p.State == Damaged {
		return nil, fmt.Errorf("open point %s: %w", p.Path(), p.Err)
	}
	if child != nil && child.Parent != nil && child.Parent.IdentitySHA256 != "" &&
		child.Parent.IdentitySHA256 != HashIdentity(p.IdentityRaw) {
		return nil, fmt.Errorf("open point %s: it is not the one that %s was made on", p.Path(), child.Point)
	}
	c.Points = append(c.Points, p)
	return c.openFile(p.Path(), func(backing, format string) (*qcow2.Image, error) {
		if format != "qcow2" {
			return nil, fmt.Errorf("open backing file of %s: format %q, must be qcow2", p.Path(), format)
		}
		if backing == foreignBase && p.State == Foreign {
			return c.openFile(filepath.Join(f.Dir, foreignBase), nil)
		}
		parent, ok := f.parseBacking(backing)
		if !ok {
			return nil, fmt.Errorf("open backing file %q of %s: %w", backing, p.Path(), errOutside)
		}
		if !parent.Time().Before(name.Time()) {
			return nil, fmt.Errorf("open backing file %q of %s: it is not older", backing, p.Path())
		}
		return c.open(f, parent, p.Identity)
	})
}

func (c *Chain) openFile(path string, backing func(name, format string) (*qcow2.Image, error)) (*qcow2.Image, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	c.files = append(c.files, file)
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	img, err := qcow2.Open(file, info.Size(), qcow2.OpenOptions{Backing: backing, Prove: c.prove})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return img, nil
}

// parseBacking gives the point that a backing name means: a file of the same folder, with or without "./" before it.
func (f *Folder) parseBacking(name string) (PointName, bool) {
	return parseFileName(f.Name, strings.TrimPrefix(name, "./"))
}
