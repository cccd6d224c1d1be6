package qcow2

import (
	"encoding/binary"
	"fmt"
	"io"
)

// tableSlice is how much of an L1 or L2 table is read at a time, in bytes; a cluster where that is less.
const tableSlice = 4096

// Extent is a run of guest bytes of one Kind.
type Extent struct {
	Offset int64 // in the disk, bytes
	Length int64 // bytes
	Kind   Kind
	Depth  int // which file of the chain holds it: 0 is the image's own, 1 its backing file; 0 where none does
}

// Extent gives the run of bytes that starts at off as the whole chain has it: Unallocated is what no file holds,
// and reads as zeroes. A run may end early: the work of a call is bounded by a slice of a table per file.
// At or behind the end of the disk the error is io.EOF.
func (im *Image) Extent(off int64) (Extent, error) {
	e, err := im.FileExtent(off)
	for depth, b := 1, im.backing; b != nil && err == nil && e.Kind == Unallocated && off < b.Size(); depth, b = depth+1, b.backing {
		length := min(e.Length, b.Size()-off)
		e, err = b.FileExtent(off)
		e.Length = min(e.Length, length)
		e.Depth = depth
	}
	if e.Kind == Unallocated {
		e.Depth = 0
	}
	return e, err
}

// FileExtent is Extent for the file alone, whatever lies below it.
func (im *Image) FileExtent(off int64) (Extent, error) {
	if off < 0 {
		return Extent{}, fmt.Errorf("find extent: negative offset %d", off)
	}
	if off >= im.Size() {
		return Extent{}, io.EOF
	}
	r, err := im.lookup(off, im.Size()-off, sameKind)
	return Extent{Offset: off, Length: r.length, Kind: r.kind}, err
}

// mapping is what an L2 entry says.
type mapping struct {
	kind       Kind
	compressed bool
	host       int64  // where in the file the data starts
	span       int64  // compressed: how many bytes from there its sectors go
	entry      uint64 // as it stands in the table
}

// stretch is a run of guest bytes that a file maps alike, beginning inside a cluster or at its start.
type stretch struct {
	mapping
	length int64
}

// sameKind joins clusters for those who ask what there is, contiguous for those who read it.
func sameKind(first, next mapping, _ int64) bool { return first.kind == next.kind }

func contiguous(first, next mapping, distance int64) bool {
	return first.kind == next.kind && !first.compressed && !next.compressed &&
		(first.kind != Data || next.host == first.host+distance)
}

// lookup maps off, which is inside the disk, and as much of limit bytes as follows, joins, and is in the same slice.
func (im *Image) lookup(off, limit int64, joins func(first, next mapping, distance int64) bool) (stretch, error) {
	h := im.header
	index := off / h.l2Span()
	table, holes, err := im.l2Table(index)
	if err == nil && im.proof != nil {
		err = im.proof.table(index, table, holes)
	}
	if err != nil {
		return stretch{}, err
	}
	if table == 0 {
		return stretch{length: min(limit, (index+holes)*h.l2Span()-off)}, nil
	}
	at := table + off%h.l2Span()/h.ClusterSize()*8
	entries, err := im.entries(at)
	if err != nil {
		return stretch{}, err
	}
	inside := off % h.ClusterSize()
	first, err := im.decodeEntry(entries.at(0), off-inside)
	if err != nil {
		return stretch{}, err
	}
	length := h.ClusterSize()
	for i := 1; i < entries.len() && length-inside < limit; i++ {
		next, err := im.decodeEntry(entries.at(i), off-inside+length)
		if err != nil || !joins(first, next, length) {
			break // an error is for the call that starts there
		}
		length += h.ClusterSize()
	}
	if first.kind == Data && !first.compressed {
		first.host += inside
	}
	return stretch{first, min(limit, length-inside)}, nil
}

// entries are those of a table from one on to the end of a slice.
type entries []byte

func (e entries) at(i int) uint64 { return binary.BigEndian.Uint64(e[8*i:]) }
func (e entries) len() int        { return len(e) / 8 }

