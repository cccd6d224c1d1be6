package rbd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/ceph/go-ceph/rados"
	librbd "github.com/ceph/go-ceph/rbd"
)

// Pool is one pool, or one namespace of it. It is safe for concurrent use and
// closed by [Cluster.Close].
type Pool struct {
	cluster   *Cluster
	handle    *handle
	ioctx     *rados.IOContext
	id        int64
	name      string
	namespace string
	names     sync.Map // image id: name when last seen, for messages
}

// ImageRef names an image: Name can change and be given to another image, ID
// is unique in its pool and namespace.
type ImageRef struct {
	Name string
	ID   string
}

// Pool opens a pool, or with a namespace that part of it. Errors that match
// ErrNotFound name the pool or the namespace that is missing.
func (c *Cluster) Pool(ctx context.Context, pool, namespace string) (*Pool, error) {
	if pool == "" {
		return nil, errors.New("open pool: the name is empty")
	}
	if err := errors.Join(checkName(pool), checkName(namespace)); err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	ioctx, err := call(ctx, c.reader.handle, func() (*rados.IOContext, error) {
		return c.reader.rados.OpenIOContext(pool)
	}, (*rados.IOContext).Destroy)
	if err != nil {
		return nil, fail("open pool", pool, err)
	}
	h, err := newHandle(c.reader.handle, c.reader.watchdog, func() error { ioctx.Destroy(); return nil })
	if err != nil {
		ioctx.Destroy()
		return nil, fail("open pool", pool, err)
	}
	p := &Pool{cluster: c, handle: h, ioctx: ioctx, id: ioctx.GetPoolID(), name: pool, namespace: namespace}
	if namespace != "" {
		if err := p.checkNamespace(ctx); err != nil {
			return nil, errors.Join(err, closeAll(h))
		}
		ioctx.SetNamespace(namespace)
	}
	c.mu.Lock()
	c.pools = append(c.pools, p)
	c.mu.Unlock()
	return p, nil
}

// checkNamespace must run before the I/O context is set to the namespace: the
// list of namespaces lives in the pool's default one, which a user restricted
// to a namespace can't read. Such a user proves the namespace by having it.
func (p *Pool) checkNamespace(ctx context.Context) error {
	exists, err := call(ctx, p.handle, func() (bool, error) {
		return librbd.NamespaceExists(p.ioctx, p.namespace)
	}, nil)
	if err = translate(err); errors.Is(err, ErrPermission) {
		return nil
	}
	if err == nil && !exists {
		err = ErrNotFound
	}
	return fail("open namespace", p.name+"/"+p.namespace, err)
}

// ID returns the pool's number, which is never given to another pool.
func (p *Pool) ID() int64 { return p.id }

// Name returns the pool's name.
func (p *Pool) Name() string { return p.name }

// Namespace returns the namespace's name, empty for the default one.
func (p *Pool) Namespace() string { return p.namespace }

// Spec returns the name of an image as the rbd tool takes it:
// POOL/[NAMESPACE/]IMAGE.
func (p *Pool) Spec(image string) string {
	if p.namespace == "" {
		return p.name + "/" + image
	}
	return p.name + "/" + p.namespace + "/" + image
}

func (p *Pool) String() string {
	if p.namespace == "" {
		return p.name
	}
	return p.name + "/" + p.namespace
}

// ListImages returns the images outside the trash, sorted by name, from rbd_list2.
func (p *Pool) ListImages(ctx context.Context) ([]ImageRef, error) {
	refs, err := call(ctx, p.handle, func() ([]ImageRef, error) { return listImages(p.ioctx) }, nil)
	for _, ref := range refs {
		p.names.Store(ref.ID, ref.Name)
	}
	return refs, fail("list images of", p.String(), err)
}

// Open opens an image by name, read-only, at its head (rbd_open_read_only).
// The caller closes it. Snapshots and size are those of this moment: librbd
// does not follow changes on a read-only handle.
func (p *Pool) Open(ctx context.Context, name string) (*Image, error) {
	if err := checkName(name); err != nil {
		return nil, fail("open image", p.Spec(name), err)
	}
	return p.open(ctx, p.Spec(name), name, func() (*librbd.Image, error) {
		return librbd.OpenImageReadOnly(p.ioctx, name, librbd.NoSnapshot)
	})
}

// OpenAt opens an image by id, read-only, at a snapshot of the user namespace,
// or at its head if snapshot is empty (rbd_open_by_id_read_only). The caller
// closes it. See [Pool.Open] for what it does not follow.
func (p *Pool) OpenAt(ctx context.Context, imageID, snapshot string) (*Image, error) {
	spec := p.idSpec(imageID, snapshot)
	if err := errors.Join(checkName(imageID), checkName(snapshot)); err != nil {
		return nil, fail("open image", spec, err)
	}
	img, err := p.open(ctx, spec, "", func() (*librbd.Image, error) { return openByID(p.ioctx, imageID, snapshot) })
	if err != nil {
		return nil, err
	}
	img.snapshot = snapshot
	return img, nil
}

// openByID goes by way of the head: opened at a snapshot at once, an image is "not found" where the snapshot's object map
// is missing or empty.
func openByID(ioctx *rados.IOContext, imageID, snapshot string) (*librbd.Image, error) {
	img, err := librbd.OpenImageByIdReadOnly(ioctx, imageID, librbd.NoSnapshot)
	if err != nil || snapshot == "" {
		return img, err
	}
	if err := img.SetSnapshot(snapshot); err != nil {
		return nil, errors.Join(err, img.Close())
	}
	return img, nil
}

// idSpec names an image, as people know it where it has been listed, for messages.
func (p *Pool) idSpec(imageID, snapshot string) string {
	spec := p.Spec("id:" + imageID)
	if name, ok := p.names.Load(imageID); ok {
		spec = p.Spec(name.(string))
	}
	if snapshot != "" {
		spec += "@" + snapshot
	}
	return spec
}

func (p *Pool) open(ctx context.Context, spec, name string, open func() (*librbd.Image, error)) (*Image, error) {
	img, err := call(ctx, p.handle, func() (*Image, error) {
		handle, err := open()
		if err != nil {
			return nil, err
		}
		img := &Image{pool: p, image: handle, spec: spec, name: name}
		if err := img.load(); err != nil {
			return nil, errors.Join(err, handle.Close())
		}
		return img, nil
	}, func(late *Image) { _ = late.image.Close() })
	if err != nil {
		return nil, fail("open image", spec, err)
	}
	img.handle, err = newHandle(p.handle, p.handle.watchdog, img.free)
	if err != nil {
		_ = img.image.Close()
		return nil, fail("open image", spec, err)
	}
	p.cluster.cfg.Logger.Debug("opened image", slog.String("image", spec), slog.Int64("size", img.size))
	return img, nil
}
