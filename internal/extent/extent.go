// Package extent turns what a cluster reports as changed into what has to be read: whole clusters of the file to
// write, in ascending order, in bounded memory.
package extent

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
)

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

// NewList makes a list for a disk of size bytes and clusters of unit bytes. Where the size of the clusters is decided
// by what the list holds in the end, unit is the smallest that may be chosen; see Widen.
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

// Widen gives ascending extents of a disk of size bytes, neighbours of one kind joined, such as List.Extents gave them,
// in whole units. It is the same whether they come as they were reported or in units that divide this one, and what
// is in larger units stays as it is.
func Widen(extents []Extent, size, unit int64) iter.Seq[Extent] {
	return func(yield func(Extent) bool) {
		var last Extent
		more := true
		for _, e := range extents {
			widen(e, size, unit, func(e Extent) {
				if e = last.join(e); e.Length > 0 {
					more = more && (last.Length == 0 || yield(last))
					last = e
				}
			})
			if !more {
				return
			}
		}
		if last.Length > 0 {
			yield(last)
		}
	}
}

// Union gives what at least one of the lists holds, each of which is ascending; all of it as data.
func Union(lists ...[]Extent) []Extent {
	all := slices.Concat(lists...)
	slices.SortFunc(all, func(a, b Extent) int { return cmp.Compare(a.Offset, b.Offset) })
	var union []Extent
	for _, e := range all {
		e.Data = true
		if n := len(union); n > 0 && e.Offset <= union[n-1].End() {
			union[n-1].Length = max(union[n-1].End(), e.End()) - union[n-1].Offset
		} else if e.Length > 0 {
			union = append(union, e)
		}
	}
	return union
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

// widen gives e in whole units: data, zeroes, or zeroes with data at one end or both.
func widen(e Extent, size, unit int64, emit func(Extent)) {
	if e.Length == 0 {
		return
	}
	down := func(off int64) int64 { return off / unit * unit }
	up := func(off int64) int64 { return min((off+unit-1)/unit*unit, size) }
	from, to := down(e.Offset), up(e.End())
	zeroFrom, zeroTo := up(e.Offset), down(e.End())
	if e.End() == size {
		zeroTo = size
	}
	if e.Data || zeroFrom >= zeroTo { // or one unit in part, or two
		emit(Extent{from, to - from, true})
		return
	}
	if from < zeroFrom {
		emit(Extent{from, zeroFrom - from, true})
	}
	emit(Extent{zeroFrom, zeroTo - zeroFrom, false})
	if zeroTo < to {
		emit(Extent{zeroTo, to - zeroTo, true})
	}
}

// join makes e longer by what follows, if that is of its kind, and gives what is left of it. Only units of data can
// be in both: those that two extents share.
func (e *Extent) join(next Extent) (rest Extent) {
	from := max(next.Offset, e.End())
	next.Offset, next.Length = from, next.End()-from
	if next.Length > 0 && next.Data == e.Data && from == e.End() && e.Length > 0 {
		e.Length += next.Length
		next.Length = 0
	}
	return next
}

func (l *List) widen(e Extent) { widen(e, l.size, l.unit, l.emit) }

func (l *List) emit(e Extent) {
	if n := len(l.merged); n > 0 {
		e = l.merged[n-1].join(e)
	}
	if e.Length > 0 {
		l.merged = append(l.merged, e)
	}
}

// coarsen doubles the unit until the list has shrunk by half.
func (l *List) coarsen() {
	for len(l.merged) > l.limit/2 && l.unit < l.size {
		l.unit *= 2
		l.merged = slices.Collect(Widen(l.merged, l.size, l.unit))
	}
}
