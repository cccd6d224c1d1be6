package qcow2

import (
	"fmt"
	"slices"
)

// Append writes an encoded chunk, but for its gaps, behind everything that came before; guest offsets must ascend.
// The chunk may be used again afterwards.
func (w *Writer) Append(c *Chunk) (err error) {
	defer func() { w.keep(&err) }()
	if err := w.advance(c.Offset, int64(len(c.Data))); err != nil {
		return err
	}
	if err := w.checkChunk(c); err != nil {
		return err
	}
	guest, data, clusters := c.Offset, c.Data, c.clusters
	for len(clusters) > 0 {
		if err := w.seekTable(guest); err != nil {
			return err
		}
		first := guest / w.o.ClusterSize % int64(len(w.l2))
		entries := w.l2[first:min(first+int64(len(clusters)), int64(len(w.l2)))]
		n := int64(len(entries)) * w.o.ClusterSize
		if err := w.appendPart(entries, guest, data[:n], clusters[:len(entries)]); err != nil {
			return err
		}
		guest, data, clusters = guest+n, data[n:], clusters[len(entries):]
	}
	return w.writeCompleteBlocks()
}

// checkChunk refuses what would be written wrongly.
func (w *Writer) checkChunk(c *Chunk) error {
	switch {
	case c.clusterSize != w.o.ClusterSize || int64(len(c.clusters))*c.clusterSize != int64(len(c.Data)):
		return fmt.Errorf("append chunk at %d: %d bytes are not encoded as clusters of %d", c.Offset, len(c.Data), w.o.ClusterSize)
	case !c.key.is(w.o.Key):
		return fmt.Errorf("append chunk at %d: its digests were not made with the file's key", c.Offset)
	case c.codec != nil && (w.o.Codec == nil || c.codec.Type() != w.o.Codec.Type()):
		return fmt.Errorf("append chunk at %d: encoded as %s, which the file is not", c.Offset, c.codec.Type())
	}
	inside := max(0, min(w.header.Size-c.Offset, int64(len(c.Data))))
	if slices.ContainsFunc(c.Data[inside:], func(b byte) bool { return b != 0 }) {
		return fmt.Errorf("append chunk at %d: data beyond the end of the disk at %d", c.Offset, w.header.Size)
	}
	return nil
}

// appendPart writes the clusters of a chunk that one table maps, in two groups, so that compressed data lies together:
// what is packed across the border of two host clusters needs no room of its own. Which group is the first depends
// on which one the file ends with.
func (w *Writer) appendPart(entries []uint64, guest int64, data []byte, clusters []encodedCluster) error {
	out := run{w: w}
	packedFirst := w.alloc.packer.goesOn(w.alloc.next)
	if err := w.appendGroup(&out, packedFirst, entries, data, clusters); err != nil {
		return err
	}
	if err := w.appendGroup(&out, !packedFirst, entries, data, clusters); err != nil {
		return err
	}
	for i := range clusters {
		switch clusters[i].kind {
		case Unallocated: // nothing of it in the file
		case Data:
			w.block = append(w.block, clusters[i].digest[:]...)
			w.stats.DataClusters++
		case Zero:
			var err error
			if entries[i], err = w.zeroEntry(guest + int64(i)*w.o.ClusterSize); err != nil {
				return err
			}
		}
	}
	return out.flush()
}

// appendGroup writes either the compressed clusters or those that are stored as they are.
func (w *Writer) appendGroup(out *run, packed bool, entries []uint64, data []byte, clusters []encodedCluster) error {
	for i := range clusters {
		c := &clusters[i]
		if c.kind != Data || packed != (len(c.packed) > 0) {
			continue
		}
		b := c.packed
		var off int64
		if packed {
			off = w.alloc.pack(int64(len(b)))
			entries[i] = compressedEntry(off, int64(len(b)), w.header.ClusterBits)
			w.stats.CompressedClusters++
		} else {
			b = data[int64(i)*w.o.ClusterSize:][:w.o.ClusterSize]
			off = w.alloc.clusters(1)
			entries[i] = uint64(off) | entryCopied
		}
		if err := out.add(off, b); err != nil {
			return err
		}
	}
	return nil
}

// Zero makes n guest bytes from off, whole clusters, read as zeroes.
func (w *Writer) Zero(off, n int64) (err error) {
	defer func() { w.keep(&err) }()
	if err := w.advance(off, n); err != nil {
		return err
	}
	for end := off + n; off < end; {
		part := min(end, (off/w.header.l2Span()+1)*w.header.l2Span()) - off
		if err := w.zeroPart(off, part); err != nil {
			return err
		}
		off += part
	}
	return w.writeCompleteBlocks()
}

// zeroPart is Zero for clusters that one table maps. It asks for all of them first: most often there is nothing to hide.
func (w *Writer) zeroPart(off, n int64) error {
	may, err := w.backingMayHoldData(off, n)
	if err != nil || !may {
		return err
	}
	if err := w.seekTable(off); err != nil {
		return err
	}
	for end := off + n; off < end; off += w.o.ClusterSize {
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
	may, err := w.backingMayHoldData(guest, w.o.ClusterSize)
	if err != nil || !may {
		return 0, err
	}
	w.stats.ZeroClusters++
	return entryZero, nil
}

func (w *Writer) backingMayHoldData(off, n int64) (bool, error) {
	if w.o.BackingFile == "" {
		return false, nil
	}
	if w.o.BackingMayHoldData == nil {
		return true, nil
	}
	return w.o.BackingMayHoldData(off, n)
}

// advance checks a range of guest clusters and makes it the last one.
func (w *Writer) advance(off, n int64) error {
	if w.err != nil {
		return w.err
	}
	if w.flushed {
		return fmt.Errorf("write %d bytes at %d: all data was flushed already", n, off)
	}
	size := w.o.ClusterSize
	end := (w.header.Size + size - 1) / size * size
	if off%size != 0 || n%size != 0 || n < 0 || off < w.nextGuest || off > end-n {
		return fmt.Errorf("write %d bytes at %d: not whole clusters of %d in ascending order within %d", n, off, size, end)
	}
	w.nextGuest = off + n
	return nil
}

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
