package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// Source is the disk of a point.
type Source struct {
	Chain *repo.Chain
	Size  int64 // bytes; the file may say more, in whole sectors
}

// NewSource gives the disk of the newest point of a chain.
func NewSource(c *repo.Chain) *Source {
	size := c.Size()
	if id := c.Points[0].Identity; id != nil {
		size = min(size, id.Image.Size)
	}
	return &Source{Chain: c, Size: size}
}

// Options of a restore.
type Options struct {
	Parallel int           // pieces that are read and written at once
	Progress progress.Task // told how far it is; nil: nobody
}

// Stats are what a restore has done, in bytes.
type Stats struct {
	Read    int64 // of the disk, as stored in the chain; the rest are holes
	Written int64 // to the target, without what Zero did
	Zeroed  int64
}

// Run restores a disk. An error means that the target has been given up.
func Run(ctx context.Context, src *Source, dst Target, o Options) (Stats, error) {
	r := &run{src: src, dst: dst, layout: dst.Layout(), progress: o.Progress}
	r.preparer, _ = dst.(preparer)
	if r.progress != nil {
		r.progress.Phase("copy")
		r.progress.Total(src.Size)
	}
	err := r.copy(ctx, max(1, o.Parallel))
	if err == nil {
		if r.progress != nil {
			r.progress.Phase("commit")
		}
		err = dst.Finish(ctx)
	}
	if err != nil {
		err = errors.Join(err, dst.Abort())
	}
	return Stats{r.read.Load(), r.written.Load(), r.zeroed.Load()}, err
}

// run is one restore under way.
type run struct {
	src                   *Source
	dst                   Target
	layout                Layout
	preparer              preparer // nil: the target isn't one
	progress              progress.Task
	read, written, zeroed atomic.Int64
	planned               atomic.Int64
}

// copy has workers take the pieces in guest order. Each has a buffer of its own, so that the one with the oldest piece
// can always go on.
func (r *run) copy(ctx context.Context, parallel int) error {
	g, ctx := errgroup.WithContext(ctx)
	pieces := make(chan *piece, parallel)
	g.Go(func() error {
		defer close(pieces)
		return plan(ctx, r.src, r.layout, func(p *piece) error {
			select {
			case pieces <- p:
				r.passed(p.off)
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	})
	for range parallel {
		g.Go(func() error {
			var buf []byte
			for p := range pieces {
				if p.data && buf == nil {
					buf = make([]byte, max(step, r.layout.Unit))
				}
				if err := r.move(ctx, p, buf); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := g.Wait()
	if err == nil {
		r.passed(r.src.Size)
	}
	return err
}

// passed tells how far the planning has come, which is a few pieces ahead of the writing.
func (r *run) passed(off int64) {
	if r.progress != nil {
		r.progress.Add(off - r.planned.Swap(off))
	}
}

// move brings one piece to the target.
func (r *run) move(ctx context.Context, p *piece, buf []byte) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !p.data {
		r.zeroed.Add(p.length)
		return r.dst.Zero(ctx, p.off, p.length)
	}
	b := buf[:p.length]
	if err := p.read(r.src, b); err != nil {
		return err
	}
	r.read.Add(p.length)
	if r.layout.Ordered {
		return r.inTurn(ctx, p, b)
	}
	return r.write(ctx, b, p.off)
}

// inTurn writes a piece after those before it.
func (r *run) inTurn(ctx context.Context, p *piece, b []byte) (err error) {
	write := func(ctx context.Context) error { return r.dst.Write(ctx, b, p.off) }
	if r.preparer != nil {
		if write, err = r.preparer.Prepare(b, p.off); err != nil {
			return err
		}
	}
	select {
	case <-p.turn:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	r.written.Add(p.length)
	if err := write(ctx); err != nil {
		return err // and nobody's turn comes any more
	}
	close(p.next)
	return nil
}

// write writes b but for its holes.
func (r *run) write(ctx context.Context, b []byte, off int64) error {
	if r.layout.Hole == 0 {
		return r.put(ctx, b, off)
	}
	from := 0 // what lies between it and at goes together
	for at := 0; at < len(b); {
		end := len(b)
		if o := r.layout.Object; o > 0 {
			end = min(end, at+int(o-(off+int64(at))%o))
		}
		data, zero := split(b[at:end], int(r.layout.Hole), r.layout.Blank)
		if at += data; zero == 0 {
			continue
		}
		if err := r.put(ctx, b[from:at], off+int64(from)); err != nil {
			return err
		}
		if !r.layout.Blank {
			r.zeroed.Add(int64(zero))
			if err := r.dst.Zero(ctx, off+int64(at), int64(zero)); err != nil {
				return err
			}
		}
		at += zero
		from = at
	}
	return r.put(ctx, b[from:], off+int64(from))
}

// put writes all of b, if there is any.
func (r *run) put(ctx context.Context, b []byte, off int64) error {
	if len(b) == 0 {
		return nil
	}
	r.written.Add(int64(len(b)))
	return r.dst.Write(ctx, b, off)
}

// grain is the resolution at which zeroes are looked for, in bytes: a sector.
const grain = 512

// split gives how many bytes b begins with up to the first hole, and the length of that: of at least hole zero bytes. Where
// blank is set, zeroes at the beginning and the end of b are holes whatever their number.
func split(b []byte, hole int, blank bool) (data, zero int) {
	var zeros [grain]byte
	for at := 0; at < len(b); at += grain {
		end := min(at+grain, len(b))
		if bytes.Equal(b[at:end], zeros[:end-at]) {
			zero += end - at
			continue
		}
		if zero >= hole || blank && data == 0 && zero > 0 {
			return data, zero
		}
		data, zero = end, 0
	}
	if zero < hole && !blank {
		return len(b), 0
	}
	return data, zero
}

// Describe names a restore's source for messages.
func (s *Source) Describe() string {
	p := s.Chain.Points[0]
	return fmt.Sprintf("%s@%s", p.Folder.Name, p.Name)
}
