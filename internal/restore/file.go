package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// newFile is a regular file that has its name only when it is whole: an old one of that name stays until then.
type newFile struct {
	*repo.Pending
	path      string
	overwrite bool
}

func createFile(path string, overwrite bool) (*newFile, error) {
	real, old, err := findFile(path, overwrite)
	if err != nil {
		return nil, fmt.Errorf("restore to %s: %w", path, err)
	}
	mode := fs.FileMode(0o666)
	if old != nil {
		mode = 0o600 // nobody else opens it before it has the rights of the old one
	}
	p, err := repo.CreatePending(filepath.Dir(real), mode)
	if err != nil {
		return nil, fmt.Errorf("restore to %s: %w", path, err)
	}
	if old != nil {
		if err := inherit(p, old); err != nil {
			p.Discard()
			return nil, fmt.Errorf("restore to %s: %w", path, err)
		}
	}
	return &newFile{p, real, overwrite}, nil
}

// findFile gives the file that path stands for, behind symbolic links, and what is there already: nil for nothing.
func findFile(path string, overwrite bool) (real string, old fs.FileInfo, err error) {
	old, err = os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Lstat(path); err == nil {
			return "", nil, errors.New("it is a symbolic link to nothing")
		}
		return path, nil, nil
	case err != nil:
		return "", nil, err
	case !old.Mode().IsRegular():
		return "", nil, errors.New("it is not a regular file")
	case !overwrite:
		return "", nil, fmt.Errorf("%w (--overwrite replaces it)", fs.ErrExist)
	}
	real, err = filepath.EvalSymlinks(path)
	return real, old, err
}

// inherit gives a file the owner, the group and the mode of the one that it will replace. What this user may not give
// away stays his own, as with cp; then the rights of the old group are not for the new one.
func inherit(p *repo.Pending, old fs.FileInfo) error {
	mode := old.Mode().Perm()
	if was, ok := old.Sys().(*syscall.Stat_t); ok {
		if p.Chown(int(was.Uid), int(was.Gid)) != nil && p.Chown(-1, int(was.Gid)) != nil {
			mode = mode&^0o070 | mode&0o007<<3
		}
	}
	return p.Chmod(mode)
}

func (f *newFile) commit() error {
	if err := f.Publish(filepath.Base(f.path), f.overwrite); err != nil {
		return fmt.Errorf("restore to %s: %w", f.path, err)
	}
	return nil
}

// Raw is a regular file with the bytes of a disk, sparse.
type Raw struct{ file *newFile }

// CreateRaw begins a file for a disk of size bytes. Where a file of that name exists it is an error that matches
// fs.ErrExist, unless overwrite is set; then that file is replaced in the end, by one with its mode and, where this user may
// give that, its owner and group. A symbolic link stays: the file behind it is meant, and has to be there.
func CreateRaw(path string, size int64, overwrite bool) (*Raw, error) {
	f, err := createFile(path, overwrite)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(size); err != nil {
		f.Discard()
		return nil, fmt.Errorf("restore to %s: %w", path, err)
	}
	return &Raw{f}, nil
}

// Layout implements Target. Holes are what file systems can have: blocks.
func (r *Raw) Layout() Layout { return Layout{Blank: true, Hole: 4096} }

// Write implements Target.
func (r *Raw) Write(_ context.Context, p []byte, off int64) error {
	if _, err := r.file.WriteAt(p, off); err != nil {
		return fmt.Errorf("restore to %s: %w", r.file.path, err)
	}
	return nil
}

// Zero implements Target; a new file is blank.
func (r *Raw) Zero(context.Context, int64, int64) error { return nil }

// Finish implements Target. The file gets its name.
func (r *Raw) Finish(context.Context) error { return r.file.commit() }

// Abort implements Target. Nothing is left.
func (r *Raw) Abort() error {
	r.file.Discard()
	return nil
}
