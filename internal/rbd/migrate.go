package rbd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	librbd "github.com/ceph/go-ceph/rbd"
)

// importRelease is the first release of Ceph whose OSDs keep where an image is imported from: 16, Pacific.
const importRelease = 16

// migrationPoll is how often we look whether the cluster lives, and how far a migration is.
const migrationPoll = 500 * time.Millisecond

// SupportsImport tells whether images of the pool can be used while they are imported (PrepareImport): librbd and all OSDs have
// to be of Ceph 16 or newer. Otherwise the error matches ErrUnsupported and says which of them is older. The clients that will
// use the image have to be as new, too; the kernel's client never can.
func (p *Pool) SupportsImport(ctx context.Context) error {
	release, err := call(ctx, p.handle, func() (int, error) { return requiredRelease(p.ioctx) }, nil)
	if err == nil && release < importRelease {
		err = fmt.Errorf("%w by OSDs before Ceph %d (require_osd_release is that of Ceph %d)", ErrUnsupported, importRelease, release)
	}
	return fail("prepare for imports", p.String(), err)
}

// PrepareImport creates an image whose contents come from elsewhere, and which can be used at once
// (rbd_migration_prepare_import): what is read before it was copied or written is fetched from the source by whoever reads it.
// The source is librbd's JSON, such as
//
//	{"type": "raw", "stream": {"type": "http", "url": "http://host:8080/disk.raw"}}
//
// The size of the image is that of the source, o.Size is ignored. There is no image after an error, but perhaps after
// ErrAbandoned and ErrTimeout. Errors match ErrExists, ErrPermission, ErrQuota, ErrNotFound (the source, or the data pool).
func (p *Pool) PrepareImport(ctx context.Context, name, source string, o CreateOptions) error {
	o.Size = 0
	if err := errors.Join(checkImageName(name), o.check(), checkName(source)); err != nil {
		return fail("prepare import of", p.Spec(name), err)
	}
	return p.migrate(ctx, do, "prepare import of", name, func(ioctx *rados.IOContext) error {
		err := o.withOptions(func(opts *librbd.ImageOptions) error { return prepareImport(source, ioctx, name, opts) })
		return p.explainPrepare(o, err)
	})
}

// explainPrepare says what the codes of rbd_migration_prepare_import mean. It blocks in C.
func (p *Pool) explainPrepare(o CreateOptions, err error) error {
	switch err = translate(err); {
	case err == nil:
		return nil
	case errors.Is(err, ErrNotFound) && p.hasPool(o.DataPool):
		return fmt.Errorf("source: %w", err)
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENOSYS), errors.Is(err, syscall.EBADMSG):
		return &explained{"librbd refuses the source, or the options for the new image", err}
	}
	return p.explainCreate(o, err)
}

// ExecuteMigration copies what has not been copied yet, while the image is used (rbd_migration_execute), for as long as it takes;
// if another client holds the image's lock, such as a running VM, it is asked to do it. progress, if not nil, is told now and
// then how many percent are done.
//
// If ctx ends first, the error matches ErrAbandoned and the copying goes on until the process ends. It can be executed again.
func (p *Pool) ExecuteMigration(ctx context.Context, name string, progress func(percent int)) error {
	poll := func(ctx context.Context) error {
		_, description, err := p.MigrationStatus(ctx, name)
		percent := 0
		if n, _ := fmt.Sscanf(description, "%d%% complete", &percent); n == 1 && progress != nil {
			progress(percent)
		}
		return err
	}
	err := p.migrateAtLength(ctx, "execute migration of", name, poll, executeMigration)
	if err == nil && progress != nil {
		progress(100)
	}
	return err
}

// CommitMigration ends a migration that has been executed: the image needs its source no more (rbd_migration_commit).
func (p *Pool) CommitMigration(ctx context.Context, name string) error {
	return p.migrateAtLength(ctx, "commit migration of", name, p.alive(name), commitMigration)
}

// AbortMigration removes the image that was being imported (rbd_migration_abort), the source need not be there. Errors match
// ErrBusy if a client has the image open, or had half a minute ago before it crashed.
func (p *Pool) AbortMigration(ctx context.Context, name string) error {
	return p.migrateAtLength(ctx, "abort migration of", name, p.alive(name), abortMigration)
}

// MigrationStatus tells the state of a migration as "rbd status" prints it, unknown, error, preparing, prepared, executing,
// executed or aborting, and says more of it, "42% complete" while it executes (rbd_migration_status). Errors match ErrNotFound
// and ErrNotMigrating.
func (p *Pool) MigrationStatus(ctx context.Context, name string) (state, description string, err error) {
	type status struct{ state, description string }
	if err = checkName(name); err == nil {
		var s status
		s, err = call(ctx, p.handle, func() (s status, err error) {
			s.state, s.description, err = migrationStatus(p.ioctx, name)
			if err = translate(err); errors.Is(err, syscall.EINVAL) {
				err = ErrNotMigrating
			}
			return s, err
		}, nil)
		state, description = s.state, s.description
	}
	return state, description, fail("ask for the migration of", p.Spec(name), err)
}

// migrate runs f, which blocks in C, by do or doUnwatched, on the connection for changes to images that others use.
func (p *Pool) migrate(ctx context.Context, run runner, op, name string, f func(*rados.IOContext) error) error {
	err := checkImageName(name)
	var c *conn
	if err == nil {
		c, err = p.cluster.snapshotConn(ctx)
	}
	if err == nil {
		err = run(ctx, c.handle, func() error {
			return p.withWriting(c, func(ioctx *rados.IOContext) error {
				err := explainFull(f(ioctx))
				if errors.Is(err, syscall.EROFS) {
					if id, idErr := imageID(ioctx, name); idErr == nil {
						err = p.lockedError(ioctx, id, err)
					}
				}
				return err
			})
		})
	}
	return fail(op, p.Spec(name), err)
}

// migrateAtLength is migrate for a step that takes longer the larger the image is. Writes on its connection never time out: it
// goes on for as long as the cluster answers poll, on the other connection. Where the state of the migration is not that for the
// step, the error says which it is.
func (p *Pool) migrateAtLength(ctx context.Context, op, name string, poll func(context.Context) error,
	step func(*rados.IOContext, string) error,
) error {
	polled, stop := context.WithCancelCause(ctx)
	var poller sync.WaitGroup
	poller.Go(func() {
		for polled.Err() == nil {
			if err := poll(polled); errors.Is(err, ErrTimeout) {
				stop(err)
			}
			select {
			case <-polled.Done():
			case <-time.After(migrationPoll):
			}
		}
	})
	err := p.migrate(polled, doUnwatched, op, name, func(ioctx *rados.IOContext) error { return step(ioctx, name) })
	stop(nil)
	poller.Wait()
	if errors.Is(err, syscall.EINVAL) {
		state, _, stateErr := p.MigrationStatus(ctx, name)
		if stateErr == nil {
			stateErr = &explained{"it is in state " + state, err}
		}
		return fail(op, p.Spec(name), stateErr)
	}
	return err
}

// alive returns a poll that does not open the image, which is in the way of its removal.
func (p *Pool) alive(name string) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := p.FindImage(ctx, name)
		return err
	}
}
