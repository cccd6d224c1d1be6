package qcow2

// Bits of L1 and L2 entries (qcow2 specification, "Cluster mapping").
const (
	entryCopied     = 1 << 63 // refcount is exactly one
	entryCompressed = 1 << 62
	entryZero       = 1 << 0
	entryOffset     = 0x00fffffffffffe00
)

// Kind says what a file itself holds for a guest cluster, whatever its backing file has there.
type Kind uint8

// The kinds, with the values that the hash of a table's logical content is made of.
const (
	Unallocated Kind = 0 // the backing file shows through; zeroes without one
	Zero        Kind = 1 // reads as zeroes
	Data        Kind = 2 // stored in this file, compressed or not
)

func (k Kind) String() string { return [...]string{"unallocated", "zero", "data"}[k] }

// entryKind is the kind of an L2 entry. A preallocated zero cluster is Zero.
func entryKind(e uint64) Kind {
	switch {
	case e&entryCompressed != 0:
		return Data
	case e&entryZero != 0:
		return Zero
	case e&entryOffset != 0:
		return Data
	}
	return Unallocated
}

// compressedEntry describes n bytes of compressed data at the byte offset off.
// The sectors counted are those of the file that the bytes touch, the first one not included.
func compressedEntry(off, n int64, clusterBits uint32) uint64 {
	x := 62 - (clusterBits - 8)
	sectors := (off+n-1)/sectorSize - off/sectorSize
	return entryCompressed | uint64(sectors)<<x | uint64(off)
}

// compressedSpan is the inverse of compressedEntry: where the data starts, and how many bytes from there to the
// end of its last sector. The length of the data itself is not recorded: the decoder stops by output size.
func compressedSpan(e uint64, clusterBits uint32) (off, n int64) {
	x := 62 - (clusterBits - 8)
	off = int64(e & (1<<x - 1) & (1<<56 - 1))
	sectors := int64(e &^ entryCopied &^ entryCompressed >> x)
	return off, (sectors+1)*sectorSize - off%sectorSize
}
