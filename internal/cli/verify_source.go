//go:build !noceph

package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/verify"
)

// sourceFlags say with what the newest points are compared.
type sourceFlags struct {
	pool string
	ceph rbd.Config
}

func (f *sourceFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.pool, "source", "",
		"compare the newest points with the snapshots in `POOL[/NAMESPACE]` that they were made from")
	cephFlags(flags, &f.ceph)
}

func (f *sourceFlags) validate() error {
	if f.pool == "" {
		return nil
	}
	_, _, err := splitPool(f.pool)
	return errors.Join(err, checkCeph(&f.ceph))
}

// connect makes the pool the source, if there is one, until the function is called that it gives.
func (f *sourceFlags) connect(ctx context.Context, o *verify.Options) (disconnect func(), err error) {
	if f.pool == "" {
		return func() {}, nil
	}
	name, namespace, err := splitPool(f.pool)
	if err != nil {
		return nil, err
	}
	f.ceph.Logger = o.Logger
	cluster, err := rbd.Connect(ctx, f.ceph)
	if err != nil {
		return nil, err
	}
	disconnect = func() {
		if err := cluster.Close(); err != nil {
			o.Logger.Debug("disconnect", "error", err)
		}
	}
	pool, err := cluster.Pool(ctx, name, namespace)
	if err != nil {
		disconnect()
		return nil, err
	}
	o.Source = func(ctx context.Context, p *repo.Point) (verify.Source, error) {
		return openSource(ctx, cluster.FSID(), pool, p)
	}
	return disconnect, nil
}

// openSource opens the snapshot that a point was made from.
func openSource(ctx context.Context, fsid string, pool *rbd.Pool, p *repo.Point) (verify.Source, error) {
	id := p.Identity
	if id == nil {
		return nil, fmt.Errorf("point %s does not tell what it was made from", p.Name)
	}
	if id.Image.FSID != fsid || id.Image.PoolID != pool.ID() || id.Image.Namespace != pool.Namespace() {
		return nil, fmt.Errorf("point %s was not made from pool %s", p.Name, pool)
	}
	snapshot, err := pool.SnapshotID(ctx, id.Image.ID, id.Snapshot.Name)
	if errors.Is(err, rbd.ErrNotFound) || err == nil && snapshot != id.Snapshot.ID {
		return nil, fmt.Errorf("snapshot %s of image %s, which point %s was made from, is gone", id.Snapshot.Name,
			pool.Spec(id.Image.RealName()), p.Name)
	}
	if err != nil {
		return nil, err
	}
	img, err := pool.OpenAt(ctx, id.Image.ID, id.Snapshot.Name)
	if err != nil {
		return nil, err
	}
	return source{img}, nil
}

// source is a snapshot as package verify reads it.
type source struct{ *rbd.Image }

// Data lists what exists of the snapshot, in parents too.
func (s source) Data(ctx context.Context, add func(off, n int64) error) error {
	return s.Diff(ctx, "", 0, s.Size(), func(e rbd.Extent) error {
		if !e.Exists {
			return nil
		}
		return add(e.Offset, e.Length)
	})
}
