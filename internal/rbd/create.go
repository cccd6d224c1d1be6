package rbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"syscall"

	"github.com/ceph/go-ceph/rados"
	librbd "github.com/ceph/go-ceph/rbd"
)

// Object sizes that librbd accepts (CreateRequest::validate_order), in bytes.
const (
	minObjectSize = 4 << 10
	maxObjectSize = 32 << 20
)

// CreateOptions describe a new image. Zero values mean what they mean to "rbd create": the cluster's default.
type CreateOptions struct {
	Size                    int64    // bytes, not necessarily a multiple of anything
	ObjectSize              int64    // bytes, a power of two from 4 KiB to 32 MiB
	StripeUnit, StripeCount int64    // both or none; see [Image.StripeUnit]
	Features                Features // of which the [Features.Creatable] are taken
	FeaturesSet             bool     // Features are meant, even if there are none
	DataPool                string   // name; that of the image's own pool means none, whatever the default
}

func (o CreateOptions) check() error {
	size := uint64(o.ObjectSize)
	switch {
	case o.Size < 0 || o.Size > maxSize:
		return fmt.Errorf("impossible size %d", o.Size)
	case size != 0 && (bits.OnesCount64(size) != 1 || size < minObjectSize || size > maxObjectSize):
		return fmt.Errorf("object size %d: not a power of two from 4 KiB to 32 MiB", o.ObjectSize)
	case o.StripeUnit < 0 || o.StripeCount < 0 || (o.StripeUnit == 0) != (o.StripeCount == 0):
		return fmt.Errorf("stripe unit %d and stripe count %d: give both or none", o.StripeUnit, o.StripeCount)
	}
	return checkName(o.DataPool)
}

// withOptions runs f with the options in librbd's form, those of value zero left out.
func (o CreateOptions) withOptions(f func(*librbd.ImageOptions) error) error {
	opts := librbd.NewRbdImageOptions()
	defer opts.Destroy()
	numbers := map[librbd.ImageOption]uint64{
		librbd.ImageOptionFormat:      2,
		librbd.ImageOptionStripeUnit:  uint64(o.StripeUnit),
		librbd.ImageOptionStripeCount: uint64(o.StripeCount),
	}
	if o.ObjectSize > 0 {
		numbers[librbd.ImageOptionOrder] = uint64(bits.TrailingZeros64(uint64(o.ObjectSize)))
	}
	for option, value := range numbers {
		if value == 0 {
			continue
		}
		if err := opts.SetUint64(option, value); err != nil {
			return err
		}
	}
	if o.FeaturesSet {
		if err := opts.SetUint64(librbd.ImageOptionFeatures, uint64(o.Features.Creatable())); err != nil {
			return err
		}
	}
	if o.DataPool != "" {
		if err := opts.SetString(librbd.ImageOptionDataPool, o.DataPool); err != nil {
			return err
		}
	}
	return f(opts)
}

// CreateImage creates an empty image (rbd_create4). Errors match ErrExists, ErrPermission, ErrQuota, and ErrNotFound where
// there is no such data pool. After ErrAbandoned and ErrTimeout the image may exist, now or later.
func (p *Pool) CreateImage(ctx context.Context, name string, o CreateOptions) (ImageRef, error) {
	object := p.Spec(name)
	if err := errors.Join(checkImageName(name), o.check()); err != nil {
		return ImageRef{}, fail("create image", object, err)
	}
	id, err := call(ctx, p.handle, func() (id string, err error) {
		err = p.withWriting(p.cluster.reader, func(ioctx *rados.IOContext) error {
			err := o.withOptions(func(opts *librbd.ImageOptions) error {
				return librbd.CreateImage(ioctx, name, uint64(o.Size), opts)
			})
			if err != nil {
				return p.explainCreate(o, err)
			}
			id, err = imageID(ioctx, name)
			return err
		})
		return id, err
	}, nil)
	if err != nil {
		return ImageRef{}, fail("create image", object, err)
	}
	p.names.Store(id, name)
	return ImageRef{Name: name, ID: id}, nil
}

// explainCreate says what the codes of rbd_create4 mean. It blocks in C.
func (p *Pool) explainCreate(o CreateOptions, err error) error {
	switch err = translate(err); {
	case errors.Is(err, ErrNotFound) && !p.hasPool(o.DataPool):
		return fmt.Errorf("data pool %s: %w", o.DataPool, err)
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENOSYS):
		text := fmt.Sprintf("librbd refuses this combination: size %d, object size %d, stripes %d of %d bytes", o.Size, o.ObjectSize,
			o.StripeCount, o.StripeUnit)
		if o.FeaturesSet {
			text += fmt.Sprintf(", features %v", o.Features.Creatable().Names())
		}
		if o.DataPool != "" {
			text += ", data pool " + o.DataPool
		}
		return &explained{text, err}
	}
	return explainFull(err)
}