// entries reads the table entries from the offset at of the file to the end of their slice. What is missing at the
// end of the file counts as zeroes: a writer need not fill the last cluster.
func (im *Image) entries(at int64) (entries, error) {
	size := min(tableSlice, im.header.ClusterSize())
	start := at / size * size
	b, err := im.shared.tables.get(tableKey{im, start}, size, func() ([]byte, error) {
		b := make([]byte, size)
		if err := im.readHost(b, start); err != nil {
			return nil, fmt.Errorf("read table at offset %d: %w", start, err)
		}
		return b, nil
	})
	if err != nil {
		return nil, err
	}
	return b[at-start:], nil
}

// l2Table gives the offset of the L2 table of an L1 entry, or 0 and how many entries from it on have none. With an error
// it gives the offset if that can be used all the same.
func (im *Image) l2Table(index int64) (table, holes int64, err error) {
	at := im.header.L1Offset + index*8
	entries, err := im.entries(at)
	if err != nil {
		return 0, 0, err
	}
	left := min(int64(entries.len()), int64(im.header.L1Size)-index)
	for holes < left && entries.at(int(holes)) == 0 {
		holes++
	}
	if holes > 0 {
		return 0, holes, nil
	}
	e := entries.at(0)
	table = int64(e & entryOffset)
	if err := im.checkCluster(table); err != nil {
		return 0, 0, corrupt("L1 entry", at, "%#x: L2 table %v", e, err)
	}
	if e&^(entryOffset|entryCopied) != 0 {
		return table, 0, corrupt("L1 entry", at, "%#x: reserved bits", e)
	}
	return table, 0, nil
}

// decodeEntry checks the L2 entry of the cluster at the guest offset (qcow2 specification, "L2 table entry"). With an
// error it gives what of the entry can be used all the same; host is 0 where that is not the place.
func (im *Image) decodeEntry(e uint64, guest int64) (mapping, error) {
	if e&entryCompressed != 0 {
		return im.decodeCompressed(e, guest)
	}
	m := mapping{kind: entryKind(e), entry: e, host: int64(e & entryOffset)}
	if m.host != 0 || e&entryCopied != 0 {
		if err := im.checkCluster(m.host); err != nil {
			m.host = 0
			return m, corrupt("L2 entry", guest, "%#x: data %v", e, err)
		}
	}
	switch {
	case e&^(entryOffset|entryCopied|entryZero) != 0:
		return m, corrupt("L2 entry", guest, "%#x: reserved bits", e)
	case m.kind == Zero && im.header.Version < 3:
		return m, corrupt("L2 entry", guest, "%#x: zero cluster in a file of version 2", e)
	}
	return m, nil
}

// decodeCompressed checks the entry of a compressed cluster. Its last sector may lie behind the end of the file:
// the length in sectors is rounded up, and a writer need not fill the last one.
func (im *Image) decodeCompressed(e uint64, guest int64) (mapping, error) {
	off, n := compressedSpan(e, im.header.ClusterBits)
	offsetMask := uint64(1)<<(62-(im.header.ClusterBits-8)) - 1
	m := mapping{kind: Data, compressed: true, entry: e}
	if off < im.header.ClusterSize() || off >= im.fileLength {
		return m, corrupt("L2 entry", guest, "%#x: data at offset %d: not inside the file", e, off)
	}
	m.host, m.span = off, min(n, im.fileLength-off)
	if e&entryCopied != 0 || e&offsetMask >= maxHostOffset {
		return m, corrupt("L2 entry", guest, "%#x: reserved bits", e)
	}
	return m, nil
}

// checkCluster checks that a table or data can lie at an offset of the file. Its last bytes may be missing.
func (im *Image) checkCluster(off int64) error {
	if off%im.header.ClusterSize() != 0 {
		return fmt.Errorf("at offset %d: not at a cluster", off)
	}
	if off == 0 || off >= im.fileLength {
		return fmt.Errorf("at offset %d: not inside the file", off)
	}
	return nil
}

// readHost fills p from off of the file, with zeroes behind its end.
func (im *Image) readHost(p []byte, off int64) error {
	n := max(0, min(int64(len(p)), im.fileLength-off))
	clear(p[n:])
	_, err := readFullAt(im.r, p[:n], off)
	return err
}
