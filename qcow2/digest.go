package qcow2

import "encoding/binary"

// DigestSize is the length of a digest in bytes.
const DigestSize = 16

// Digest identifies the guest-visible content of one cluster; what lies beyond the end of the disk counts as zeroes.
type Digest [DigestSize]byte

// For each L2 table a file carries a digest block: the hash of the table's logical content (one Kind per entry, so
// that it does not depend on where in the file data lies), then the digests of its Data clusters in guest order.
// The directory lists the blocks in the order of their L1 indexes.

const directoryEntrySize = 32

// directoryEntry locates one digest block: big-endian L1 index, number of digests, file offset, hash of the block.
type directoryEntry struct {
	l1Index uint32
	count   uint32
	offset  int64
	hash    Digest
	queued  bool // offset counts from the first block of a queue, until its place in the file is known
}

func (d *directoryEntry) blockLength() int64 { return DigestSize * (1 + int64(d.count)) }

func (d *directoryEntry) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, d.l1Index)
	b = binary.BigEndian.AppendUint32(b, d.count)
	b = binary.BigEndian.AppendUint64(b, uint64(d.offset))
	return append(b, d.hash[:]...)
}

func decodeDirectoryEntry(b []byte) directoryEntry {
	d := directoryEntry{
		l1Index: binary.BigEndian.Uint32(b),
		count:   binary.BigEndian.Uint32(b[4:]),
		offset:  int64(binary.BigEndian.Uint64(b[8:])),
	}
	copy(d.hash[:], b[16:])
	return d
}