// hasPool tells whether the cluster has a data pool; the zero value does not name one.
func (p *Pool) hasPool(dataPool string) bool {
	if dataPool == "" {
		return true
	}
	_, err := p.cluster.reader.rados.GetPoolByName(dataPool)
	return err == nil
}

// FindImage finds an image outside the trash by name, whatever state it is in: it is not opened. Errors match ErrNotFound.
func (p *Pool) FindImage(ctx context.Context, name string) (ImageRef, error) {
	object := p.Spec(name)
	if err := checkName(name); err != nil {
		return ImageRef{}, fail("find image", object, err)
	}
	id, err := call(ctx, p.handle, func() (string, error) { return imageID(p.ioctx, name) }, nil)
	if err != nil {
		return ImageRef{}, fail("find image", object, err)
	}
	p.names.Store(id, name)
	return ImageRef{Name: name, ID: id}, nil
}

// RemoveImage removes an image and its data (rbd_remove), which takes long if it is large. Errors match ErrNotFound; or ErrBusy
// (a client has it open, or had half a minute ago before it crashed; or it is under migration), ErrNotEmpty or ErrQuota, which
// leave it as it was. After others, ErrAbandoned above all, some of it may be gone, but not its name: remove it again.
//
// ErrQuota says that the pool is full, and has no room even for what a removal writes first. [Writer.Resize] to zero gives
// room, of which the cluster learns some seconds later.
func (p *Pool) RemoveImage(ctx context.Context, imageID string) error {
	object := p.idSpec(imageID, "")
	if err := checkName(imageID); err != nil {
		return fail("remove image", object, err)
	}
	// Its operations time out, which bounds the call where a watchdog would bound the size of images.
	err := doUnwatched(ctx, p.handle, func() error {
		return p.withWriting(p.cluster.reader, func(ioctx *rados.IOContext) error {
			name, err := imageName(ioctx, imageID)
			if err != nil {
				return err
			}
			err = translate(librbd.RemoveImage(ioctx, name))
			if errors.Is(err, ErrNotFound) {
				// librbd's answer where there is no room for the entry in the trash that it begins with.
				if _, findErr := imageName(ioctx, imageID); findErr == nil {
					err = &explained{"librbd could not move it to the trash first: is the pool full?", ErrQuota}
				}
			}
			return err
		})
	})
	return fail("remove image", object, err)
}

// withWriting runs f with an I/O context of its own on which writes to a full pool, or to one whose quota is reached, fail.
// By default they wait until someone makes room.
func (p *Pool) withWriting(c *conn, f func(*rados.IOContext) error) error {
	ioctx, err := p.ioctxOn(c)
	if err != nil {
		return err
	}
	defer ioctx.Destroy()
	if err := ioctx.SetPoolFullTry(); err != nil {
		return err
	}
	return f(ioctx)
}

// directoryObject maps names to ids, by keys "name_NAME", and ids to names, by keys "id_ID" (cls_rbd). An image is the last to
// leave it when it is removed, and the first to come when it is created.
const directoryObject = "rbd_directory"

func imageID(ioctx *rados.IOContext, name string) (string, error) {
	return directoryEntry(ioctx, "name_"+name)
}

func imageName(ioctx *rados.IOContext, id string) (string, error) {
	return directoryEntry(ioctx, "id_"+id)
}

// directoryEntry reads one value, a string after its length in 32 bits, little-endian.
func directoryEntry(ioctx *rados.IOContext, key string) (string, error) {
	values, err := ioctx.GetOmapValues(directoryObject, "", key, 1) // of the keys that begin so, the first is key itself
	if err != nil {
		return "", err
	}
	value, ok := values[key]
	if !ok {
		return "", ErrNotFound
	}
	if len(value) < 4 || uint64(binary.LittleEndian.Uint32(value)) != uint64(len(value)-4) {
		return "", fmt.Errorf("%s: entry %q is malformed", directoryObject, key)
	}
	return string(value[4:]), nil
}

// checkImageName refuses names for new images that librbd accepts, but neither its tools nor QEMU can spell.
func checkImageName(name string) error {
	if name == "" {
		return errors.New("the name is empty")
	}
	if strings.ContainsAny(name, "@/") {
		return fmt.Errorf("name %q: contains @ or /", name)
	}
	return checkName(name)
}
