package backup

import (
	"iter"

	"github.com/rbd2qcow2/rbd2qcow2/internal/extent"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// joinGap is the number of bytes, not asked for, that are read along where that saves a read of its own. With eight reads
// in flight from one OSD on loopback a read of 4 KiB took as long as 64 KiB (in memory) to 150 KiB (BlueStore) more of a
// larger one; one read at a time, as long as 300 to 400 KiB. A real network makes both the reads and the bytes dearer.
const joinGap = 64 << 10

// part is a range of an image that is copied in one go: by one read, or as zeroes, which need none.
type part struct {
	offset, length int64
	data           bool
	gaps           []qcow2.Range // what is read along and not wanted; the next part uses its memory again
	wanted         int64         // bytes of data without gaps
}

func (p *part) end() int64 { return p.offset + p.length }

// parts cuts extents, which are whole clusters, so that no read crosses a multiple of step, which keeps reads to objects,
// and joins neighbouring reads.
func parts(extents []extent.Extent, step int64) iter.Seq[part] {
	return func(yield func(part) bool) {
		var read part
		for _, e := range extents {
			if !e.Data {
				if read.length > 0 && !yield(read) || !yield(part{offset: e.Offset, length: e.Length}) {
					return
				}
				read.length = 0
				continue
			}
			for off := e.Offset; off < e.End(); {
				n := min(e.End(), (off/step+1)*step) - off
				if !read.join(off, n, step) {
					if read.length > 0 && !yield(read) {
						return
					}
					read = part{offset: off, length: n, data: true, gaps: read.gaps[:0], wanted: n}
				}
				off += n
			}
		}
		if read.length > 0 {
			yield(read)
		}
	}
}

// join makes a read longer by a range behind it, if both lie near each other in one step.
func (p *part) join(off, n, step int64) bool {
	gap := off - p.end()
	if p.length == 0 || gap > joinGap || off/step != p.offset/step {
		return false
	}
	if gap > 0 {
		p.gaps = append(p.gaps, qcow2.Range{Offset: p.end(), Length: gap})
	}
	p.length += gap + n
	p.wanted += n
	return true
}
