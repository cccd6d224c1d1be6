package qcow2

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// Limits that QEMU enforces when it opens a file, and this package with it.
const (
	MinClusterSize   = 512
	MaxClusterSize   = 2 << 20
	maxL1Bytes       = 32 << 20
	maxDiskSize      = maxL1Bytes / 8 * MaxClusterSize * (MaxClusterSize / 8)
	maxRefTableBytes = 8 << 20
	maxBackingName   = 1023
	maxFormatName    = 15
)

const (
	magic           = 0x514649fb // "QFI\xfb"
	headerLengthV2  = 72
	headerLengthV3  = 104 // without the compression type
	headerLength    = 112 // what we write
	sectorSize      = 512
	refcountOrder   = 4 // 16-bit refcounts
	backingNameHome = sectorSize

	incompatDirty       = 1 << 0
	incompatCorrupt     = 1 << 1
	incompatDataFile    = 1 << 2
	incompatCompression = 1 << 3
	incompatExtendedL2  = 1 << 4
	incompatUnderstood  = incompatDirty | incompatCorrupt | incompatCompression
	extensionHead       = 8
	extensionEnd        = 0
	extensionBackingFmt = 0xe2792aca
	extensionBitmaps    = 0x23852875
	extensionRecord     = 0x52325131 // "R2Q1", ours: see Record
)

// CompressionType is the algorithm of all compressed clusters of a file (qcow2 specification, "compression_type").
type CompressionType uint8

// The compression types of the specification.
const (
	Zlib CompressionType = 0 // raw deflate, window of 4 KiB
	Zstd CompressionType = 1 // zstd frames; needs QEMU 5.1 or newer to read
)

func (t CompressionType) String() string {
	switch t {
	case Zlib:
		return "zlib"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("compression type %d", uint8(t))
}

// Header is the fixed header and the header extensions of a file (qcow2 specification, "Header" and "Header extensions").
type Header struct {
	Version             uint32
	ClusterBits         uint32
	Size                int64 // virtual disk size, bytes
	L1Size              uint32
	L1Offset            int64
	RefTableOffset      int64
	RefTableClusters    uint32
	Snapshots           uint32 // internal snapshots
	CryptMethod         uint32
	Incompatible        uint64
	Autoclear           uint64 // features whose data is void once a program that does not know them has written to the file
	RefcountOrder       uint32
	Compression         CompressionType
	BackingFile         string // as written in the file, "" if none
	BackingFormat       string
	Record              *Record // nil where the file does not carry ours
	RecordError         error   // why the record that the file carries is of no use; nil beside a foreign file's nil Record
	backingOffset       int64
	backingLength       int64
	recordOffset        int64
	headerAndExtensions int
	bitmaps             bool       // it has the bitmaps extension
	key                 *DigestKey // that it is sealed with when it is written; nil for none
}

// ClusterSize is the size of a cluster in bytes.
func (h *Header) ClusterSize() int64 { return 1 << h.ClusterBits }

func (h *Header) l2Entries() int64 { return h.ClusterSize() / 8 }

// l2Span is the number of guest bytes that one L2 table maps.
func (h *Header) l2Span() int64 { return h.ClusterSize() * h.l2Entries() }

// l1Entries is the number of L1 entries that a disk of size bytes needs.
func l1Entries(size, clusterSize int64) int64 {
	span := clusterSize * (clusterSize / 8)
	return (size + span - 1) / span
}

// clusterBits checks a cluster size and gives its binary logarithm.
func clusterBits(size int64) (uint32, error) {
	if size < MinClusterSize || size > MaxClusterSize || size&(size-1) != 0 {
		return 0, fmt.Errorf("cluster size %d: not a power of two from %d to %d", size, MinClusterSize, MaxClusterSize)
	}
	return uint32(bits.TrailingZeros64(uint64(size))), nil
}

// MinimumClusterSize is the smallest cluster size, at least want, whose L1 table for a disk of size bytes QEMU accepts.
func MinimumClusterSize(size, want int64) int64 {
	for want < MaxClusterSize && l1Entries(size, want)*8 > maxL1Bytes {
		want *= 2
	}
	return want
}

// encodeSector lays out header, backing format and record in the first sector, so that one sector-sized write
// switches a file from one state to the next. The backing name is not part of it: it lies behind.
func (h *Header) encodeSector() []byte {
	b := make([]byte, headerLength, sectorSize)
	be := binary.BigEndian
	be.PutUint32(b[0:], magic)
	be.PutUint32(b[4:], 3)
	if h.BackingFile != "" {
		be.PutUint64(b[8:], uint64(h.backingOffset))
		be.PutUint32(b[16:], uint32(len(h.BackingFile)))
	}
	be.PutUint32(b[20:], h.ClusterBits)
	be.PutUint64(b[24:], uint64(h.Size))
	be.PutUint32(b[36:], h.L1Size)
	be.PutUint64(b[40:], uint64(h.L1Offset))
	be.PutUint64(b[48:], uint64(h.RefTableOffset))
	be.PutUint32(b[56:], h.RefTableClusters)
	if h.Compression != Zlib {
		be.PutUint64(b[72:], incompatCompression)
	}
	be.PutUint32(b[96:], refcountOrder)
	be.PutUint32(b[100:], headerLength)
	b[104] = byte(h.Compression)

	if h.BackingFile != "" {
		b = appendExtension(b, extensionBackingFmt, []byte(h.BackingFormat))
	}
	record := len(b) + extensionHead
	if h.Record != nil {
		b = appendExtension(b, extensionRecord, h.Record.encode(h.key))
	}
	b = appendExtension(b, extensionEnd, nil)[:sectorSize]
	if h.Record != nil {
		seal(b, record, h.BackingFile, h.key)
	}
	return b
}

func appendExtension(b []byte, kind uint32, data []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	b = append(b, data...)
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	return b
}
