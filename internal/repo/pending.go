package repo

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd2qcow2/rbd2qcow2/internal/crashpoint"
)

const (
	temporaryPrefix = ".rbd2qcow2-tmp-"
	pointMode       = 0o440
	privateMode     = 0o600
)

// Pending is a file on its way into a directory. Until Commit nothing is to be seen of it there: it has no name, or,
// on file systems that can't do this (NFS), a dot-name and a lock that ends with the process.
type Pending struct {
	*os.File
	dir  string
	name string // of the temporary; "" for a file without one
}

// CreatePending makes a pending file in a directory, with a mode from which the process's umask is taken.
func CreatePending(dir string, mode os.FileMode) (*Pending, error) {
	// A file without a name gets one by way of /proc, which a chroot may lack.
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		return createNamed(dir, mode)
	}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, uint32(mode.Perm()))
	if err == nil {
		return &Pending{File: os.NewFile(uintptr(fd), filepath.Join(dir, "(unnamed)")), dir: dir}, nil
	}
	// What kernels and file systems without O_TMPFILE say.
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EINVAL) {
		return createNamed(dir, mode)
	}
	return nil, &os.PathError{Op: "create file in", Path: dir, Err: err}
}

func createNamed(dir string, mode os.FileMode) (*Pending, error) {
	name := filepath.Join(dir, temporaryPrefix+rand.Text())
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return nil, err
	}
	p := &Pending{File: f, dir: dir, name: name}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		p.Discard()
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return p, nil
}

// Commit gives the file its name, with the mtime given, and returns when file and name are on disk. It never
// replaces a file. On an error the file may have its name already; it is then complete.
func (p *Pending) Commit(name string, mtime time.Time) error {
	if err := p.Chmod(pointMode); err != nil {
		return err
	}
	if err := setTime(p.File, mtime); err != nil {
		return fmt.Errorf("set time of %s: %w", name, err)
	}
	if err := p.Sync(); err != nil {
		return err
	}
	crashpoint.Reach(crashpoint.Synced)
	if err := p.link(filepath.Join(p.dir, name)); err != nil {
		return err
	}
	crashpoint.Reach(crashpoint.Linked)
	if err := SyncDir(p.dir); err != nil {
		return err
	}
	crashpoint.Reach(crashpoint.DirectorySynced)
	return p.Close()
}

// setTime sets a file's mtime.
func setTime(f *os.File, t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	err := unix.UtimesNanoAt(int(f.Fd()), "", []unix.Timespec{ts, ts}, unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.EINVAL) { // before Linux 5.8; this way needs /proc
		tv := unix.NsecToTimeval(t.UnixNano())
		err = unix.Futimes(int(f.Fd()), []unix.Timeval{tv, tv})
	}
	return err
}

// link gives the file a name that no other file has.
func (p *Pending) link(path string) error {
	if p.name == "" {
		self := fmt.Sprintf("/proc/self/fd/%d", p.Fd())
		if err := unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW); err != nil {
			return &os.LinkError{Op: "link", Old: self, New: path, Err: err}
		}
		return nil
	}
	err := unix.Renameat2(unix.AT_FDCWD, p.name, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		// No rename without replacing here; a crash between the two leaves a second name, which is cleaned up.
		if err := os.Link(p.name, path); err != nil {
			return err
		}
		return os.Remove(p.name)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: p.name, New: path, Err: err}
	}
	return nil
}

// replace gives a file with a temporary name its own, which another file may have had.
func (p *Pending) replace(path string) error { return os.Rename(p.name, path) }

// Publish is Commit for a file that is no point: it keeps its mode and its time, and where replace is set it may take
// the place of another file.
func (p *Pending) Publish(name string, replace bool) error {
	if err := p.Sync(); err != nil {
		return err
	}
	path := filepath.Join(p.dir, name)
	give := p.link
	if replace {
		if err := p.nameTemporarily(); err != nil {
			return err
		}
		give = p.replace
	}
	if err := give(path); err != nil {
		return err
	}
	if err := SyncDir(p.dir); err != nil {
		return err
	}
	return p.Close()
}

// nameTemporarily gives a file without a name one that it can be renamed from.
func (p *Pending) nameTemporarily() error {
	if p.name != "" {
		return nil
	}
	name := filepath.Join(p.dir, temporaryPrefix+rand.Text())
	if err := p.link(name); err != nil {
		return err
	}
	p.name = name
	return nil
}

// Discard gives the file up. After Commit it does nothing.
func (p *Pending) Discard() {
	if p.Close() == nil && p.name != "" {
		_ = os.Remove(p.name)
	}
}

// removeDeadTemporaries removes the named temporaries in dir whose writers are gone.
func removeDeadTemporaries(dir string) (removed []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), temporaryPrefix) || !e.Type().IsRegular() {
			continue
		}
		path := filepath.Join(dir, e.Name())
		dead, err := unlocked(path)
		if err != nil || !dead {
			continue
		}
		if err := os.Remove(path); err != nil {
			return removed, err
		}
		removed = append(removed, e.Name())
	}
	return removed, nil
}

// unlocked says whether no process holds the lock of createNamed. A shared lock tells, and is all that NFS gives on
// a file that is open for reading, as a file of pointMode can only be.
func unlocked(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	return err == nil, nil
}

// SyncDir returns when the names of the files in a directory are on disk.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}

// writeFileAtomic writes a small file so that its old or its new content is there at every instant. What name does, link
// or replace, decides whether an old one goes.
func writeFileAtomic(path string, content []byte, mode os.FileMode, name func(p *Pending, path string) error) error {
	dir := filepath.Dir(path)
	p, err := createNamed(dir, privateMode)
	if err != nil {
		return err
	}
	defer p.Discard()
	if _, err := p.Write(content); err != nil {
		return err
	}
	if err := p.Chmod(mode); err != nil {
		return err
	}
	if err := p.Sync(); err != nil {
		return err
	}
	crashpoint.Reach(crashpoint.MarkerWritten)
	if err := name(p, path); err != nil {
		return err
	}
	return SyncDir(dir)
}
