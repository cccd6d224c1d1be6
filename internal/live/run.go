package live

import (
	"context"
	"errors"
	"maps"
	"slices"
	"syscall"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
)

// sparseSize is of what size runs of zeroes are given back, in bytes: the default of "rbd sparsify", and the block of most file
// systems.
const sparseSize = 4 << 10

// Run copies the data, whoever uses the image meanwhile, and finishes the image, which gets the metadata. An error is an
// *UnfinishedError. If ctx ends, librbd may go on copying until the process ends.
func (l *Restore) Run(ctx context.Context, metadata map[string]string) error {
	if err := l.run(ctx, metadata); err != nil {
		return &UnfinishedError{err}
	}
	return nil
}

func (l *Restore) run(ctx context.Context, metadata map[string]string) error {
	if l.stage == copying {
		if err := l.execute(ctx); err != nil {
			return err
		}
		l.stage = copied
	}
	if l.stage == copied {
		l.Progress.Phase("commit")
		if err := l.Pool.CommitMigration(ctx, l.Image); err != nil {
			return err
		}
		l.stage = committed
	}
	if err := l.finish(ctx, metadata); err != nil {
		return err
	}
	return l.journal.remove()
}

// execute copies for as long as the server lives.
func (l *Restore) execute(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := l.source
	go func() {
		select {
		case <-s.done:
			cancel(s.err)
		case <-ctx.Done():
		}
	}()
	l.Progress.Phase("import")
	return l.Pool.ExecuteMigration(ctx, l.Image, func(percent int) { l.Progress.Advance(int64(percent), 100) })
}

// finish does what is left of a disk that is whole. Others may have it open: both go by way of who has its lock.
func (l *Restore) finish(ctx context.Context, metadata map[string]string) (err error) {
	l.Progress.Phase("sparsify")
	w, err := l.Pool.OpenWriter(ctx, l.journal.entry.ImageID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	for _, key := range slices.Sorted(maps.Keys(metadata)) {
		err := w.SetMetadata(ctx, key, metadata[key])
		if errors.Is(err, syscall.EINVAL) { // an option that this release of librbd does not know
			l.Logger.Warn("not restored", "metadata", key, "value", metadata[key], "error", err)
		} else if err != nil {
			return err
		}
	}
	if err := w.Sparsify(ctx, sparseSize); err != nil {
		if ctx.Err() != nil || errors.Is(err, rbd.ErrTimeout) {
			return err
		}
		l.Logger.Warn("the image stores its zeroes: \"rbd sparsify\" gives the space back", "image", l.Pool.Spec(l.Image), "error", err)
	}
	return nil
}
