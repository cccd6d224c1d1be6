package qcow2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
)

// Finish completes the file: tables, identity and digests, and last of all, between two syncs, the sector with the
// header. identity is kept as it is, to be found by Image.Identity. The Writer is of no use afterwards.
func (w *Writer) Finish(identity []byte) (err error) {
	defer func() { w.keep(&err) }()
	if len(identity) > maxIdentity {
		return fmt.Errorf("identity of %d bytes: more than %d", len(identity), maxIdentity)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if err := w.writeTables(); err != nil {
		return fmt.Errorf("write tables: %w", err)
	}
	r, err := w.trailer.write(w.f, w.alloc.next<<w.header.ClusterBits, identity, w.o.Key.algorithm())
	if err != nil {
		return fmt.Errorf("write identity and digests: %w", err)
	}
	w.header.Record, w.stats.FileBytes = r, r.FileLength
	if _, err := w.f.WriteAt([]byte(w.o.BackingFile), backingNameHome); err != nil {
		return fmt.Errorf("write backing file name: %w", err)
	}
	if err := w.f.Sync(); err != nil {
		return fmt.Errorf("sync data and tables: %w", err)
	}
	if _, err := w.f.WriteAt(w.header.encodeSector(), 0); err != nil {
		return fmt.Errorf("write header: %w", err)
	}
	if err := w.f.Sync(); err != nil {
		return fmt.Errorf("sync header: %w", err)
	}
	return w.Close()
}

// Flush writes the last L2 tables, so that Stats knows all of the data; nothing can be appended afterwards.
func (w *Writer) Flush() (err error) {
	if w.err != nil {
		return w.err
	}
	defer func() { w.keep(&err) }()
	w.flushed = true
	if err := w.finishTable(); err != nil {
		return err
	}
	w.l2Index = -1
	if err := w.writeQueue(); err != nil {
		return err
	}
	return w.writeCompleteBlocks()
}

// writeTables places the L1 table, the refcount table and the refcount blocks that are left.
func (w *Writer) writeTables() error {
	size := w.o.ClusterSize
	if len(w.l1) > 0 {
		off := w.alloc.clusters((int64(len(w.l1))*8 + size - 1) / size)
		if err := writeEntries(w.f, w.l1, off, w.buf); err != nil {
			return err
		}
		w.header.L1Offset = off
	}
	off, clusters, blocks := w.alloc.reserveTable()
	if clusters*size > maxRefTableBytes {
		return fmt.Errorf("refcount table of %d clusters: the file is too large for clusters of %d bytes", clusters, size)
	}
	w.header.RefTableOffset, w.header.RefTableClusters = off, uint32(clusters)
	for i, b := range blocks {
		at := off + (clusters+int64(i))*size
		if err := writeSparse(w.f, w.alloc.take(b, at), at); err != nil {
			return err
		}
	}
	return writeEntries(w.f, w.alloc.table, off, w.buf)
}

// writeEntries writes the entries of a table at off as writeSparse does, by way of buf: without a second copy of the table.
func writeEntries(f io.WriterAt, entries []uint64, off int64, buf []byte) error {
	for part := range slices.Chunk(entries, len(buf)/8) {
		for i, e := range part {
			binary.BigEndian.PutUint64(buf[i*8:], e)
		}
		n := len(part) * 8
		if err := writeSparse(f, buf[:n], off); err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// writeSparse writes b at off but for its all-zero pages, which stay holes of a file that only grows.
func writeSparse(f io.WriterAt, b []byte, off int64) error {
	const page = 4096
	var zeros [page]byte
	for len(b) > 0 {
		n := 0 // bytes to write before the next zero page
		for n < len(b) {
			end := min(n+page, len(b))
			if bytes.Equal(b[n:end], zeros[:end-n]) {
				break
			}
			n = end
		}
		if n > 0 {
			if _, err := f.WriteAt(b[:n], off); err != nil {
				return err
			}
		}
		n = min(n+page, len(b)) // and the zero page behind them
		b, off = b[n:], off+int64(n)
	}
	return nil
}
