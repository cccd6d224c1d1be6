package repo

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rbd2qcow2/rbd2qcow2/internal/crashpoint"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// foreignBase is the empty file that the Python tool's full points have as their backing file.
const foreignBase = "empty.qcow2"

// Folder holds the points of one image.
type Folder struct {
	Dir  string // path
	Name string // last element of the path, and what its file names begin with
	key  *qcow2.DigestKey
}

// Folder gives the folder of that name, whether it exists or not.
func (r *Repository) Folder(name string) *Folder {
	return &Folder{Dir: filepath.Join(r.Dir, name), Name: name, key: r.DigestKey}
}

// Folders lists the folders in the order of their names.
func (r *Repository) Folders() ([]*Folder, error) {
	entries, err := os.ReadDir(r.Dir)
	if err != nil {
		return nil, fmt.Errorf("list repository: %w", err)
	}
	var folders []*Folder
	for _, e := range entries {
		if isDir(r.Dir, e) && !strings.HasPrefix(e.Name(), ".") && e.Name() != "lost+found" {
			folders = append(folders, r.Folder(e.Name()))
		}
	}
	return folders, nil
}

// isDir looks through symbolic links: people move a folder to another disk by one.
func isDir(dir string, e os.DirEntry) bool {
	if e.Type()&os.ModeSymlink == 0 {
		return e.IsDir()
	}
	info, err := os.Stat(filepath.Join(dir, e.Name()))
	return err == nil && info.IsDir()
}

// Exists says whether the folder is there.
func (f *Folder) Exists() (bool, error) {
	_, err := os.Stat(f.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Create makes the folder and what belongs into it. It is no error if it is there.
func (f *Folder) Create() error {
	state := filepath.Join(f.Dir, stateDir)
	if _, err := os.Stat(state); err == nil {
		return nil
	}
	if err := os.MkdirAll(f.Dir, 0o750); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	crashpoint.Reach(crashpoint.FolderMade)
	if err := SyncDir(filepath.Dir(f.Dir)); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	// Last: that it is there tells the next run that the folder's name is on disk.
	if err := os.MkdirAll(state, 0o750); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	return nil
}

// pointNames lists the points by their files, the oldest first.
func (f *Folder) pointNames() ([]PointName, error) {
	entries, err := os.ReadDir(f.Dir)
	if err != nil {
		return nil, fmt.Errorf("list folder: %w", err)
	}
	var names []PointName
	for _, e := range entries {
		if name, ok := parseFileName(f.Name, e.Name()); ok && !isDir(f.Dir, e) {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b PointName) int { return a.Time().Compare(b.Time()) })
	return names, nil
}

// HasForeignPoints says whether the Python tool has made points in the folder.
func (f *Folder) HasForeignPoints() bool {
	names, err := f.pointNames()
	return err == nil && slices.ContainsFunc(names, PointName.Foreign)
}

// FileName is the name of a point's file in the folder.
func (f *Folder) FileName(p PointName) string { return f.Name + "@" + string(p) + ".qcow2" }

// StatePath is the path of a small file that may be lost.
func (f *Folder) StatePath(name string) string { return filepath.Join(f.Dir, stateDir, name) }

// writeState replaces such a file by one of a line, or lines, of JSON.
func (f *Folder) writeState(name string, content []byte) error {
	return writeFileAtomic(f.StatePath(name), append(content, '\n'), 0o640, (*Pending).replace)
}

// Path is the path of a point's file.
func (f *Folder) Path(p PointName) string { return filepath.Join(f.Dir, f.FileName(p)) }

// Points reads what every point says of itself, the oldest first. A point that can't be read is in the list, with
// the reason.
func (f *Folder) Points() ([]*Point, error) {
	names, err := f.pointNames()
	if err != nil {
		return nil, err
	}
	points := make([]*Point, 0, len(names))
	for _, name := range names {
		p := f.Point(name)
		if _, err := os.Lstat(p.Path()); p.State == Damaged && errors.Is(err, fs.ErrNotExist) {
			continue // removed since the folder was read
		}
		points = append(points, p)
	}
	return points, nil
}

// Newest gives the newest point, nil if there is none.
func (f *Folder) Newest() (*Point, error) {
	names, err := f.pointNames()
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(names) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return f.Point(names[len(names)-1]), nil
}

// CreatePending makes a file that is to become a point of the folder.
func (f *Folder) CreatePending() (*Pending, error) { return CreatePending(f.Dir, privateMode) }

// RemoveDeadTemporaries removes what killed runs have left in the folder, and gives its names.
func (f *Folder) RemoveDeadTemporaries() ([]string, error) { return removeDeadTemporaries(f.Dir) }

// Identity gives the identity of the newest point that is in order and of repository, nil if there is none. Where there is a key,
// points that were made with it come first: the others may be anybody's.
func (f *Folder) Identity(repository string) (*Identity, error) {
	names, err := f.pointNames()
	if err != nil {
		return nil, err
	}
	var other *Identity
	for _, name := range slices.Backward(names) {
		p := f.Point(name)
		if p.State == Damaged || p.Identity == nil || p.Identity.Repository != repository {
			continue
		}
		if f.key == nil || p.Header.IsKeyed(f.key) {
			return p.Identity, nil
		}
		if other == nil {
			other = p.Identity
		}
	}
	return other, nil
}

// Scratch makes a file without a name, or with one that goes when the file is closed.
func (f *Folder) Scratch() (qcow2.Scratch, error) { return Scratch(f.Dir) }

// Scratch is Folder.Scratch for any directory.
func Scratch(dir string) (qcow2.Scratch, error) {
	p, err := CreatePending(dir, privateMode)
	if err != nil {
		return nil, err
	}
	return scratch{p}, nil
}

type scratch struct{ *Pending }

func (s scratch) Close() error {
	s.Discard()
	return nil
}
