package restore

import (
	"bytes"
	"context"
	"errors"

	"golang.org/x/sync/errgroup"

	"github.com/rbd2qcow2/rbd2qcow2/internal/extent"
)

// Existing is a target that holds a disk already, of which most may be as it shall be.
type Existing interface {
	Target
	// Read fills p with what the target has at off. It is called by several goroutines at once.
	Read(ctx context.Context, p []byte, off int64) error
}

// Delta writes what differs between a disk and a target, looking only at extents: all places where they may differ, in
// ascending order. An error means that the target has been given up.
func Delta(ctx context.Context, src *Source, dst Existing, extents []extent.Extent, o Options) (Stats, error) {
	r := &run{src: src, dst: dst, layout: dst.Layout(), progress: o.Progress}
	if r.progress != nil {
		r.progress.Phase("compare")
		var total int64
		for _, e := range extents {
			total += e.Length
		}
		r.progress.Total(total)
	}
	err := r.compareAll(ctx, dst, extents, max(1, o.Parallel))
	if err == nil {
		err = dst.Finish(ctx)
	}
	if err != nil {
		err = errors.Join(err, dst.Abort())
	}
	return Stats{r.read.Load(), r.written.Load(), r.zeroed.Load()}, err
}

func (r *run) compareAll(ctx context.Context, dst Existing, extents []extent.Extent, parallel int) error {
	g, ctx := errgroup.WithContext(ctx)
	pieces := make(chan *piece, parallel)
	g.Go(func() error {
		defer close(pieces)
		for _, e := range extents {
			for p := range cut(extent.Extent{Offset: e.Offset, Length: e.Length, Data: true}, nil) {
				select {
				case pieces <- p:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
		}
		return nil
	})
	for range parallel {
		g.Go(func() error {
			var wanted, found []byte
			for p := range pieces {
				if wanted == nil {
					wanted, found = make([]byte, step), make([]byte, step)
				}
				if err := r.compare(ctx, dst, p, wanted[:p.length], found[:p.length]); err != nil {
					return err
				}
				if r.progress != nil {
					r.progress.Add(p.length)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// compare reads a piece from both sides and writes what differs.
func (r *run) compare(ctx context.Context, dst Existing, p *piece, wanted, found []byte) (err error) {
	if p.extents, err = r.src.Chain.Extents(nil, p.off, p.length); err != nil {
		return err
	}
	if err := p.read(r.src, wanted); err != nil {
		return err
	}
	if err := dst.Read(ctx, found, p.off); err != nil {
		return err
	}
	r.read.Add(p.length)
	for at := 0; at < len(wanted); {
		from, to := difference(wanted, found, at)
		if from < to {
			if err := r.write(ctx, wanted[from:to], p.off+int64(from)); err != nil {
				return err
			}
		}
		at = to
	}
	return nil
}

// joinDifferences is up to how many equal bytes are written between two that differ, where that saves an operation.
const joinDifferences = 4096

// difference finds the first range behind at in which a and b differ; an empty one at their end means none.
func difference(a, b []byte, at int) (from, to int) {
	for at < len(a) && equal(a, b, at) {
		at += grain
	}
	from, to = min(at, len(a)), min(at, len(a))
	for ; at < len(a) && at-to < joinDifferences; at += grain {
		if !equal(a, b, at) {
			to = min(at+grain, len(a))
		}
	}
	if from == to {
		return len(a), len(a)
	}
	return from, to
}

// equal compares a grain.
func equal(a, b []byte, at int) bool {
	end := min(at+grain, len(a))
	return bytes.Equal(a[at:end], b[at:end])
}
