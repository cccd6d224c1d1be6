package qcow2

import "fmt"

// Extents appends to dst the map of the length bytes from off on, as the whole chain has them: in guest order, without
// gaps, neighbours of one kind in one file joined. What lies behind the end of the disk is left out. Where Extent
// goes down the chain anew for each run, Extents looks at each file once, so that a window of a disk in a hundred
// pieces of a hundred files costs a hundred looks and not ten thousand. Errors are those of Extent.
func (im *Image) Extents(dst []Extent, off, length int64) ([]Extent, error) {
	if off < 0 || length < 0 {
		return dst, fmt.Errorf("map %d bytes at %d: out of range", length, off)
	}
	w := window{off: off, end: off + min(length, max(0, im.Size()-off))}
	if w.off == w.end {
		return dst, nil
	}
	w.found = []Extent{{Offset: off, Length: w.end - off, Depth: open}}
	for depth, file := 0, im; file != nil && w.isOpen(); depth, file = depth+1, file.backing {
		if err := w.look(file, depth); err != nil {
			return dst, err
		}
	}
	first := len(dst)
	for _, e := range w.found {
		if e.Kind == Unallocated {
			e.Depth = 0
		}
		dst = join(dst, first, e)
	}
	return dst, nil
}

// ReadExtent fills p with what e has from off on; all of it lies inside e, which Extents or Extent of this image gave.
// It looks at no file but the one that holds e. Errors are those of ReadAt.
func (im *Image) ReadExtent(p []byte, off int64, e Extent) error {
	if off < e.Offset || int64(len(p)) > e.Offset+e.Length-off {
		return fmt.Errorf("read %d bytes at %d: outside the extent", len(p), off)
	}
	if e.Kind != Data {
		clear(p)
		return nil
	}
	file := im
	for range e.Depth {
		file = file.backing
	}
	_, err := file.read(p, off)
	return err
}

// open is the depth of what no file has been found to hold yet.
const open = -1

// window maps a part of a disk while it goes down the chain.
type window struct {
	off, end    int64
	found, next []Extent // found without gaps; next is its successor in the making
	runs        []Extent // what one file holds
}

func (w *window) isOpen() bool {
	for _, e := range w.found {
		if e.Depth == open {
			return true
		}
	}
	return false
}

// look fills in what one file holds. Behind its end the files below don't show through. What is found already is not looked at
// again: damage that a file above hides is of no importance.
func (w *window) look(file *Image, depth int) error {
	w.runs = w.runs[:0]
	at, end, found := w.off, min(w.end, file.Size()), w.found
	for at < end {
		for found[0].Offset+found[0].Length <= at {
			found = found[1:]
		}
		if hidden := found[0]; hidden.Depth != open {
			n := min(end, hidden.Offset+hidden.Length) - at
			w.runs = join(w.runs, 0, Extent{Offset: at, Length: n})
			at += n
			continue
		}
		e, err := file.FileExtent(at)
		if err != nil {
			return err
		}
		if e.Depth = depth; e.Kind == Unallocated {
			e.Depth = open
		}
		e.Length = min(e.Length, w.end-at)
		w.runs = join(w.runs, 0, e)
		at += e.Length
	}
	if at < w.end {
		w.runs = join(w.runs, 0, Extent{Offset: at, Length: w.end - at})
	}
	w.next = w.next[:0]
	runs := w.runs
	for _, e := range w.found {
		for runs[0].Offset+runs[0].Length <= e.Offset {
			runs = runs[1:]
		}
		if e.Depth != open {
			w.next = join(w.next, 0, e)
			continue
		}
		for i := 0; i < len(runs) && runs[i].Offset < e.Offset+e.Length; i++ {
			w.next = join(w.next, 0, clip(runs[i], e))
		}
	}
	w.found, w.next = w.next, w.found
	return nil
}

// clip is the part of e inside the bounds of another extent.
func clip(e, bounds Extent) Extent {
	end := min(e.Offset+e.Length, bounds.Offset+bounds.Length)
	e.Offset = max(e.Offset, bounds.Offset)
	e.Length = end - e.Offset
	return e
}

// join appends e, or makes the last extent longer where e goes on; those before first are not touched.
func join(extents []Extent, first int, e Extent) []Extent {
	if n := len(extents); n > first {
		last := &extents[n-1]
		if last.Kind == e.Kind && last.Depth == e.Depth && last.Offset+last.Length == e.Offset {
			last.Length += e.Length
			return extents
		}
	}
	return append(extents, e)
}
