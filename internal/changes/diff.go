package changes

import (
	"context"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
)

const (
	// defaultParallel is how many calls of librbd are under way at once. Each keeps as many operations in flight.
	defaultParallel = 8
	// pieceObjects is how many objects one call covers: enough to make little of what a call costs by itself, few enough
	// for many calls to share an image, and for what they find to be small.
	pieceObjects = 128
)

// piece is one call of librbd.
type piece struct {
	span
	extents []rbd.Extent
	err     error
	done    chan struct{} // closed when extents or err is set
}

// diff asks the precise diff about the ranges and passes on what it finds in order.
func (f *finder) diff(ctx context.Context, from string, ranges []span, progress func(done, total int64),
	add func(rbd.Extent) error,
) error {
	ask := func(ctx context.Context, p *piece) error {
		err := f.img.Diff(ctx, from, p.off, p.end-p.off, func(e rbd.Extent) error {
			p.extents = append(p.extents, e)
			return nil
		})
		if err != nil {
			return err
		}
		return f.complete(ctx, p)
	}
	return f.each(ctx, ranges, progress, ask, func(p *piece) error { return p.pass(add) })
}

// each asks about several pieces of the ranges at a time, and passes them on in order. When it returns, no call is left that
// could still find something.
func (f *finder) each(ctx context.Context, ranges []span, progress func(done, total int64),
	ask func(context.Context, *piece) error, pass func(*piece) error,
) error {
	parallel := f.o.Parallel
	if parallel == 0 {
		parallel = defaultParallel
	}
	var done, total int64
	for _, s := range ranges {
		total += s.end - s.off
	}
	calls, stop := context.WithCancel(ctx)
	defer stop()
	// Pieces under way or waiting for their turn: the bound of calls and of memory.
	order := make(chan *piece, parallel)
	go f.start(calls, ranges, ask, order)
	var failed error
	for p := range order {
		<-p.done
		if failed != nil {
			continue
		}
		if failed = p.err; failed == nil {
			failed = pass(p)
		}
		if failed != nil {
			stop()
		}
		done += p.end - p.off
		if progress != nil {
			progress(done, total)
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return failed
}

// start begins the calls in order, until all are begun or ctx ends.
func (f *finder) start(ctx context.Context, ranges []span, ask func(context.Context, *piece) error, order chan<- *piece) {
	defer close(order)
	for s := range f.pieces(ranges) {
		p := &piece{span: s, done: make(chan struct{})}
		select {
		case order <- p:
		case <-ctx.Done():
			return
		}
		go func() {
			defer close(p.done)
			p.err = ask(ctx, p)
		}()
	}
}

// pass hands on what was found.
func (p *piece) pass(add func(rbd.Extent) error) error {
	for _, e := range p.extents {
		if err := add(e); err != nil {
			return err
		}
	}
	return nil
}

// pieces cuts ranges at multiples of the same distance.
func (f *finder) pieces(ranges []span) func(yield func(span) bool) {
	step := f.img.Period() * max(1, pieceObjects/f.img.StripeCount())
	return func(yield func(span) bool) {
		for _, r := range ranges {
			for off := r.off; off < r.end; {
				end := min(r.end, (off/step+1)*step)
				if !yield(span{off, end}) {
					return
				}
				off = end
			}
		}
	}
}
