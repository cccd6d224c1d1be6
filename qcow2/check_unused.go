package qcow2

import (
	"bytes"
	"fmt"
)

// unusedNames is where the names of backing files end, that of now and the one before a fold, in the first cluster of a
// file that has had no other header than ours.
const unusedNames = 4096

// checkUnused checks that the bytes of a file with a record that are for nothing are zero, but for those that lie beside
// the data of clusters, which checkData sees to.
func (c *checker) checkUnused(r *Record) error {
	h := c.im.header
	size := h.ClusterSize()
	l1End := h.L1Offset + int64(h.L1Size)*8
	areas := []Range{{l1End, c.im.clusterEnd(l1End) - l1End}}
	if end := r.IdentityOffset + r.IdentityLength; r.DirectoryOffset-end < 8 {
		areas = append(areas, Range{end, r.DirectoryOffset - end})
	}
	nameEnd := max(sectorSize, h.backingOffset+h.backingLength)
	switch {
	case c.pristine:
		if h.backingOffset != 0 {
			areas = append(areas, Range{sectorSize, h.backingOffset - sectorSize})
		}
		name, err := c.undoneName((nameEnd + 7) / 8 * 8)
		if err != nil {
			return err
		}
		areas = append(areas, Range{nameEnd, name.Offset - nameEnd}, Range{name.End(), size - name.End()})
	case c.digested:
		first := max(unusedNames, nameEnd)
		areas = append(areas, Range{first, size - first})
	}
	for _, area := range areas {
		f, err := c.im.findNonzero(area)
		if err == nil && f.Kind != 0 {
			err = c.report(f)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// undoneName is what may be the name of a backing file that a fold has written at off before it was undone or cut short.
func (c *checker) undoneName(off int64) (Range, error) {
	b := make([]byte, max(0, min(maxBackingName, c.im.header.ClusterSize()-off)))
	if err := c.im.readHost(b, off); err != nil {
		return Range{}, fmt.Errorf("read first cluster: %w", err)
	}
	if end := bytes.IndexByte(b, 0); end >= 0 {
		b = b[:end]
	}
	return Range{off, int64(len(b))}, nil
}

// clusterEnd is the end of the cluster that the byte before off lies in.
func (im *Image) clusterEnd(off int64) int64 {
	size := im.header.ClusterSize()
	return (off + size - 1) / size * size
}

// findNonzero looks for bytes of the file that are not zero, where a Writer left zeroes. The finding goes from the first one
// to the last one; without Kind there is none.
func (im *Image) findNonzero(area Range) (Finding, error) {
	var f Finding
	if area.Offset < 0 { // a record may say anything
		return f, nil
	}
	area.Length = min(area.Length, im.fileLength-area.Offset)
	b := make([]byte, max(0, min(area.Length, 64<<10)))
	for at := area.Offset; at < area.End(); at += int64(len(b)) {
		b = b[:min(int64(len(b)), area.End()-at)]
		if err := im.readHost(b, at); err != nil {
			return f, fmt.Errorf("read unused bytes at offset %d: %w", at, err)
		}
		if first, n := nonzero(b); n > 0 {
			f.widen(Range{at + first, n})
		}
	}
	return f, nil
}

// nonzero is the span of b from its first to its last byte that is not zero.
func nonzero(b []byte) (first, n int64) {
	from, to := 0, len(b)
	for from < to && b[from] == 0 {
		from++
	}
	for to > from && b[to-1] == 0 {
		to--
	}
	return int64(from), int64(to - from)
}

// widen makes f one about unused bytes up to the end of a range that lies behind it.
func (f *Finding) widen(r Range) {
	if f.Kind == 0 {
		*f = Finding{Kind: Damage, Structure: "unused bytes", Host: r, Message: "not zero, as they were written"}
	}
	f.Host.Length = r.End() - f.Host.Offset
}
