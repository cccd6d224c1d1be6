package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
)

// run does a fold up to the switch, and that.
func (f *fold) run(ctx context.Context) error {
	if f.target.fileLength > f.length { // what a fold left that was cut short
		if err := f.f.Truncate(f.length); err != nil {
			return err
		}
	}
	if err := f.target.checkRefcounts(ctx, f.space, f.o.limits.window); err != nil {
		return err
	}
	if err := f.loadL1(ctx); err != nil {
		return err
	}
	for index := int64(0); ; index++ {
		var err error
		if index, err = f.nextTable(ctx, index); err != nil {
			return err
		}
		if index == int64(len(f.l1)) {
			break
		}
		if err := f.foldTable(ctx, index); err != nil {
			return err
		}
	}
	return f.finish(ctx)
}

// loadL1 starts the new L1 table with the tables of the old one, and drops those behind the end of the smaller disk.
func (f *fold) loadL1(ctx context.Context) error {
	h := f.target.header
	f.l1 = make([]uint64, f.header.L1Size)
	f.keep = min(l1Entries(f.target.Size(), h.ClusterSize()), int64(len(f.l1)))
	b := make([]byte, f.keep*8)
	if err := f.target.readHost(b, h.L1Offset); err != nil {
		return fmt.Errorf("read L1 table: %w", err)
	}
	for i := range f.keep {
		f.l1[i] = binary.BigEndian.Uint64(b[i*8:])
	}
	for i := f.keep; i < int64(h.L1Size); {
		if err := ctx.Err(); err != nil {
			return err
		}
		table, holes, err := f.target.l2Table(i)
		if err != nil {
			return err
		}
		if table != 0 {
			if err := f.dropTable(i, table); err != nil {
				return err
			}
		}
		i += max(holes, 1)
	}
	return nil
}

func (f *fold) dropTable(index, table int64) error {
	entries := make([]uint64, f.header.l2Entries())
	if err := f.target.readEntries(entries, index, table); err != nil {
		return err
	}
	for i, e := range entries {
		if err := f.drop(e, index*f.header.l2Span()+int64(i)*f.header.ClusterSize()); err != nil {
			return err
		}
	}
	return f.refs.changeSpan(table, f.header.ClusterSize(), -1)
}

// drop takes back the references of an L2 entry of the target, which is that of a guest offset.
func (f *fold) drop(e uint64, guest int64) error {
	if entryKind(e) == Data {
		f.stats.DroppedClusters++
	}
	if e&entryCompressed != 0 {
		off, n := compressedSpan(e, f.header.ClusterBits)
		if err := f.dead.blobs.add(guest, int64(e)); err != nil {
			return err
		}
		return f.refs.changeSpan(off, n, -1)
	}
	if host := int64(e & entryOffset); host != 0 {
		return f.refs.changeSpan(host, f.header.ClusterSize(), -1)
	}
	return nil
}

// freeCluster hears of each host cluster that has no reference any more.
func (f *fold) freeCluster(cluster int64) error {
	return f.dead.add(cluster<<f.header.ClusterBits, f.header.ClusterSize())
}

// nextTable gives the first L2 table of the target, from index on, that the fold may change; behind the last one the
// size of the L1 table.
func (f *fold) nextTable(ctx context.Context, index int64) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	span, next := f.header.l2Span(), int64(len(f.l1))
	if index >= next {
		return next, nil
	}
	// Where one disk ends inside a table of the target, what that has behind goes.
	if edge := min(f.size, f.backingSize); f.intoBacking && f.size != f.backingSize && edge/span >= index {
		next = min(next, edge/span)
	}
	off, err := f.other.nextHeld(ctx, index*span, min(next*span, f.size))
	if err != nil {
		return 0, err
	}
	next = min(next, off/span)
	// What the backing file hides by its end.
	if f.below != nil {
		from, end := max(index*span, f.backingSize), min(next*span, f.size, f.below.Size())
		if off, err = f.below.nextData(ctx, from, end); err != nil {
			return 0, err
		}
		if off < end {
			next = min(next, off/span)
		}
	}
	return next, nil
}

// nextHeld gives the first byte from off on of what the file itself holds, data or zeroes; end or more where it is none.
func (im *Image) nextHeld(ctx context.Context, off, end int64) (int64, error) {
	for off < min(end, im.Size()) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		e, err := im.FileExtent(off)
		if err != nil || e.Kind != Unallocated {
			return off, err
		}
		off += e.Length
	}
	return max(off, end), nil
}

// nextData gives the first byte from off on for which the chain holds data; end or more where it is none.
func (im *Image) nextData(ctx context.Context, off, end int64) (int64, error) {
	for off < min(end, im.Size()) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		e, err := im.Extent(off)
		if err != nil || e.Kind == Data {
			return off, err
		}
		off += e.Length
	}
	return max(off, end), nil
}

func (im *Image) holdsData(ctx context.Context, off, end int64) (bool, error) {
	at, err := im.nextData(ctx, off, end)
	return at < end, err
}

// readEntries reads the L2 table of an L1 index, proved, and checks each entry.
func (im *Image) readEntries(dst []uint64, index, table int64) error {
	if im.proof != nil {
		if err := im.proof.table(index, table, 0); err != nil {
			return err
		}
	}
	size := im.header.ClusterSize()
	for i := 0; i < len(dst); {
		part, err := im.entries(table + int64(i)*8)
		if err != nil {
			return err
		}
		for j := range part.len() {
			dst[i] = part.at(j)
			if _, err := im.decodeEntry(dst[i], index*im.header.l2Span()+int64(i)*size); err != nil {
				return err
			}
			i++
		}
	}
	return nil
}

// foldFile counts what is written.
type foldFile struct {
	FoldFile
	written int64
}

func (f *foldFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.FoldFile.WriteAt(p, off)
	f.written += int64(n)
	return n, err
}

// outputBytes is how much of what adjoins is written at a time.
const outputBytes = 1 << 20

// output joins neighbouring writes.
type output struct {
	f   io.WriterAt
	off int64
	buf []byte
}

// write writes b at off, at the latest at the next flush.
func (o *output) write(b []byte, off int64) error {
	if off != o.off+int64(len(o.buf)) || len(o.buf)+len(b) > outputBytes {
		if err := o.flush(); err != nil {
			return err
		}
		o.off = off
	}
	o.buf = append(o.buf, b...)
	return nil
}

func (o *output) flush() error {
	if len(o.buf) == 0 {
		return nil
	}
	_, err := o.f.WriteAt(o.buf, o.off)
	o.buf = o.buf[:0]
	if err != nil {
		return fmt.Errorf("write data: %w", err)
	}
	return nil
}
