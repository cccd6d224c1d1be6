package rbd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
)

// callsPerWatchdog is how many operations that each run into their time-out one
// call of librbd may take: a close was seen to need three.
const callsPerWatchdog = 8

// Cluster is a connection to one Ceph cluster. It is safe for concurrent use.
type Cluster struct {
	cfg    Config
	reader *conn
	fsid   string

	mu    sync.Mutex
	pools []*Pool

	snapshotsLock chan struct{} // a mutex that can be waited for with a context
	snapshots     *conn         // made when first needed
	closed        bool
}

// Connect connects to the cluster that cfg names, within cfg.Timeout.
//
// Errors match ErrTimeout (monitors do not answer), ErrPermission (user or key
// refused), ErrNotFound (no keyring, no configuration file) and name the cause.
func Connect(ctx context.Context, cfg Config) (*Cluster, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("connect to cluster: %w", err)
	}
	c := &Cluster{cfg: cfg, snapshotsLock: make(chan struct{}, 1)}
	if cfg.WillSnapshot {
		go func() { _, _ = c.snapshotConn(ctx) }() // its error comes again when it is asked for
	}
	reader, err := connect(ctx, cfg, callsPerWatchdog*cfg.Timeout, map[string]string{
		"rados_osd_op_timeout": seconds(cfg.Timeout),
		"rbd_cache":            "false",
	})
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	c.reader = reader
	c.fsid, err = call(ctx, reader.handle, reader.rados.GetFSID, nil)
	if err != nil {
		return nil, errors.Join(fail("read cluster id", "", err), c.Close())
	}
	cfg.Logger.Debug("connected", slog.String("fsid", c.fsid), slog.String("client", reader.client()))
	return c, nil
}

// FSID returns the cluster's unique id in its usual UUID form.
func (c *Cluster) FSID() string { return c.fsid }

// SnapshotClient returns the RADOS name, such as "client.4242", that snapshots
// will be made under, and connects for them if that has not been done. Record
// it before the first snapshot: [Pool.BreakDeadLock] of a later run recognises
// by it a lock that this process left behind.
func (c *Cluster) SnapshotClient(ctx context.Context) (string, error) {
	conn, err := c.snapshotConn(ctx)
	if err != nil {
		return "", err
	}
	return conn.client(), nil
}

func (c *Cluster) snapshotConn(ctx context.Context) (*conn, error) {
	select {
	case c.snapshotsLock <- struct{}{}:
		defer func() { <-c.snapshotsLock }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if c.closed {
		return nil, ErrClosed
	}
	if c.snapshots != nil {
		return c.snapshots, nil
	}
	conn, err := connect(ctx, c.cfg, c.cfg.SnapshotTimeout, map[string]string{
		"rados_osd_op_timeout":                 "0",
		"rbd_cache":                            "false",
		"rbd_invalidate_object_map_on_timeout": "false",
	})
	if err != nil {
		return nil, err
	}
	c.snapshots = conn
	c.cfg.Logger.Debug("connected for snapshots", slog.String("client", conn.client()))
	return conn, nil
}

// Close closes pools and connections. It waits for calls that still run, but
// for a bounded time; then the error matches ErrAbandoned. Images are to be
// closed before.
func (c *Cluster) Close() error {
	c.snapshotsLock <- struct{}{}
	defer func() { <-c.snapshotsLock }()
	c.closed = true
	c.mu.Lock()
	defer c.mu.Unlock()
	var handles []*handle
	if c.reader != nil {
		handles = append(handles, c.reader.handle)
	}
	for _, p := range c.pools {
		handles = append(handles, p.handle)
	}
	if c.snapshots != nil {
		handles = append(handles, c.snapshots.handle)
	}
	return fail("close connection", "", closeAll(handles...))
}
