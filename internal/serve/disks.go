package serve

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// Points that nobody reads stay open for the next request, but only a few and not for long.
const (
	maxIdleDisks = 4
	idleDiskTime = 30 * time.Second
)

// disks are the points that are open, each once, however many requests read it.
type disks struct {
	mu     sync.Mutex
	open   map[string]*disk // by the path of the point's file
	idle   []*disk          // those that nobody reads, the longest so first
	closed bool
}

// acquire gives a point's disk, as its files are now. release gives it back.
func (c *disks) acquire(f *repo.Folder, name repo.PointName) (*disk, error) {
	for range 3 {
		d := c.take(f, name)
		d.once.Do(d.load) // not with c locked: it takes its time
		if d.err == nil && d.isCurrent() {
			return d, nil
		}
		c.drop(d)
		if d.err != nil {
			return nil, d.err
		}
	}
	return nil, fmt.Errorf("open point %s: its files change", f.Path(name))
}

func (c *disks) take(f *repo.Folder, name repo.PointName) *disk {
	c.mu.Lock()
	defer c.mu.Unlock()
	path := f.Path(name)
	d := c.open[path]
	if d == nil {
		d = &disk{folder: f, name: name}
		c.open[path] = d
	}
	c.wake(d)
	d.users++
	return d
}

// share gives a disk that is in use to one more user.
func (c *disks) share(d *disk) *disk {
	c.mu.Lock()
	defer c.mu.Unlock()
	d.users++
	return d
}

// wake takes a disk off the idle ones, if it is one.
func (c *disks) wake(d *disk) {
	if i := slices.Index(c.idle, d); i >= 0 {
		c.idle = slices.Delete(c.idle, i, i+1)
		d.expiry.Stop()
	}
}

func (c *disks) release(d *disk) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leave(d)
}

// drop releases a disk that nobody shall get any more.
func (c *disks) drop(d *disk) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(d)
	c.leave(d)
}

func (c *disks) forget(d *disk) {
	if path := d.folder.Path(d.name); c.open[path] == d {
		delete(c.open, path)
	}
}

// leave ends one use of a disk. The last one closes it if it has been forgotten.
func (c *disks) leave(d *disk) {
	d.users--
	switch {
	case d.users > 0:
	case c.closed || c.open[d.folder.Path(d.name)] != d:
		d.close()
	default:
		c.idle = append(c.idle, d)
		d.expiry = time.AfterFunc(idleDiskTime, func() { c.expire(d) })
		if len(c.idle) > maxIdleDisks {
			c.evict(c.idle[0])
		}
	}
}

func (c *disks) expire(d *disk) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.Contains(c.idle, d) {
		c.evict(d)
	}
}

// evict closes an idle disk.
func (c *disks) evict(d *disk) {
	c.wake(d)
	c.forget(d)
	d.close()
}

// close closes the idle disks now, the others when they are released.
func (c *disks) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for len(c.idle) > 0 {
		c.evict(c.idle[0])
	}
}
