package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// What QEMU locks of a disk's file (block/file-posix.c, raw_apply_lock_bytes): whoever reads it holds shared locks on the
// byte for reading and on those that say "nobody else writes" and "nobody else resizes". A fold's exclusive lock of all of
// these bytes keeps QEMU out, and finds out whether it is in.
const (
	lockReading    = 100
	lockNoWriter   = 201
	lockNoResizing = 203
	lockFirst      = 100
	lockCount      = 200
)

// A reader that finds a file locked waits for lockWait: most folds take less.
const (
	lockWait = 30 * time.Second
	lockPoll = 50 * time.Millisecond
)

// InUseError says that somebody reads a point's file, or has it open with QEMU.
type InUseError struct{ Path string }

func (e *InUseError) Error() string { return e.Path + " is in use" }

// openShared opens a file that nobody folds while it is open. Where one does, it waits until the deadline.
func openShared(ctx context.Context, path string, deadline time.Time) (*os.File, error) {
	for {
		file, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		err = lockShared(file)
		if err == nil && isNamed(path, file) || hasNoLocks(err) {
			return file, nil
		}
		file.Close()
		if err != nil && !isLocked(err) {
			return nil, &os.PathError{Op: "lock", Path: path, Err: err}
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("open %s: it is being pruned by another run, or written to; try again: %w", path, unix.EAGAIN)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(lockPoll):
		}
	}
}

// isNamed says whether the path is that of the open file; a fold replaces and unlinks files.
func isNamed(path string, file *os.File) bool {
	open, err := file.Stat()
	if err != nil {
		return false
	}
	current, err := os.Stat(path)
	return err == nil && os.SameFile(open, current)
}

func lockShared(file *os.File) error {
	for _, at := range []int64{lockReading, lockNoWriter, lockNoResizing} {
		if err := setLock(file, unix.F_RDLCK, at, 1); err != nil {
			return err
		}
	}
	return nil
}

// setLock takes a lock of the open file description: it ends when the file is closed.
func setLock(file *os.File, kind int16, from, n int64) error {
	return unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: from, Len: n})
}

func isLocked(err error) bool { return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) }

// hasNoLocks says whether an error is one of file systems that can't lock.
func hasNoLocks(err error) bool {
	for _, errno := range []error{unix.ENOLCK, unix.EOPNOTSUPP, unix.EINVAL, unix.ENOSYS} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// PointLock keeps everybody else from reading the files of some points: this program, and QEMU unless it was told not to
// lock. It ends with the process, however that ends.
type PointLock struct{ files map[PointName]*os.File }

// LockPoints locks all of these points, or none. The error is an *InUseError where one of them is in use; it is another one
// where the file system has no locks. The caller holds the folder's lock, and ends this one with Close.
func (f *Folder) LockPoints(names ...PointName) (*PointLock, error) {
	l := &PointLock{files: map[PointName]*os.File{}}
	for _, name := range names {
		file, err := openExclusive(f.Path(name))
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		l.files[name] = file
	}
	return l, nil
}

// File is the file of one of the points, for reading and writing; it is closed with the lock.
func (l *PointLock) File(name PointName) *os.File { return l.files[name] }

// Close ends the lock.
func (l *PointLock) Close() error {
	var errs []error
	for _, file := range l.files {
		errs = append(errs, file.Close())
	}
	return errors.Join(errs...)
}

func openExclusive(path string) (*os.File, error) {
	file, err := openWritable(path)
	if err != nil {
		return nil, err
	}
	err = setLock(file, unix.F_WRLCK, lockFirst, lockCount)
	switch {
	case isLocked(err), err == nil && !isNamed(path, file):
		err = &InUseError{path}
	case err != nil:
		err = fmt.Errorf("lock %s, so that nobody reads it meanwhile: %w", path, err)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// openWritable opens a point's file for writing, which its mode forbids to all but root.
func openWritable(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if !errors.Is(err, fs.ErrPermission) {
		return file, err
	}
	info, statErr := os.Stat(path)
	if statErr != nil || os.Chmod(path, info.Mode()|0o200) != nil {
		return nil, err
	}
	file, err = os.OpenFile(path, os.O_RDWR, 0)
	return file, errors.Join(err, os.Chmod(path, info.Mode()))
}
