package rbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"

	librbd "github.com/ceph/go-ceph/rbd"
)

// Image is one image opened read-only, at its head or at a snapshot. It is
// safe for concurrent use.
type Image struct {
	pool     *Pool
	handle   *handle
	image    *librbd.Image
	spec     string // for messages
	name     string // empty if opened by id
	snapshot string // empty at the head

	besideLock sync.Mutex
	beside     *native // a second handle; nil until it is needed

	// read once at opening; they can't change on a read-only handle
	id                      string
	size                    int64
	objectSize              int64
	stripeUnit, stripeCount int64
	features                Features
}

// useBeside runs f with the second handle, open at the same point, for calls that
// go-ceph lacks. It blocks in C.
func (i *Image) useBeside(f func(native) error) error {
	i.besideLock.Lock()
	defer i.besideLock.Unlock()
	if i.beside == nil {
		n, err := openNative(i.pool.ioctx, i.id, i.snapshot)
		if err != nil {
			return err
		}
		i.beside = &n
	}
	return f(*i.beside)
}

// returnBeside puts the second handle back where the image is open. Where that is
// not to be had any more, it is for the next user to find out.
func (i *Image) returnBeside() {
	if err := i.beside.setSnapshotName(i.snapshot); err != nil {
		_ = i.beside.close()
		i.beside = nil
	}
}

// free closes both handles. It blocks in C.
func (i *Image) free() error {
	err := i.image.Close()
	if i.beside != nil {
		err = errors.Join(err, i.beside.close())
	}
	return err
}

// maxSize is what librbd and qcow2 can address and we can compute with.
const maxSize = math.MaxInt64 / 2

// load reads what never changes while the image is open. It blocks in C.
func (i *Image) load() error {
	stat, err := i.image.Stat()
	if err != nil {
		return err
	}
	features, err := i.image.GetFeatures()
	if err != nil {
		return err
	}
	if i.features = Features(features); i.features.Has(FeatureMigrating) {
		return ErrMigrating
	}
	if i.id, err = i.image.GetId(); err != nil || i.id == "" {
		return errors.Join(err, fmt.Errorf("image of format 1: %w", ErrUnsupported))
	}
	unit, err := i.image.GetStripeUnit()
	if err != nil {
		return err
	}
	count, err := i.image.GetStripeCount()
	if err != nil {
		return err
	}
	for _, n := range []uint64{stat.Size, stat.Obj_size, unit, count} {
		if n > maxSize {
			return fmt.Errorf("header holds an impossible number: %d", n)
		}
	}
	if stat.Obj_size == 0 || unit == 0 || count == 0 {
		return fmt.Errorf("header holds an impossible number: object size %d, stripes %d of %d", stat.Obj_size, count, unit)
	}
	i.size, i.objectSize = int64(stat.Size), int64(stat.Obj_size)
	i.stripeUnit, i.stripeCount = int64(unit), int64(count)
	return nil
}

// ID returns the image's internal id.
func (i *Image) ID() string { return i.id }

// Size returns the size in bytes at the point that the image is open at. It
// need not be a multiple of anything.
func (i *Image) Size() int64 { return i.size }

// ObjectSize returns the size in bytes of the RADOS objects that hold the data.
func (i *Image) ObjectSize() int64 { return i.objectSize }

// StripeUnit returns how many bytes lie in one object before the next one's turn.
func (i *Image) StripeUnit() int64 { return i.stripeUnit }

// StripeCount returns over how many objects consecutive stripes go in turn; 1
// where an object holds consecutive bytes.
func (i *Image) StripeCount() int64 { return i.stripeCount }

// Period returns how many bytes of the image a set of objects holds, over which
// stripes go in turn: borders at its multiples cut neither objects nor stripes.
func (i *Image) Period() int64 { return i.objectSize * i.stripeCount }

// Objects returns the number of objects of an image of size bytes with the
// layout of this one (Striper::get_num_objects of Ceph).
func (i *Image) Objects(size int64) int64 {
	period := i.Period()
	n := (size + period - 1) / period * i.stripeCount
	// The last set of objects has some that no stripe reaches.
	if rest := size % period; rest > 0 && rest < i.stripeUnit*i.stripeCount {
		n -= i.stripeCount - (rest+i.stripeUnit-1)/i.stripeUnit
	}
	return n
}

// Features returns the features of the image.
func (i *Image) Features() Features { return i.features }

// String returns the name for messages, POOL/[NAMESPACE/]IMAGE[@SNAPSHOT].
func (i *Image) String() string { return i.spec }

// Read fills p with the len(p) bytes from off on, which must lie inside the
// image (rbd_read). Reads inside one object are fastest.
//
// If ctx ends first, Read returns at once with an error that matches
// ErrAbandoned: librbd may still write into p, so the caller must never use p
// again, and must not give it to a pool of buffers.
func (i *Image) Read(ctx context.Context, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	err := i.checkRange(off, int64(len(p)))
	if err == nil {
		err = do(ctx, i.handle, func() error {
			n, err := i.image.ReadAt(p, off)
			if errors.Is(err, io.EOF) {
				return fmt.Errorf("%w: %d of %d bytes", io.ErrUnexpectedEOF, n, len(p))
			}
			return err
		})
	}
	if err == nil {
		return nil
	}
	return fail("read", rangeSpec(i.spec, off, int64(len(p))), err)
}

func (i *Image) checkRange(off, length int64) error { return checkRange(off, length, i.size) }

func checkRange(off, length, size int64) error {
	if off < 0 || length < 0 || off > size || length > size-off {
		return fmt.Errorf("range lies outside the image of %d bytes", size)
	}
	return nil
}

// rangeSpec names part of an image for messages.
func rangeSpec(spec string, off, length int64) string {
	return fmt.Sprintf("%s at %d+%d", spec, off, length)
}

// Close closes the image when no call uses it any more (rbd_close). It waits
// for a bounded time only; then the error matches ErrAbandoned and the image
// is closed as soon as that is possible. Closing twice does nothing.
func (i *Image) Close() error { return fail("close image", i.spec, closeAll(i.handle)) }
