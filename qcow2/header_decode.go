package qcow2

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"strings"
)

// More limits that QEMU enforces.
const (
	maxRefcountOrder = 6
	maxSnapshots     = 65536
	maxHostOffset    = 1 << 56
	maxRecordLength  = 160 // a later version of ours may be longer than today's
)

func headerError(offset int64, format string, args ...any) error {
	return corrupt("header", offset, format, args...)
}

// ReadHeader reads and checks the header of a file of fileLength bytes (qcow2 specification, "Header").
//
// Whose file it is: Record is set for ours, RecordError for ours where the record is damaged or of a later version, or
// the header is not as the record has it; neither for one that another program made. Errors are ErrNotQcow2, *CorruptError, also for a file that
// is marked corrupt, *UnsupportedError, or those of r.
func ReadHeader(r io.ReaderAt, fileLength int64) (*Header, error) {
	fixed := make([]byte, min(headerLength, max(fileLength, 0)))
	if _, err := readFullAt(r, fixed, 0); err != nil {
		return nil, fmt.Errorf("read header: %w", err)
	}
	if len(fixed) < 4 || binary.BigEndian.Uint32(fixed) != magic {
		return nil, ErrNotQcow2
	}
	if len(fixed) < headerLengthV2 {
		return nil, headerError(0, "file of %d bytes ends inside it", fileLength)
	}
	h, length, err := decodeFixed(fixed)
	if err != nil {
		return nil, err
	}
	if err := h.checkTables(fileLength); err != nil {
		return nil, err
	}
	return h, h.readVariable(r, length, fileLength)
}

// decodeFixed decodes the fields at fixed places and gives the header's length.
func decodeFixed(b []byte) (*Header, int64, error) {
	be := binary.BigEndian
	h := &Header{
		Version:          be.Uint32(b[4:]),
		ClusterBits:      be.Uint32(b[20:]),
		CryptMethod:      be.Uint32(b[32:]),
		L1Size:           be.Uint32(b[36:]),
		RefTableClusters: be.Uint32(b[56:]),
		Snapshots:        be.Uint32(b[60:]),
		RefcountOrder:    refcountOrder,
	}
	if h.Version != 2 && h.Version != 3 {
		return nil, 0, &UnsupportedError{fmt.Sprintf("version %d", h.Version)}
	}
	if h.ClusterBits < 9 || h.ClusterBits > 21 {
		return nil, 0, headerError(20, "cluster bits %d: not from 9 to 21", h.ClusterBits)
	}
	length := int64(headerLengthV2)
	if h.Version == 3 {
		var err error
		if length, err = h.decodeVersion3(b); err != nil {
			return nil, 0, err
		}
	}
	if h.CryptMethod != 0 {
		return nil, 0, &UnsupportedError{fmt.Sprintf("encryption (method %d)", h.CryptMethod)}
	}
	for _, f := range []struct {
		at    int
		value *int64
	}{{8, &h.backingOffset}, {24, &h.Size}, {40, &h.L1Offset}, {48, &h.RefTableOffset}} {
		v := be.Uint64(b[f.at:])
		if v > 1<<62 {
			return nil, 0, headerError(int64(f.at), "%d: too large", v)
		}
		*f.value = int64(v)
	}
	if h.backingOffset != 0 {
		return h, length, h.checkBackingName(be.Uint32(b[16:]), length)
	}
	return h, length, nil
}

// decodeVersion3 decodes what version 3 added: features, refcount order, length, compression type.
func (h *Header) decodeVersion3(b []byte) (length int64, err error) {
	be := binary.BigEndian
	if len(b) < headerLengthV3 {
		return 0, headerError(0, "file of %d bytes ends inside it", len(b))
	}
	h.Incompatible = be.Uint64(b[72:])
	if err := checkFeatures(h.Incompatible); err != nil {
		return 0, err
	}
	h.Autoclear = be.Uint64(b[88:])
	if h.RefcountOrder = be.Uint32(b[96:]); h.RefcountOrder > maxRefcountOrder {
		return 0, headerError(96, "refcount order %d: more than %d", h.RefcountOrder, maxRefcountOrder)
	}
	length = int64(be.Uint32(b[100:]))
	if length < headerLengthV3 || length > h.ClusterSize() || length%8 != 0 {
		return 0, headerError(100, "header length %d: not a multiple of 8 from %d to a cluster", length, headerLengthV3)
	}
	if length > headerLengthV3 && len(b) > headerLengthV3 {
		h.Compression = CompressionType(b[headerLengthV3])
	}
	if h.Compression > Zstd {
		return 0, &UnsupportedError{h.Compression.String()}
	}
	if (h.Compression != Zlib) != (h.Incompatible&incompatCompression != 0) {
		return 0, headerError(headerLengthV3, "compression type %s contradicts the incompatible features %#x", h.Compression, h.Incompatible)
	}
	return length, nil
}

