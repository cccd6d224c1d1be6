package verify

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/rbd2qcow2/rbd2qcow2/internal/extent"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// Source is the image that a point was made from, as it was then. Its methods are called by several goroutines.
type Source interface {
	Size() int64       // bytes
	ObjectSize() int64 // bytes
	Read(ctx context.Context, p []byte, off int64) error
	// Data calls add for all ranges that may hold data, in ascending order.
	Data(ctx context.Context, add func(off, n int64) error) error
	Close() error
}

// sourceStep bounds what is read of a source at once, in bytes.
const sourceStep = 4 << 20

// differenceUnit is what a difference is widened to, in bytes.
const differenceUnit = 64 << 10

// maxDifferences bounds the differences that are told apart.
const maxDifferences = 1 << 16

// mapped is how much of a chain is mapped at once, in bytes.
const mapped = 64 << 20

// comparison compares a point with its source.
type comparison struct {
	chain *qcow2.Image
	src   Source
	add   func(done int64)

	mu          sync.Mutex
	differences []qcow2.Range
}

// Compare compares all that a point, opened with its chain and proved, or its source holds. Of the source all is read, of the chain
// little more than digests. add hears of each number of bytes that have been compared.
func Compare(ctx context.Context, chain *qcow2.Image, src Source, parallel int, add func(done int64)) ([]Damage, error) {
	if want := (src.Size() + 511) / 512 * 512; want != chain.Size() {
		return []Damage{{What: "size", Message: fmt.Sprintf("%d bytes, the source has %d", chain.Size(), src.Size())}}, nil
	}
	c := comparison{chain: chain, src: src, add: add}
	places, err := c.places(ctx)
	if err != nil {
		return nil, err
	}
	g, working := errgroup.WithContext(ctx)
	pieces := make(chan extent.Extent)
	g.Go(func() error {
		defer close(pieces)
		step := min(sourceStep, src.ObjectSize())
		for _, place := range places {
			for off := place.Offset; off < place.End(); {
				n := min(place.End(), (off/step+1)*step) - off
				select {
				case pieces <- extent.Extent{Offset: off, Length: n}:
				case <-working.Done():
					return nil
				}
				off += n
			}
		}
		return nil
	})
	for range parallel {
		g.Go(func() error { return c.compareAll(working, pieces) })
	}
	err = g.Wait()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return c.damages(), err
}

// damages joins the differences that adjoin.
func (c *comparison) damages() (damages []Damage) {
	slices.SortFunc(c.differences, func(a, b qcow2.Range) int { return cmp.Compare(a.Offset, b.Offset) })
	for _, r := range c.differences {
		if n := len(damages); n > 0 && damages[n-1].Start+damages[n-1].Length == r.Offset {
			damages[n-1].Length += r.Length
			continue
		}
		damages = append(damages, Damage{What: "source", Start: r.Offset, Length: r.Length, Message: "the source has other data"})
	}
	return damages
}

// places lists what either side holds.
func (c *comparison) places(ctx context.Context) ([]extent.Extent, error) {
	size := c.src.Size()
	theirs, ours := extent.NewList(size, c.src.ObjectSize()), extent.NewList(size, c.src.ObjectSize())
	err := c.src.Data(ctx, func(off, n int64) error { return theirs.Add(extent.Extent{Offset: off, Length: n, Data: true}) })
	if err != nil {
		return nil, err
	}
	var window []qcow2.Extent
	for off := int64(0); off < c.chain.Size(); off += mapped {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if window, err = c.chain.Extents(window[:0], off, mapped); err != nil {
			return nil, err
		}
		for _, e := range window {
			if e.Kind != qcow2.Data || e.Offset >= size {
				continue
			}
			if err := ours.Add(extent.Extent{Offset: e.Offset, Length: e.Length, Data: true}); err != nil {
				return nil, err
			}
		}
	}
	return extent.Union(theirs.Extents(), ours.Extents()), nil
}

// compareAll is one of the goroutines that read.
func (c *comparison) compareAll(ctx context.Context, pieces <-chan extent.Extent) error {
	buf := make([]byte, min(sourceStep, c.src.ObjectSize()))
	var extents []qcow2.Extent
	for piece := range pieces {
		p := buf[:piece.Length]
		if err := c.src.Read(ctx, p, piece.Offset); err != nil {
			return err
		}
		var err error
		if extents, err = c.chain.Extents(extents[:0], piece.Offset, piece.Length); err != nil {
			return err
		}
		for _, e := range extents {
			if err := c.match(p[e.Offset-piece.Offset:][:e.Length], e); err != nil {
				return err
			}
		}
		c.add(piece.Length)
	}
	return nil
}

// match compares what the source has with an extent, cluster by cluster where they differ.
func (c *comparison) match(p []byte, e qcow2.Extent) error {
	for off := e.Offset; len(p) > 0; {
		at, err := c.chain.MatchExtent(p, off, e)
		if err != nil || at < 0 {
			return err
		}
		n := min(int64(len(p))-at, differenceUnit-(off+at)%differenceUnit)
		c.mu.Lock()
		if len(c.differences) < maxDifferences {
			c.differences = append(c.differences, qcow2.Range{Offset: off + at, Length: n})
		}
		c.mu.Unlock()
		p, off = p[at+n:], off+at+n
	}
	return nil
}
