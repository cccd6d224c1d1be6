package rbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"syscall"

	"github.com/ceph/go-ceph/rados"
	librbd "github.com/ceph/go-ceph/rbd"
)

// Bounds of one call of librbd that zeroes a range.
const (
	zeroObjects = 64
	maxZero     = 1 << 30 // bytes
)

// Writer is an image opened for writing, at its head. It is safe for concurrent use.
//
// There should be one Writer per image and process: unless [Writer.Lock] keeps it, librbd's exclusive lock goes to whoever
// writes, and two would pass it to and fro.
//
// A write that a full pool has no room for fails at once and matches ErrQuota. Other errors match ErrPermission, ErrBlocklisted,
// ErrTimeout, or, with a [*LockedError], ErrLocked: another client holds the image's lock and does not give it up.
type Writer struct {
	img  *Image // its size is that of the time of opening
	size atomic.Int64
}

// OpenWriter opens an image by id for writing (rbd_open_by_id), which any number of clients can do: see [Writer.OtherWatchers].
// The caller closes it. Errors match ErrNotFound, ErrPermission, ErrMigrating, ErrNotPrimary.
func (p *Pool) OpenWriter(ctx context.Context, imageID string) (*Writer, error) {
	spec := p.idSpec(imageID, "")
	if err := checkName(imageID); err != nil {
		return nil, fail("open image", spec, err)
	}
	img, err := p.open(ctx, spec, "", func() (img *librbd.Image, err error) {
		err = p.withWriting(p.cluster.reader, func(ioctx *rados.IOContext) error {
			img, err = librbd.OpenImageById(ioctx, imageID, librbd.NoSnapshot)
			return err
		})
		return img, err
	})
	if err != nil {
		return nil, err
	}
	w := &Writer{img: img}
	w.size.Store(img.size)
	if img.features.Has(FeatureNonPrimary) {
		return nil, fail("open image", spec, errors.Join(ErrNotPrimary, w.Close()))
	}
	return w, nil
}

// ID returns the image's internal id.
func (w *Writer) ID() string { return w.img.id }

// Size returns the size in bytes, as of opening or of the last [Writer.Resize].
func (w *Writer) Size() int64 { return w.size.Load() }

// ObjectSize returns the size in bytes of the RADOS objects that hold the data.
func (w *Writer) ObjectSize() int64 { return w.img.objectSize }

// Period returns how many bytes of the image a set of objects holds, see [Image.Period].
func (w *Writer) Period() int64 { return w.img.Period() }

// String returns the name for messages.
func (w *Writer) String() string { return w.img.spec }

// Lock takes the image's exclusive lock and keeps it until Close (rbd_lock_acquire): others who try to write get EROFS, and what
// a client that died has left in the image's journal is in the image when Lock returns. It returns false where the image does not
// have the feature. Whoever has the image open gives up a lock that it was not told to keep: see [Writer.OtherWatchers].
func (w *Writer) Lock(ctx context.Context) (bool, error) {
	if !w.img.features.Has(FeatureExclusiveLock) {
		return false, nil
	}
	// The larger the journal, the longer it takes.
	err := w.use(ctx, doUnwatched, func(img *librbd.Image) error { return img.LockAcquire(librbd.LockModeExclusive) })
	return err == nil, fail("lock", w.img.spec, err)
}

// Write writes p at off; all of it must lie inside the image (rbd_write). It is on stable storage after [Writer.Flush].
//
// If ctx ends first, Write returns at once with an error that matches ErrAbandoned: librbd may still read p, so the caller must
// never use p again, and part or all of p may be written later.
func (w *Writer) Write(ctx context.Context, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	return w.at(ctx, "write", off, int64(len(p)), func(img *librbd.Image) error {
		n, err := img.WriteAt(p, off)
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: %d of %d bytes", io.ErrShortWrite, n, len(p))
		}
		return err
	})
}

// Read is [Image.Read], and never use p again is true of it, too.
func (w *Writer) Read(ctx context.Context, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	return w.at(ctx, "read", off, int64(len(p)), func(img *librbd.Image) error {
		n, err := img.ReadAt(p, off)
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: %d of %d bytes", io.ErrUnexpectedEOF, n, len(p))
		}
		return err
	})
}

// WriteZeroes makes the range read as zeroes, to the byte, and gives back what space it can: whole objects are removed. A range
// that holds nothing stays so.
//
// It implements: ssize_t rbd_writesame(…) with a zero, of which librbd makes rbd_write_zeroes (before Ceph 16, where that is
// missing, an exact rbd_discard). rbd_discard itself leaves what does not fill rbd_discard_granularity_bytes.
func (w *Writer) WriteZeroes(ctx context.Context, off, length int64) error {
	if err := checkRange(off, length, w.Size()); err != nil {
		return fail("zero", rangeSpec(w.img.spec, off, length), err)
	}
	step := w.zeroStep()
	for length > 0 {
		n := min(length, step-off%step)
		err := w.at(ctx, "zero", off, n, func(img *librbd.Image) error {
			_, err := img.WriteSame(uint64(off), uint64(n), []byte{0}, 0)
			return err
		})
		if err != nil {
			return err
		}
		off += n
		length -= n
	}
	return nil
}

