// Package rbdtarget restores to RBD images: new ones, existing ones as a whole, and existing ones by what differs.
package rbdtarget

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/restore"
)

// hole is how many zero bytes are a hole. Ceph discards nothing smaller by default.
const hole = 64 << 10

// Request says what to restore to which image.
type Request struct {
	Pool   *rbd.Pool
	Name   string
	Source *restore.Source
	// Create is what a new image is made with. Metadata are those that a new image gets in the end.
	Create    rbd.CreateOptions
	Metadata  map[string]string
	Overwrite bool // an existing image too, whatever it holds
	Logger    *slog.Logger
}

// Target is an RBD image, open for writing.
type Target struct {
	writer   *rbd.Writer
	blank    bool
	locked   bool // nobody else can write
	mu       sync.Mutex
	head     []headPart // what a blank image's beginning gets last
	metadata map[string]string
	log      *slog.Logger
}

var _ restore.Existing = (*Target)(nil)

// Open makes the image, or opens the one that there is where the request allows that. Until Finish, the image's metadata say
// that it is unfinished. Nothing is changed where it returns an error, but that an image without a size may be left.
func Open(ctx context.Context, r Request) (*Target, error) {
	ref, err := r.Pool.FindImage(ctx, r.Name)
	switch {
	case errors.Is(err, rbd.ErrNotFound):
		return create(ctx, r)
	case err != nil:
		return nil, err
	case !r.Overwrite:
		return nil, refuse(ctx, r.Pool, ref)
	}
	return overwrite(ctx, r, ref)
}

// create makes the image without a size first: it can't be taken for a whole one before it is marked.
func create(ctx context.Context, r Request) (*Target, error) {
	o := r.Create
	o.Size = 0
	ref, err := r.Pool.CreateImage(ctx, r.Name, o)
	if err != nil {
		return nil, err
	}
	t, err := open(ctx, r.Pool, ref, false, r.Logger)
	if err != nil {
		return nil, err
	}
	t.blank, t.metadata = true, r.Metadata
	if err = t.mark(ctx, r.Source, true); err == nil {
		err = t.writer.Resize(ctx, r.Source.Size)
	}
	if err != nil {
		return nil, errors.Join(err, t.Abort())
	}
	return t, nil
}

func overwrite(ctx context.Context, r Request, ref rbd.ImageRef) (*Target, error) {
	before, err := Unfinished(ctx, r.Pool, ref.ID)
	if err != nil {
		return nil, err
	}
	t, err := openExisting(ctx, r.Pool, ref, before != nil, r.Logger)
	if err != nil {
		return nil, err
	}
	if before != nil && before.New {
		t.metadata = r.Metadata
	}
	// Cut off and grown again it is blank, whatever it held, and its parent, if it has one, shows through nowhere.
	t.blank = true
	err = t.mark(ctx, r.Source, before != nil && before.New)
	for _, size := range []int64{0, r.Source.Size} {
		if err == nil {
			err = t.writer.Resize(ctx, size)
		}
	}
	if err != nil {
		return nil, errors.Join(err, t.Abort())
	}
	return t, nil
}

// Layout implements restore.Target.
func (t *Target) Layout() restore.Layout {
	l := restore.Layout{Blank: t.blank, Hole: hole}
	if t.blank && t.writer.Period() == t.writer.ObjectSize() {
		l.Object = t.writer.ObjectSize()
	}
	return l
}

// headSize is how much of an image's beginning is written last, in bytes: what a virtual machine would boot by.
const headSize = 1 << 20

type headPart struct {
	off  int64
	data []byte
}

// Write implements restore.Target. The beginning of a blank image is kept back.
func (t *Target) Write(ctx context.Context, p []byte, off int64) error {
	if t.blank && off < headSize {
		kept := bytes.Clone(p[:min(int64(len(p)), headSize-off)])
		t.mu.Lock()
		t.head = append(t.head, headPart{off, kept})
		t.mu.Unlock()
		p, off = p[len(kept):], off+int64(len(kept))
	}
	return t.writer.Write(ctx, p, off)
}

// Read implements restore.Existing.
func (t *Target) Read(ctx context.Context, p []byte, off int64) error {
	return t.writer.Read(ctx, p, off)
}

// Zero implements restore.Target.
func (t *Target) Zero(ctx context.Context, off, length int64) error {
	return t.writer.WriteZeroes(ctx, off, length)
}

// Finish implements restore.Target: a new image gets its metadata, and the mark goes last.
func (t *Target) Finish(ctx context.Context) error {
	if err := t.writer.Flush(ctx); err != nil {
		return err
	}
	if err := t.checkAlone(ctx); err != nil {
		return err
	}
	for _, p := range t.head {
		if err := t.writer.Write(ctx, p.data, p.off); err != nil {
			return err
		}
	}
	if err := t.writer.Flush(ctx); err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(t.metadata)) {
		err := t.writer.SetMetadata(ctx, key, t.metadata[key])
		if errors.Is(err, syscall.EINVAL) && strings.HasPrefix(key, "conf_") {
			t.log.Warn("this release of librbd does not know an option in the metadata of the image", "key", key)
		} else if err != nil {
			return err
		}
	}
	if err := t.writer.RemoveMetadata(ctx, repo.UnfinishedKey); err != nil {
		return err
	}
	return t.writer.Close()
}

// Abort implements restore.Target. The image stays, marked as unfinished.
func (t *Target) Abort() error { return t.writer.Close() }
