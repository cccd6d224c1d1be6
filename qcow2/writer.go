package qcow2

import (
	"encoding/binary"
	"fmt"
	"io"
)

// File is what a Writer writes to; *os.File is one. It starts empty.
type File interface {
	io.WriterAt
	Truncate(size int64) error
	Sync() error
}

// WriterOptions describes the file to write. Only Size is needed.
type WriterOptions struct {
	Size          int64  // virtual size in bytes; rounded up to 512
	ClusterSize   int64  // bytes, a power of two from 512 to 2 MiB; 0: 64 KiB, or more where the disk needs it
	BackingFile   string // as it shall stand in the file; "" for none
	BackingFormat string // "qcow2" if empty
	Codec         Codec  // nil: data is stored as it is
	// BackingMayHoldData says whether any of n guest bytes from off may read as other than zero in the backing file.
	// Where they can't, zeroes need no cluster. nil: they may, wherever there is a backing file.
	BackingMayHoldData func(off, n int64) (bool, error)
	// Scratch is called at most once, where the digests outgrow a mebibyte; the Writer closes what it gives.
	// nil: a file without a name in the system's folder for temporary files.
	Scratch func() (Scratch, error)
}

// Stats counts what a Writer has written.
type Stats struct {
	DataClusters       int64 // stored, compressed or not
	CompressedClusters int64
	ZeroClusters       int64 // explicit ones
	StoredBytes        int64 // of data, after compression
	FileBytes          int64 // length of the file; of use after Finish
}

// Writer writes a qcow2 file from its beginning to its end: data as it comes, each L2 table behind the data it
// maps, each refcount block once the file has outgrown it, and at last the header, without which the file is none.
// It holds one L2 table, the L1 table and the digest directory in memory, 40 bytes per L2 table.
// It is not safe for concurrent use. After an error the file is of no use, and Close is all that may be called.
type Writer struct {
	f         File
	o         WriterOptions
	header    Header
	alloc     *allocator
	l1        []uint64
	l2        []uint64
	l2Index   int64  // of the table in l2; -1: none
	digests   []byte // of the Data clusters of the table in l2
	directory []directoryEntry
	spool     *spool
	nextGuest int64 // the lowest guest offset that may still be written
	stats     Stats
}

// NewWriter starts a file. It writes nothing yet.
func NewWriter(f File, o WriterOptions) (*Writer, error) {
	if o.Size < 0 {
		return nil, fmt.Errorf("virtual size %d: negative", o.Size)
	}
	size := (o.Size + sectorSize - 1) / sectorSize * sectorSize
	if o.ClusterSize == 0 {
		o.ClusterSize = MinimumClusterSize(size, 64<<10)
	}
	bits, err := clusterBits(o.ClusterSize)
	if err != nil {
		return nil, err
	}
	entries := l1Entries(size, o.ClusterSize)
	if entries*8 > maxL1Bytes {
		return nil, fmt.Errorf("virtual size %d: too large for clusters of %d bytes", size, o.ClusterSize)
	}
	if o.BackingFile != "" && o.BackingFormat == "" {
		o.BackingFormat = "qcow2"
	}
	if n := int64(len(o.BackingFile)); n > maxBackingName || n > o.ClusterSize-backingNameHome {
		return nil, fmt.Errorf("backing file name of %d bytes: does not fit the first cluster of %d bytes", n, o.ClusterSize)
	}
	if len(o.BackingFormat) > maxFormatName {
		return nil, fmt.Errorf("backing format %q: longer than %d bytes", o.BackingFormat, maxFormatName)
	}
	w := &Writer{
		f: f, o: o,
		header: Header{
			Version: 3, ClusterBits: bits, Size: size, L1Size: uint32(entries), RefcountOrder: refcountOrder,
			BackingFile: o.BackingFile, BackingFormat: o.BackingFormat,
		},
		alloc:   newAllocator(bits),
		l1:      make([]uint64, entries),
		l2:      make([]uint64, o.ClusterSize/8),
		l2Index: -1,
		spool:   newSpool(o.Scratch),
	}
	if o.Codec != nil {
		w.header.Compression = o.Codec.Type()
	}
	return w, nil
}

// ClusterSize is the cluster size of the file in bytes.
func (w *Writer) ClusterSize() int64 { return w.o.ClusterSize }

// Stats gives the counts so far.
func (w *Writer) Stats() Stats { return w.stats }

// Append writes an encoded chunk behind everything that came before; guest offsets must ascend.
// The chunk may be used again afterwards.
func (w *Writer) Append(c *Chunk) error {
	if err := w.advance(c.Offset, int64(len(c.Data))); err != nil {
		return err
	}
	out := run{w: w}
	raw, packed := c.Data, c.packed
	for i, cluster := range c.clusters {
		guest := c.Offset + int64(i)*w.o.ClusterSize
		if err := w.seekTable(guest); err != nil {
			return err
		}
		entry := &w.l2[guest/w.o.ClusterSize%int64(len(w.l2))]
		var err error
		switch {
		case cluster.kind == Zero:
			*entry, err = w.zeroEntry(guest)
		case cluster.packed > 0:
			off := w.alloc.pack(int64(cluster.packed))
			*entry = compressedEntry(off, int64(cluster.packed), w.header.ClusterBits)
			err = out.add(off, packed[:cluster.packed])
			packed = packed[cluster.packed:]
			w.stats.CompressedClusters++
		default:
			off := w.alloc.clusters(1)
			*entry = uint64(off) | entryCopied
			err = out.add(off, raw[:w.o.ClusterSize])
		}
		if err != nil {
			return err
		}
		raw = raw[w.o.ClusterSize:]
		if cluster.kind == Data {
			w.digests = append(w.digests, cluster.digest[:]...)
			w.stats.DataClusters++
		}
	}
	if err := out.flush(); err != nil {
		return err
	}
	return w.writeCompleteBlocks()
}

