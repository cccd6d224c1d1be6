// Package extent turns what a cluster reports as changed into what has to be read: whole clusters of the file to
// write, in ascending order, in bounded memory.
package extent

import "fmt"

// Extent is a range of a disk in bytes.
type Extent struct {
	Offset, Length int64
	Data           bool // false: reads as zeroes
}

// End is the offset behind the extent.
func (e Extent) End() int64 { return e.Offset + e.Length }

// maxExtents bounds a List: 24 MiB.
const maxExtents = 1 << 20

// List collects extents in ascending order and widens them to whole units. A unit that is touched by data, or by
// zeroes in part, becomes data: it has to be read. One that zeroes cover wholly becomes zeroes.
// Where there would be too many extents the unit is doubled, so that memory stays bounded and more is read than has
// changed: that is always right, for what is read is the disk's content.
type List struct {
	size    int64 // of the disk
	unit    int64
	limit   int
	merged  []Extent
	pending Extent // the last one added, not yet widened: its neighbour may complete a unit
}

// NewList makes a list for a disk of size bytes and clusters of unit bytes.
func NewList(size, unit int64) *List { return &List{size: size, unit: unit, limit: maxExtents} }

// Add adds an extent behind all others. What reaches beyond the disk is cut off.
func (l *List) Add(e Extent) error {
	if e.Offset < l.pending.End() || e.Length < 0 {
		return fmt.Errorf("extent of %d bytes at %d: not behind %d", e.Length, e.Offset, l.pending.End())
	}
	e.Length = min(e.Length, l.size-e.Offset)
	if e.Length <= 0 {
		return nil
	}
	if e.Data == l.pending.Data && e.Offset == l.pending.End() {
		l.pending.Length += e.Length
		return nil
	}
	l.widen(l.pending)
	l.pending = e
	if len(l.merged) >= l.limit {
		l.coarsen()
	}
	return nil
}

// Extents gives the widened extents: aligned to the cluster size, but for the end of the disk; disjoint, ascending,
// neighbours of one kind joined. Nothing can be added afterwards.
func (l *List) Extents() []Extent {
	l.widen(l.pending)
	l.pending = Extent{Offset: l.size}
	return l.merged
}

// Bytes adds up the lengths of the extents that have to be read and of those that read as zeroes.
func Bytes(extents []Extent) (data, zero int64) {
	for _, e := range extents {
		if e.Data {
			data += e.Length
		} else {
			zero += e.Length
		}
	}
	return data, zero
}

func (l *List) widen(e Extent) {
	if e.Length == 0 {
		return
	}
	if e.Data {
		l.emit(l.down(e.Offset), l.up(e.End()), true)
		return
	}
	from, to := l.up(e.Offset), l.down(e.End())
	if e.End() == l.size {
		to = l.size
	}
	if from >= to { // no whole unit: one or two in part
		l.emit(l.down(e.Offset), l.up(e.End()), true)
		return
	}
	if e.Offset < from {
		l.emit(l.down(e.Offset), from, true)
	}
	l.emit(from, to, false)
	if to < e.End() {
		l.emit(to, l.up(e.End()), true)
	}
}

// emit appends a widened range. Only units of data can be there already: those that two extents share.
func (l *List) emit(from, to int64, data bool) {
	if n := len(l.merged); n > 0 {
		last := &l.merged[n-1]
		from = max(from, last.End())
		if from >= to {
			return
		}
		if last.Data == data && last.End() == from {
			last.Length = to - last.Offset
			return
		}
	}
	l.merged = append(l.merged, Extent{from, to - from, data})
}

// coarsen doubles the unit until the list has shrunk by half.
func (l *List) coarsen() {
	for len(l.merged) > l.limit/2 && l.unit < l.size {
		l.unit *= 2
		fine := l.merged
		l.merged = nil
		for _, e := range fine {
			l.widen(e)
		}
	}
}

func (l *List) down(off int64) int64 { return off / l.unit * l.unit }

func (l *List) up(off int64) int64 { return min((off+l.unit-1)/l.unit*l.unit, l.size) }