// zeroStep returns how many bytes one call may zero and stay far below the watchdog: librbd removes so many objects at once.
// It is a multiple of the period where that is possible, so that no object is emptied in two halves, which would leave it there.
func (w *Writer) zeroStep() int64 {
	if w.img.stripeCount > maxZero/w.img.objectSize {
		return maxZero
	}
	period := w.Period()
	return period * max(1, min(zeroObjects/w.img.stripeCount, maxZero/period))
}

// Resize changes the size (rbd_resize2): what is cut off is gone, what is added reads as zeroes. No other call that is made
// meanwhile may depend on the size. To cut off much takes long; ctx ends the wait, with an error that matches ErrAbandoned.
func (w *Writer) Resize(ctx context.Context, size int64) error {
	if size < 0 || size > maxSize {
		return fail("resize image", w.img.spec, fmt.Errorf("impossible size %d", size))
	}
	const shrink = true
	err := w.use(ctx, doUnwatched, func(img *librbd.Image) error {
		return img.Resize2(uint64(size), shrink, func(uint64, uint64, any) int { return 0 }, nil)
	})
	if err != nil {
		return fail("resize image", w.img.spec, err)
	}
	w.size.Store(size)
	return nil
}

// Flush returns when all that was written before is on stable storage (rbd_flush). It is needed even though the connection has
// no cache: the image's own metadata may turn it on.
func (w *Writer) Flush(ctx context.Context) error {
	return fail("flush", w.img.spec, w.use(ctx, do, (*librbd.Image).Flush))
}

// SetMetadata sets a key of the image's metadata (rbd_metadata_set). Keys of the form conf_<option> set an option of librbd for
// all who open the image; one that does not exist is refused with EINVAL.
func (w *Writer) SetMetadata(ctx context.Context, key, value string) error {
	err := errors.Join(checkName(key), checkName(value))
	if err == nil {
		err = w.use(ctx, do, func(img *librbd.Image) error { return img.SetMetadata(key, value) })
	}
	return fail("set metadata of", w.img.spec, err)
}

// RemoveMetadata removes a key of the image's metadata (rbd_metadata_remove). Errors match ErrNotFound.
func (w *Writer) RemoveMetadata(ctx context.Context, key string) error {
	err := checkName(key)
	if err == nil {
		err = w.use(ctx, do, func(img *librbd.Image) error { return img.RemoveMetadata(key) })
	}
	return fail("remove metadata of", w.img.spec, err)
}

// Sparsify gives back the space of stored zeroes, of every run that fills an aligned block of sparseSize bytes: a power of two
// from 4 KiB to the size of an object (rbd_sparsify). The OSDs read all the image's data for that. If another client holds the
// image's lock, such as a running VM, it is asked to do it.
func (w *Writer) Sparsify(ctx context.Context, sparseSize int64) error {
	err := w.use(ctx, doUnwatched, func(img *librbd.Image) error { return img.Sparsify(uint(sparseSize)) })
	return fail("sparsify", w.img.spec, err)
}

// CreateSnapshot makes a snapshot in the user namespace, of what was written so far (rbd_snap_create). See [Pool.CreateSnapshot]
// for its errors and what they mean.
func (w *Writer) CreateSnapshot(ctx context.Context, snapshot string) error {
	spec := w.img.pool.idSpec(w.img.id, snapshot)
	if snapshot == "" {
		return fail("create snapshot", spec, syscall.EINVAL)
	}
	err := checkName(snapshot)
	if err == nil {
		err = w.use(ctx, do, func(img *librbd.Image) error {
			_, err := img.CreateSnapshot(snapshot)
			return err
		})
	}
	return fail("create snapshot", spec, err)
}

// OtherWatchers returns the addresses of clients that have the image open for writing, other than this process by the connection
// of its Writers (rbd_watchers_list). Those that crashed less than half a minute ago are still among them.
func (w *Writer) OtherWatchers(ctx context.Context) ([]string, error) {
	watchers, err := call(ctx, w.img.handle, w.img.image.ListWatchers, nil)
	if err != nil {
		return nil, fail("list watchers of", w.img.spec, err)
	}
	own := w.img.pool.cluster.reader.rados.GetInstanceID()
	var addresses []string
	for _, watcher := range watchers {
		if uint64(watcher.Id) != own {
			addresses = append(addresses, watcher.Addr)
		}
	}
	return addresses, nil
}

// Close closes the image as [Image.Close] does, which gives up the image's lock.
func (w *Writer) Close() error { return w.img.Close() }

// at runs f for a range of the image.
func (w *Writer) at(ctx context.Context, op string, off, length int64, f func(*librbd.Image) error) error {
	err := checkRange(off, length, w.Size())
	if err == nil {
		err = w.use(ctx, do, f)
	}
	if err == nil {
		return nil
	}
	return fail(op, rangeSpec(w.img.spec, off, length), err)
}

// use runs f, which blocks in C, by do or doUnwatched, and explains its error.
func (w *Writer) use(ctx context.Context, run runner, f func(*librbd.Image) error) error {
	return run(ctx, w.img.handle, func() error {
		err := explainFull(f(w.img.image))
		if errors.Is(err, syscall.EROFS) {
			err = w.img.pool.lockedError(w.img.pool.ioctx, w.img.id, err)
		}
		return err
	})
}