// Zero makes n guest bytes from off, whole clusters, read as zeroes.
func (w *Writer) Zero(off, n int64) error {
	if err := w.advance(off, n); err != nil {
		return err
	}
	for end := off + n; off < end; off += w.o.ClusterSize {
		if err := w.seekTable(off); err != nil {
			return err
		}
		entry, err := w.zeroEntry(off)
		if err != nil {
			return err
		}
		w.l2[off/w.o.ClusterSize%int64(len(w.l2))] = entry
	}
	return nil
}

// zeroEntry is the L2 entry of a cluster of zeroes: nothing where nothing is to be hidden.
func (w *Writer) zeroEntry(guest int64) (uint64, error) {
	if w.o.BackingFile == "" {
		return 0, nil
	}
	if w.o.BackingMayHoldData != nil {
		may, err := w.o.BackingMayHoldData(guest, w.o.ClusterSize)
		if err != nil || !may {
			return 0, err
		}
	}
	w.stats.ZeroClusters++
	return entryZero, nil
}

// advance checks a range of guest clusters and makes it the last one.
func (w *Writer) advance(off, n int64) error {
	size := w.o.ClusterSize
	end := (w.header.Size + size - 1) / size * size
	if off%size != 0 || n%size != 0 || n < 0 || off < w.nextGuest || off > end-n {
		return fmt.Errorf("write %d bytes at %d: not whole clusters of %d in ascending order within %d", n, off, size, end)
	}
	w.nextGuest = off + n
	return nil
}

// seekTable makes the L2 table of a guest offset the current one, and writes the one before.
func (w *Writer) seekTable(guest int64) error {
	i := guest / w.header.l2Span()
	if i == w.l2Index {
		return nil
	}
	if err := w.finishTable(); err != nil {
		return err
	}
	w.l2Index = i
	return nil
}

// finishTable writes the current L2 table and queues its digest block. A table without entries leaves no trace.
func (w *Writer) finishTable() error {
	if w.l2Index < 0 {
		return nil
	}
	table := make([]byte, 0, w.o.ClusterSize)
	kinds := make([]byte, len(w.l2))
	used := false
	for i, e := range w.l2 {
		table = binary.BigEndian.AppendUint64(table, e)
		kinds[i] = byte(entryKind(e))
		used = used || e != 0
	}
	if !used {
		return nil
	}
	off := w.alloc.clusters(1)
	if err := writeSparse(w.f, table, off); err != nil {
		return fmt.Errorf("write L2 table: %w", err)
	}
	w.l1[w.l2Index] = uint64(off) | entryCopied
	if err := w.queueDigests(kinds); err != nil {
		return err
	}
	clear(w.l2)
	return nil
}

func (w *Writer) queueDigests(kinds []byte) error {
	hash := digestOf(kinds)
	block := append(hash[:], w.digests...)
	w.directory = append(w.directory, directoryEntry{
		l1Index: uint32(w.l2Index),
		count:   uint32(len(w.digests) / DigestSize),
		offset:  w.spool.length, // from the first block, until Finish knows where that lies
		hash:    digestOf(block),
	})
	w.digests = w.digests[:0]
	if _, err := w.spool.Write(block); err != nil {
		return fmt.Errorf("write digests aside: %w", err)
	}
	return nil
}

// writeCompleteBlocks writes the refcount blocks that the file has outgrown.
func (w *Writer) writeCompleteBlocks() error {
	for _, i := range w.alloc.complete() {
		off := w.alloc.clusters(1)
		if err := writeSparse(w.f, w.alloc.take(i, off), off); err != nil {
			return fmt.Errorf("write refcount block: %w", err)
		}
	}
	return nil
}

// Close gives back what the Writer holds beside the file, which stays the caller's. It is needed after an error.
func (w *Writer) Close() error { return w.spool.close() }

// run joins neighbouring writes.
type run struct {
	w   *Writer
	off int64
	buf []byte
}

// add writes b at off, at the latest at the next flush. Its argument goes on from the memory of the one before
// wherever it goes on from its place in the file: both come from the same buffer.
func (r *run) add(off int64, b []byte) error {
	r.w.stats.StoredBytes += int64(len(b))
	n := len(r.buf)
	if n > 0 && off == r.off+int64(n) && cap(r.buf) >= n+len(b) && &r.buf[:n+1][n] == &b[0] {
		r.buf = r.buf[:n+len(b)]
		return nil
	}
	err := r.flush()
	r.off, r.buf = off, b
	return err
}

func (r *run) flush() error {
	if len(r.buf) == 0 {
		return nil
	}
	_, err := r.w.f.WriteAt(r.buf, r.off)
	r.buf = nil
	if err != nil {
		return fmt.Errorf("write data: %w", err)
	}
	return nil
}
