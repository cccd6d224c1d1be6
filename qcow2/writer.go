package qcow2

import (
	"errors"
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
	Size          int64      // virtual size in bytes; rounded up to 512
	ClusterSize   int64      // bytes, a power of two from 512 to 2 MiB; 0: 64 KiB, or more where the disk needs it
	BackingFile   string     // as it shall stand in the file; "" for none
	BackingFormat string     // "qcow2" if empty
	Codec         Codec      // nil: data is stored as it is
	Key           *DigestKey // of the digests; nil: they find damage, but no change on purpose
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

// Writer writes a qcow2 file from its beginning to its end: data as it comes, L2 tables behind the data they map, each
// refcount block once the file has outgrown it, and at last the header, without which the file is none.
// It holds a mebibyte of L2 tables or two tables, the L1 table and the digest directory in memory, 48 bytes per L2 table.
// It is not safe for concurrent use. After an error the file is of no use: every call but Close gives that error again.
type Writer struct {
	f         File
	o         WriterOptions
	header    Header
	alloc     *allocator
	l1        []uint64
	l2        []uint64
	l2Index   int64         // of the table in l2; -1: none
	queue     []queuedTable // the tables that come next in the file
	spare     [][]uint64    // empty tables
	block     []byte        // digest block of the table in l2: room for the hash of its kinds, and the digests so far
	kinds     []byte        // buffer for those kinds
	buf       []byte        // buffer of writeEntries
	trailer   trailer
	nextGuest int64 // the lowest guest offset that may still be written
	flushed   bool  // no more data
	err       error // the first one, or errClosed: nothing goes on after it
	stats     Stats
}

var errClosed = errors.New("the writer is closed")

// NewWriter starts a file. It writes nothing yet.
func NewWriter(f File, o WriterOptions) (*Writer, error) {
	if o.Size < 0 || o.Size > maxDiskSize {
		return nil, fmt.Errorf("virtual size %d: not from 0 to %d", o.Size, int64(maxDiskSize))
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
		block:   make([]byte, DigestSize),
		kinds:   make([]byte, o.ClusterSize/8),
		buf:     make([]byte, min(o.ClusterSize, 64<<10)),
		trailer: trailer{blocks: newSpool(o.Scratch), key: o.Key},
	}
	w.header.key = o.Key
	if o.BackingFile != "" {
		w.header.backingOffset = backingNameHome
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

// queueBytes is the length of the tables that are written together. Compressed data between which no table lies wastes
// no room in the clusters that it is packed in: where changes are scattered, each table maps but a few of them.
const queueBytes = 1 << 20

// queuedTable is an L2 table that is complete.
type queuedTable struct {
	index   int64
	entries []uint64
}

// finishTable queues the current L2 table and its digest block. A table without entries leaves no trace.
func (w *Writer) finishTable() error {
	if w.l2Index < 0 {
		return nil
	}
	used := false
	for i, e := range w.l2 {
		w.kinds[i] = byte(entryKind(e))
		used = used || e != 0
	}
	if !used {
		return nil
	}
	if err := w.trailer.add(w.l2Index, w.kinds, w.block); err != nil {
		return err
	}
	w.block = w.block[:DigestSize]
	w.queue = append(w.queue, queuedTable{w.l2Index, w.l2})
	if n := len(w.spare); n > 0 {
		w.l2, w.spare = w.spare[n-1], w.spare[:n-1]
	} else {
		w.l2 = make([]uint64, len(w.l2))
	}
	if int64(len(w.queue))*w.o.ClusterSize < queueBytes {
		return nil
	}
	return w.writeQueue()
}

// writeQueue writes the tables in the queue.
func (w *Writer) writeQueue() error {
	off := w.alloc.clusters(int64(len(w.queue)))
	for _, t := range w.queue {
		if err := writeEntries(w.f, t.entries, off, w.buf); err != nil {
			return fmt.Errorf("write L2 table: %w", err)
		}
		w.l1[t.index] = uint64(off) | entryCopied
		off += w.o.ClusterSize
		clear(t.entries)
		w.spare = append(w.spare, t.entries)
	}
	w.queue = w.queue[:0]
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
func (w *Writer) Close() error {
	w.keep(&errClosed)
	return w.trailer.blocks.close()
}

// keep makes an error the one that every later call gives: data is missing in a file that goes on after it.
func (w *Writer) keep(err *error) {
	if w.err == nil {
		w.err = *err
	}
}
