package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/rbd2qcow2/rbd2qcow2/internal/extent"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// unchangedPiece is what is picked or passed over as one, in bytes: as large as one can be at the cost of a small read.
// Neighbours that are picked are read together.
const unchangedPiece = 256 << 10

// unchangedCheck compares a share of what is called unchanged with the chain.
type unchangedCheck struct {
	src      source       // the image at the new snapshot
	size     int64        // of src, in bytes; need not be a multiple of anything
	base     *qcow2.Image // what the image was; beyond its end that was zero
	percent  float64      // how much of it is compared, at random; 100: all
	parallel int          // reads in flight
	engine   *engine      // whose chunks are the buffers, so that its bound of memory holds
	compared func(bytes int64)
}

// lieError says that the image has changed where nothing was reported.
type lieError struct{ offset int64 }

func (e *lieError) Error() string {
	return fmt.Sprintf("change tracking lied: the image differs from the newest point at offset %d, where no change was reported", e.offset)
}

// run compares, outside of the extents, which List.Extents gave. The error matches *lieError, with the first offset
// that differs, if something does. Other errors, those of reading and ctx's cause, say nothing about that.
func (u *unchangedCheck) run(ctx context.Context, extents []extent.Extent) (err error) {
	spans := make(chan extent.Extent)
	var differs firstOffset
	g, working := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(spans)
		for span := range u.pick(extents) {
			if differs.found() { // what lies before it has been handed out
				break
			}
			select {
			case spans <- span:
			case <-working.Done():
				return nil
			}
		}
		return nil
	})
	for range u.parallel {
		g.Go(func() error { return u.compareAll(working, spans, &differs) })
	}
	err = g.Wait()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("compare what is unchanged with the newest point: %w", err)
	case differs.found():
		return &lieError{differs.offset()}
	}
	return nil
}

// expected is about how much there will be to compare, in bytes.
func (u *unchangedCheck) expected(extents []extent.Extent) int64 {
	data, zero := extent.Bytes(extents)
	return int64(float64(u.size-data-zero) * u.percent / 100)
}

// limit bounds a read, in bytes: a chunk holds what is and what was.
func (u *unchangedCheck) limit() int64 { return u.engine.step / 2 }

// pick chooses what to compare, in ascending order, each part within the limit of a read.
func (u *unchangedCheck) pick(extents []extent.Extent) iter.Seq[extent.Extent] {
	limit := u.limit()
	piece := min(unchangedPiece, limit)
	return func(yield func(extent.Extent) bool) {
		var next extent.Extent
		for gap := range gaps(extents, u.size) {
			for off := gap.Offset; off < gap.End(); {
				end := min(gap.End(), (off/piece+1)*piece)
				if rand.Float64()*100 < u.percent {
					if off != next.End() || off%limit == 0 {
						if next.Length > 0 && !yield(next) {
							return
						}
						next = extent.Extent{Offset: off}
					}
					next.Length = end - next.Offset
				}
				off = end
			}
		}
		if next.Length > 0 {
			yield(next)
		}
	}
}

// gaps gives what lies between the extents, up to size.
func gaps(extents []extent.Extent, size int64) iter.Seq[extent.Extent] {
	return func(yield func(extent.Extent) bool) {
		at := int64(0)
		for _, e := range extents {
			if e.Offset > at && !yield(extent.Extent{Offset: at, Length: e.Offset - at}) {
				return
			}
			at = e.End()
		}
		if at < size {
			yield(extent.Extent{Offset: at, Length: size - at})
		}
	}
}

// compareAll is one of the goroutines that read.
func (u *unchangedCheck) compareAll(ctx context.Context, spans <-chan extent.Extent, differs *firstOffset) error {
	for span := range spans {
		var chunk *qcow2.Chunk
		select {
		case chunk = <-u.engine.free:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		chunk.Data = slices.Grow(chunk.Data[:0], int(2*u.limit()))[:2*span.Length]
		at, err := u.compare(ctx, chunk.Data[:span.Length], chunk.Data[span.Length:], span.Offset)
		if errors.Is(err, rbd.ErrAbandoned) {
			chunk = new(qcow2.Chunk) // librbd still writes into the other
		}
		u.engine.free <- chunk
		if err != nil {
			return err
		}
		if at >= 0 {
			differs.note(span.Offset + at)
		}
		u.compared(span.Length)
	}
	return nil
}

// compare gives where, from off on, the image is not what it was, -1 if it is.
func (u *unchangedCheck) compare(ctx context.Context, is, was []byte, off int64) (int64, error) {
	if err := u.src.Read(ctx, is, off); err != nil {
		return 0, err
	}
	if err := readBase(u.base, was, off); err != nil {
		return 0, err
	}
	return mismatch(is, was), nil
}

// readBase fills p with what the image was.
func readBase(base *qcow2.Image, p []byte, off int64) error {
	n := 0
	if off < base.Size() {
		var err error
		if n, err = base.ReadAt(p, off); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	clear(p[n:])
	return nil
}

// mismatch gives the index of the first byte that differs in two slices of one length, -1 if none does.
func mismatch(a, b []byte) int64 {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return int64(i)
		}
	}
	return -1
}

// firstOffset is the lowest offset noted, if any. Several goroutines may note at once.
type firstOffset struct{ above atomic.Int64 } // offset plus one

func (f *firstOffset) found() bool   { return f.above.Load() != 0 }
func (f *firstOffset) offset() int64 { return f.above.Load() - 1 }

func (f *firstOffset) note(offset int64) {
	for {
		old := f.above.Load()
		if old != 0 && old <= offset+1 || f.above.CompareAndSwap(old, offset+1) {
			return
		}
	}
}
