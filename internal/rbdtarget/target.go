// Package rbdtarget restores to RBD images: new ones, existing ones as a whole, and existing ones by what differs.
package rbdtarget

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

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
	t, err := open(ctx, r.Pool, ref, before != nil, r.Logger)
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

// open opens an image that nobody else has open. After a restore that was killed the cluster takes its client for alive for
// a while: for that of a marked image open waits.
func open(ctx context.Context, pool *rbd.Pool, ref rbd.ImageRef, marked bool, log *slog.Logger) (*Target, error) {
	w, err := pool.OpenWriter(ctx, ref.ID)
	if err != nil {
		return nil, err
	}
	wait := time.Duration(0)
	if marked {
		wait = deadClientWait
	}
	if err := awaitUnused(ctx, w, wait, log); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return &Target{writer: w, log: log}, nil
}

// deadClientWait is longer than osd_client_watch_timeout, which is 30 seconds by default.
const deadClientWait = 40 * time.Second

// awaitUnused waits until no other client has the image open.
func awaitUnused(ctx context.Context, w *rbd.Writer, wait time.Duration, log *slog.Logger) error {
	deadline := time.Now().Add(wait)
	for first := true; ; first = false {
		others, err := w.OtherWatchers(ctx)
		switch {
		case err != nil || len(others) == 0:
			return err
		case time.Now().After(deadline):
			return refused("restore to %s: it is in use, by %s: stop what uses it", w, strings.Join(others, ", "))
		case first:
			log.Info("waiting for a client that has the image open; it may be one that was killed", "client", strings.Join(others, ", "))
		}
		select {
		case <-time.After(time.Second / 2):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// RefusedError says why an image is not restored to: as it is, it stays.
type RefusedError struct{ err error }

func (e *RefusedError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *RefusedError) Unwrap() error { return e.err }

func refused(format string, args ...any) error { return &RefusedError{fmt.Errorf(format, args...)} }

// refuse says why an image is not restored to.
func refuse(ctx context.Context, pool *rbd.Pool, ref rbd.ImageRef) error {
	m, err := Unfinished(ctx, pool, ref.ID)
	if err != nil {
		return err
	}
	if m != nil {
		return refused("restore to %s: it is unfinished, from a restore of %s that began at %s: --resume goes on, --overwrite starts over",
			pool.Spec(ref.Name), m.Point, m.Started.Local().Format(time.DateTime))
	}
	return refused("restore to %s: it %w: --overwrite replaces all that it holds, --in-place writes what differs",
		pool.Spec(ref.Name), rbd.ErrExists)
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

// Mark is the value of repo.UnfinishedKey in the metadata of an image whose restore is not finished.
type Mark struct {
	Point   string    `json:"point"` // FOLDER@POINT
	PointID string    `json:"point_id,omitempty"`
	New     bool      `json:"new"` // the image was made by the restore
	Started time.Time `json:"started"`
}

func (t *Target) mark(ctx context.Context, src *restore.Source, fresh bool) error {
	m := Mark{Point: src.Describe(), New: fresh, Started: time.Now().UTC().Truncate(time.Second)}
	if id := src.Chain.Points[0].Identity; id != nil {
		m.PointID = id.PointID
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return t.writer.SetMetadata(ctx, repo.UnfinishedKey, string(b))
}

// Unfinished gives the mark of an image, nil where it has none.
func Unfinished(ctx context.Context, pool *rbd.Pool, imageID string) (*Mark, error) {
	img, err := pool.OpenAt(ctx, imageID, "")
	if err != nil {
		return nil, err
	}
	metadata, err := img.Metadata(ctx)
	if err = errors.Join(err, img.Close()); err != nil {
		return nil, err
	}
	value, ok := metadata[repo.UnfinishedKey]
	if !ok {
		return nil, nil
	}
	m := new(Mark)
	if err := json.Unmarshal([]byte(value), m); err != nil {
		m.Point = "an unknown point" // the mark counts, whatever it says
	}
	return m, nil
}
