package restore

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// newFile is a regular file that has its name only when it is whole: an old one of that name stays until then.
type newFile struct {
	*repo.Pending
	path      string
	overwrite bool
}

func createFile(path string, overwrite bool) (*newFile, error) {
	info, err := os.Stat(path)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return nil, fmt.Errorf("restore to %s: it is not a regular file", path)
	case err == nil && !overwrite:
		return nil, fmt.Errorf("restore to %s: %w (--overwrite replaces it)", path, fs.ErrExist)
	}
	// A name that is a link stands for the file behind it.
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	p, err := repo.CreatePending(filepath.Dir(path), 0o666)
	if err != nil {
		return nil, fmt.Errorf("restore to %s: %w", path, err)
	}
	if info != nil {
		if err := p.Chmod(info.Mode().Perm()); err != nil {
			p.Discard()
			return nil, fmt.Errorf("restore to %s: %w", path, err)
		}
	}
	return &newFile{p, path, overwrite}, nil
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
// fs.ErrExist, unless overwrite is set; then that file is replaced in the end.
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
