package rbd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	librbd "github.com/ceph/go-ceph/rbd"
)

// lockName is the lock on the header object that librbd's exclusive lock and
// the rbd tool's "lock" commands use.
const lockName = "rbd_lock"

// watchPoll is how often BreakDeadLock looks whether the owner's watch is gone.
const watchPoll = 500 * time.Millisecond

// LockedError tells who holds the lock that a snapshot needs and does not give
// it. It matches ErrLocked.
type LockedError struct {
	Image   string // as the rbd tool takes it, or by id where the name is unknown
	Client  string // "client.4242"; empty if the lock was gone when asked
	Address string // "127.0.0.1:0/1234"
	Cookie  string // "auto 94012"
	Err     error
}

// Error names the owner, and the command that helps if it is dead.
func (e *LockedError) Error() string {
	if e.Client == "" {
		return fmt.Sprintf("%v: its lock was not given up (see: rbd lock ls %s)", ErrLocked, e.Image)
	}
	return fmt.Sprintf("%v by %s at %s, which does not give it up (if it is dead: rbd lock rm %s %s %s)", ErrLocked,
		e.Client, e.Address, shellQuote(e.Image), shellQuote(e.Cookie), e.Client)
}

// Unwrap returns ErrLocked and the cause.
func (e *LockedError) Unwrap() []error { return []error{ErrLocked, e.Err} }

// locker is the owner of a lock.
type locker struct{ client, cookie, address string }

func (l *locker) error(image string, cause error) error {
	return &LockedError{Image: image, Client: l.client, Address: l.address, Cookie: l.cookie, Err: cause}
}

// lockedError describes the lock; it blocks in C. What can't be found stays empty. librbd says that an image is locked, too, when
// the cluster did not answer its wish for the lock.
func (p *Pool) lockedError(ioctx *rados.IOContext, imageID string, cause error) error {
	owner, err := lockOwner(ioctx, imageID)
	if errors.Is(err, ErrTimeout) {
		return err
	}
	if err != nil || owner == nil {
		owner = &locker{}
	}
	image := p.idSpec(imageID, "")
	_ = withNative(ioctx, imageID, "", func(n native) error {
		if name, err := n.name(); err == nil && name != "" {
			image = p.Spec(name)
		}
		return nil
	})
	return owner.error(image, cause)
}

// lockOwner implements: ssize_t rados_list_lockers(…) for the exclusive lock;
// nil if nobody holds it.
func lockOwner(ioctx *rados.IOContext, imageID string) (*locker, error) {
	info, err := ioctx.ListLockers(headerObject(imageID), lockName)
	if err = translate(err); errors.Is(err, ErrNotFound) {
		return nil, nil // no lock was ever taken
	} else if err != nil {
		return nil, err
	}
	if info.NumLockers < 1 || len(info.Clients) < 1 || len(info.Cookies) < 1 || len(info.Addrs) < 1 {
		return nil, nil
	}
	return &locker{client: info.Clients[0], cookie: info.Cookies[0], address: info.Addrs[0]}, nil
}

// BreakDeadLock breaks the image's exclusive lock if its owner is dead and is
// one of ours; broke tells whether it did. A process that is killed while it
// makes a snapshot leaves its lock behind, and without the right to blocklist
// clients nobody else can take it. Call it before [Pool.CreateSnapshot]; if
// there is no such lock it costs one operation.
//
// ours says whether a RADOS client, named as by [Cluster.SnapshotClient], was a
// process of ours. An owner is dead when it no longer watches the image: that
// takes up to 30 seconds after its end, for which BreakDeadLock waits, or until
// ctx ends; then the error matches ErrLocked. The owner is not blocklisted:
// should it wake up after all, librbd's own check of the lock stops its
// snapshot, as it holds the lock no more.
func (p *Pool) BreakDeadLock(ctx context.Context, imageID string, ours func(client string) bool) (broke bool, err error) {
	object := p.idSpec(imageID, "")
	if err := checkName(imageID); err != nil {
		return false, fail("break lock of", object, err)
	}
	for {
		owner, err := call(ctx, p.handle, func() (*locker, error) { return lockOwner(p.ioctx, imageID) }, nil)
		if err != nil || owner == nil || !ours(owner.client) {
			return false, fail("find lock owner of", object, err)
		}
		alive, err := call(ctx, p.handle, func() (bool, error) { return p.watches(imageID, owner) }, nil)
		if err != nil {
			return false, fail("list watchers of", object, err)
		}
		if !alive {
			err := do(ctx, p.handle, func() error { return breakLock(p.ioctx, imageID, owner) })
			p.cluster.cfg.Logger.Debug("broke lock of a dead client", "image", object, "client", owner.client, "error", err)
			return err == nil, fail("break lock of", object, err)
		}
		select {
		case <-time.After(watchPoll):
		case <-ctx.Done():
			return false, fail("break lock of", object, owner.error(object, context.Cause(ctx)))
		}
	}
}

// watches reports whether owner still watches the image, on any of its handles.
func (p *Pool) watches(imageID string, owner *locker) (bool, error) {
	img, err := librbd.OpenImageByIdReadOnly(p.ioctx, imageID, librbd.NoSnapshot)
	if err != nil {
		return false, err
	}
	watchers, err := img.ListWatchers()
	if err = errors.Join(err, img.Close()); err != nil {
		return false, err
	}
	for _, w := range watchers {
		if "client."+strconv.FormatInt(w.Id, 10) == owner.client {
			return true, nil
		}
	}
	return false, nil
}

// breakLock implements: int rados_break_lock(…), which knows no blocklisting.
// That someone else has broken it, or the owner released it, is fine.
func breakLock(ioctx *rados.IOContext, imageID string, owner *locker) error {
	code, err := ioctx.BreakLock(headerObject(imageID), lockName, owner.client, owner.cookie)
	if err == nil && code != 0 && code != -int(syscall.ENOENT) {
		return codeErr(code)
	}
	return err
}

// shellQuote quotes a word of the command that a message proposes.
func shellQuote(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/-:", r)
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
