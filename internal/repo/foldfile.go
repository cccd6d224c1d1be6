package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd2qcow2/rbd2qcow2/internal/crashpoint"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// mustNotChange says whether a point's file has more than one name, so that somebody else counts on what is in it.
func (p *Point) mustNotChange() bool {
	info, err := os.Lstat(p.Path())
	return p.links > 1 || err == nil && !info.Mode().IsRegular()
}

// confirmAlone says why a file that is being changed in place must not be: it has got another name meanwhile. Whoever made it
// has a file there that reads as before, but for what the fold has put behind its end and takes away again.
func (j *fold) confirmAlone() error {
	var now Point
	if err := now.stat(j.file); err != nil {
		return err
	}
	if j.pending == nil && now.links > 1 {
		return fmt.Errorf("%s has got another name (a hard link) meanwhile, and must not change under that: try again", j.target.Path())
	}
	j.confirmed = true
	return nil
}

// switchedFile is the file that a fold changes. It knows when that is switched over: a power cut may take that back, still.
type switchedFile struct {
	*os.File
	fold *fold
}

// Sync makes what was written last.
func (f switchedFile) Sync() error {
	if f.fold.confirmed {
		if err := f.fold.reached(crashpoint.FoldSwitched); err != nil {
			return err
		}
	}
	return f.File.Sync()
}

// prepare opens the file that is to be changed.
func (j *fold) prepare(ctx context.Context) (err error) {
	if err := j.copyTarget(ctx); err != nil {
		return err
	}
	j.file, j.result.Method = j.lock.File(j.target.Name), cmp.Or(j.result.Method, "in place")
	if j.pending != nil {
		j.file = j.pending.File
	}
	j.note()
	return nil
}

// copyTarget makes a copy to be changed: where extents can be shared, so that nothing is changed in place, and where it must
// not be.
func (j *fold) copyTarget(ctx context.Context) error {
	needed, own := j.target.mustNotChange(), j.lock.File(j.target.Name)
	pending, err := j.CreatePending()
	if err != nil {
		if needed {
			return err
		}
		return nil
	}
	switch {
	case unix.IoctlFileClone(int(pending.Fd()), int(own.Fd())) == nil:
		j.result.Method = "clone"
	case needed:
		j.result.Method = "copy"
		j.result.Written, err = copySparse(ctx, pending.File, own)
	default:
		pending.Discard()
		return nil
	}
	if err != nil {
		pending.Discard()
		return err
	}
	j.pending = pending
	return nil
}

// copyStep is how much is copied between two looks at a context, in bytes.
const copyStep = 64 << 20

// copySparse copies a file but for its holes, and gives the number of bytes.
func copySparse(ctx context.Context, dst, src *os.File) (copied int64, err error) {
	info, err := src.Stat()
	if err != nil {
		return 0, err
	}
	for off := int64(0); off < info.Size(); {
		if ctx.Err() != nil {
			return copied, context.Cause(ctx)
		}
		data, err := src.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // only a hole is left
		}
		if err != nil {
			return copied, err
		}
		hole, err := src.Seek(data, unix.SEEK_HOLE)
		if err != nil {
			return copied, err
		}
		off = min(hole, data+copyStep)
		if _, err := dst.Seek(data, io.SeekStart); err != nil {
			return copied, err
		}
		if _, err := src.Seek(data, io.SeekStart); err != nil {
			return copied, err
		}
		if _, err := io.CopyN(dst, src, off-data); err != nil {
			return copied, err
		}
		copied += off - data
	}
	return copied, dst.Truncate(info.Size())
}

// install makes the file that has the data of both points the child's, and removes the point.
func (j *fold) install(created time.Time) error {
	if err := setTime(j.file, created); err != nil {
		return err
	}
	switch {
	case j.pending != nil:
		if err := j.installPending(); err != nil {
			return err
		}
	case !j.result.IntoChild:
		// The point's file takes the child's name: both at once.
		if err := os.Rename(j.Path(j.name), j.Path(j.child)); err != nil {
			return err
		}
		if err := j.reached(crashpoint.FoldNamed); err != nil {
			return err
		}
		return j.synced()
	}
	if err := os.Remove(j.Path(j.name)); err != nil {
		return err
	}
	return j.synced()
}

func (j *fold) synced() error {
	if err := SyncDir(j.Dir); err != nil {
		return err
	}
	return j.reached(crashpoint.FoldUnlinked)
}

// installPending puts a copy in the place of the child's file, with the mode and the owner of the file that it is of.
func (j *fold) installPending() error {
	info, err := j.lock.File(j.target.Name).Stat()
	if err != nil {
		return err
	}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		_ = j.pending.Chown(int(sys.Uid), int(sys.Gid)) // only root can, and only for root does it matter
	}
	if err := j.pending.Chmod(info.Mode()); err != nil {
		return err
	}
	if err := j.pending.Sync(); err != nil {
		return err
	}
	if err := j.pending.nameTemporarily(); err != nil {
		return err
	}
	if err := j.pending.replace(j.Path(j.child)); err != nil {
		return err
	}
	if err := SyncDir(j.Dir); err != nil {
		return err
	}
	return j.reached(crashpoint.FoldNamed)
}

// punchFree gives back what a fold that was cut short has left allocated in a file without need. Where it can't that is no
// error: the next fold into the file uses that space. What is on disk must not need it either.
func (p *Point) punchFree(ctx context.Context, file *os.File) {
	if settle(file) != nil {
		return
	}
	image, err := qcow2.Open(file, p.FileSize, qcow2.OpenOptions{Alone: true, Prove: true, Key: p.Folder.key})
	if err == nil {
		_ = image.PunchFree(ctx, puncher{file})
	}
}

// settle sees to it that the state of a file that was read is on disk, too: it may have been read from memory, where an
// interrupted fold, or a sync that failed, has left it. Its mtime stays.
func settle(file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	sector := make([]byte, 512) // with header and record
	if _, err = file.ReadAt(sector, 0); err == nil {
		_, err = file.WriteAt(sector, 0)
	}
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, setTime(file, info.ModTime()))
}

// puncher gives space back to the file system, where it takes it.
type puncher struct{ file *os.File }

// Punch makes n bytes from off a hole.
func (p puncher) Punch(off, n int64) error {
	err := unix.Fallocate(int(p.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return nil
	}
	return err
}
