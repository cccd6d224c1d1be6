package restore

import (
	"context"
	"iter"
	"slices"

	"github.com/rbd2qcow2/rbd2qcow2/internal/extent"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

const (
	// window is how much of a disk is mapped at a time, in bytes: much enough that huge holes cost little, and that each
	// file of a long chain is looked at seldom; little enough that its map is small.
	window = 64 << 20
	// step is how much is read and written at once at most, and what no piece crosses a multiple of: an RBD object of the
	// usual size. Other sizes of objects divide it or are divided by it.
	step = 4 << 20
)

// piece is a range of the disk that is written in one go.
type piece struct {
	off, length int64
	data        bool
	extents     []qcow2.Extent // the map of the window around it
	turn, next  chan struct{}  // of an ordered target: closed when the pieces before, and this one, are written
}

func (p *piece) end() int64 { return p.off + p.length }

// plan cuts the disk of a source into pieces for a target and sends them on in guest order. Zeroes that nobody has to
// write are in no piece.
func plan(ctx context.Context, src *Source, l Layout, send func(*piece) error) error {
	turn := make(chan struct{})
	close(turn)
	for off := int64(0); off < src.Size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		extents, err := src.Chain.Extents(nil, off, min(window, src.Size-off))
		if err != nil {
			return err
		}
		for e := range extent.Widen(areas(extents), src.Size, max(l.Unit, 1)) {
			if !e.Data && l.Blank {
				continue
			}
			for p := range cut(e, extents) {
				p.turn, turn = turn, make(chan struct{})
				p.next = turn
				if err := send(p); err != nil {
					return err
				}
			}
		}
		off = min(off+window, src.Size)
	}
	return nil
}

// areas tells what is data and what reads as zeroes.
func areas(extents []qcow2.Extent) []extent.Extent {
	all := make([]extent.Extent, 0, len(extents))
	for _, e := range extents {
		all = append(all, extent.Extent{Offset: e.Offset, Length: e.Length, Data: e.Kind == qcow2.Data})
	}
	return all
}

// cut makes pieces of an area: zeroes stay together.
func cut(e extent.Extent, extents []qcow2.Extent) iter.Seq[*piece] {
	return func(yield func(*piece) bool) {
		for off := e.Offset; off < e.End(); {
			n := e.End() - off
			if e.Data {
				n = min(n, (off/step+1)*step-off)
			}
			if !yield(&piece{off: off, length: n, data: e.Data, extents: extents}) {
				return
			}
			off += n
		}
	}
}

// read fills b with a piece.
func (p *piece) read(src *Source, b []byte) error {
	i, _ := slices.BinarySearchFunc(p.extents, p.off, func(e qcow2.Extent, off int64) int {
		if e.Offset+e.Length <= off {
			return -1
		}
		return 1
	})
	for off := p.off; off < p.end(); i++ {
		e := p.extents[i]
		n := min(p.end(), e.Offset+e.Length) - off
		if err := src.Chain.ReadExtent(b[off-p.off:][:n], off, e); err != nil {
			return err
		}
		off += n
	}
	return nil
}