// checkFeatures refuses incompatible features that change what a file means. A dirty file is none of them: its
// refcounts may be wrong, which no reader looks at.
func checkFeatures(incompatible uint64) error {
	var names []string
	for unknown := incompatible &^ incompatUnderstood; unknown != 0; unknown &= unknown - 1 {
		switch bit := uint64(unknown & -unknown); bit {
		case incompatDataFile:
			names = append(names, "external data file")
		case incompatExtendedL2:
			names = append(names, "extended L2 entries")
		default:
			names = append(names, fmt.Sprintf("incompatible feature bit %d", bits.TrailingZeros64(bit)))
		}
	}
	if names != nil {
		return &UnsupportedError{strings.Join(names, ", ")}
	}
	if incompatible&incompatCorrupt != 0 {
		return headerError(72, "the file is marked corrupt")
	}
	return nil
}

// checkBackingName bounds the backing file name, n bytes behind a header of length bytes.
func (h *Header) checkBackingName(n uint32, length int64) error {
	if n > maxBackingName || h.backingOffset > h.ClusterSize()-int64(n) {
		return headerError(8, "backing file name of %d bytes at offset %d: not inside the first cluster", n, h.backingOffset)
	}
	if h.backingOffset < length {
		return headerError(8, "backing file name at offset %d: inside the header", h.backingOffset)
	}
	h.backingLength = int64(n)
	return nil
}

// checkTables bounds the sizes and places of the tables that a header points to.
func (h *Header) checkTables(fileLength int64) error {
	cluster := h.ClusterSize()
	switch {
	case int64(h.L1Size)*8 > maxL1Bytes:
		return headerError(36, "L1 table of %d entries: more than %d", h.L1Size, maxL1Bytes/8)
	case h.Size > maxL1Bytes/8*h.l2Span():
		return headerError(24, "virtual size %d: too large for clusters of %d bytes", h.Size, cluster)
	case int64(h.L1Size) < l1Entries(h.Size, cluster):
		return headerError(36, "L1 table of %d entries: too small for a virtual size of %d", h.L1Size, h.Size)
	case h.L1Offset%cluster != 0, h.L1Size > 0 && h.L1Offset == 0:
		return headerError(40, "L1 table at offset %d: not at a cluster", h.L1Offset)
	case h.L1Size > 0 && h.L1Offset > fileLength-int64(h.L1Size)*8:
		return headerError(40, "L1 table at offset %d with %d entries: behind the end of the file", h.L1Offset, h.L1Size)
	case h.RefTableClusters == 0, int64(h.RefTableClusters)*cluster > maxRefTableBytes:
		return headerError(56, "refcount table of %d clusters: none, or more than %d bytes", h.RefTableClusters, maxRefTableBytes)
	case h.RefTableOffset%cluster != 0, h.RefTableOffset == 0, h.RefTableOffset >= min(maxHostOffset, fileLength):
		return headerError(48, "refcount table at offset %d: not at a cluster of the file", h.RefTableOffset)
	case h.Snapshots > maxSnapshots:
		return headerError(60, "%d internal snapshots: more than %d", h.Snapshots, maxSnapshots)
	}
	return nil
}

// readVariable reads the extensions and the backing file name. Nothing of them is held but what we know.
func (h *Header) readVariable(r io.ReaderAt, length, fileLength int64) error {
	end := h.ClusterSize()
	if h.backingOffset != 0 {
		end = h.backingOffset
	}
	end = min(end, fileLength)
	if err := h.readExtensions(r, length, end); err != nil {
		return err
	}
	if err := h.readBackingName(r); err != nil {
		return err
	}
	if h.Record == nil {
		return nil
	}
	return h.checkHash(r)
}

func (h *Header) readBackingName(r io.ReaderAt) error {
	if h.backingOffset == 0 {
		return nil
	}
	name := make([]byte, h.backingLength)
	if _, err := readFullAt(r, name, h.backingOffset); err != nil {
		return fmt.Errorf("read backing file name: %w", err)
	}
	h.BackingFile = string(name)
	if strings.ContainsRune(h.BackingFile, 0) {
		return headerError(h.backingOffset, "backing file name with a NUL byte")
	}
	return nil
}

// readFullAt fills p from r, whatever r does about an end of file at the end of p.
func readFullAt(r io.ReaderAt, p []byte, off int64) (int, error) {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return n, nil
	case err == nil || err == io.EOF:
		return n, io.ErrUnexpectedEOF
	}
	return n, err
}
