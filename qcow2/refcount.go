package qcow2

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
)

// refcounts changes the refcounts of a file copy on write: a block that changes gets another place, and so does in turn
// the block that counts this place. The blocks of the committed state stay as they are. Blocks that don't fit into
// memory are written and read again.
type refcounts struct {
	f       FoldFile
	space   *space
	bits    uint32
	table   []uint64                 // of the new state, by index of the block; 0: none
	moved   map[int64]bool           // blocks that have their new place; true once something is written there
	blocks  map[int64]*refcountBlock // in memory
	memory  int64                    // bytes that they may take
	clock   int64
	changes []refcountChange // that are still to be made
	busy    bool
	freed   func(cluster int64) error // is told what has no reference any more
}

type refcountBlock struct {
	counts []byte // as in the file
	used   int64  // when it was used last
}

type refcountChange struct {
	cluster int64
	by      int
}

func newRefcounts(f FoldFile, s *space, bits uint32, freed func(int64) error) *refcounts {
	return &refcounts{
		f: f, space: s, bits: bits, table: slices.Clone(s.table), freed: freed,
		moved: make(map[int64]bool), blocks: make(map[int64]*refcountBlock),
	}
}

// blockEntries is the number of clusters that one block counts, at 16 bits each.
func (r *refcounts) blockEntries() int64 { return 1 << (r.bits - 1) }

// change adds by to the count of a cluster.
func (r *refcounts) change(cluster int64, by int) error {
	r.changes = append(r.changes, refcountChange{cluster, by})
	if r.busy {
		return nil
	}
	r.busy = true
	for len(r.changes) > 0 { // each may cause others
		c := r.changes[len(r.changes)-1]
		r.changes = r.changes[:len(r.changes)-1]
		if err := r.apply(c); err != nil {
			return err
		}
	}
	r.busy = false
	return nil
}

// changeSpan is change for all clusters that n bytes at off touch.
func (r *refcounts) changeSpan(off, n int64, by int) error {
	for c := off >> r.bits; n > 0 && c <= (off+n-1)>>r.bits; c++ {
		if err := r.change(c, by); err != nil {
			return err
		}
	}
	return nil
}

func (r *refcounts) apply(c refcountChange) error {
	i := c.cluster / r.blockEntries()
	b, err := r.block(i)
	if err != nil {
		return err
	}
	if _, ok := r.moved[i]; !ok {
		if err := r.move(i); err != nil {
			return err
		}
	}
	at := b.counts[c.cluster%r.blockEntries()*2:]
	n := int(binary.BigEndian.Uint16(at)) + c.by
	if n < 0 || n > math.MaxUint16 {
		return corrupt("refcount", c.cluster<<r.bits, "%d references", n)
	}
	binary.BigEndian.PutUint16(at, uint16(n))
	if n == 0 && c.by < 0 {
		return r.freed(c.cluster)
	}
	return nil
}

// move gives a block its place in the new state.
func (r *refcounts) move(i int64) error {
	place, err := r.space.take()
	if err != nil {
		return err
	}
	for int64(len(r.table)) <= i {
		r.table = append(r.table, 0)
	}
	if old := int64(r.table[i]); old != 0 {
		r.changes = append(r.changes, refcountChange{old >> r.bits, -1})
	}
	r.changes = append(r.changes, refcountChange{place, 1})
	r.table[i] = uint64(place) << r.bits
	r.moved[i] = false
	return nil
}

// count is the number of references of a cluster so far.
func (r *refcounts) count(cluster int64) (uint16, error) {
	b, err := r.block(cluster / r.blockEntries())
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint16(b.counts[cluster%r.blockEntries()*2:]), nil
}

// block gives a block as it stands now.
func (r *refcounts) block(i int64) (*refcountBlock, error) {
	r.clock++
	if b := r.blocks[i]; b != nil {
		b.used = r.clock
		return b, nil
	}
	if err := r.makeRoom(); err != nil {
		return nil, err
	}
	b := &refcountBlock{counts: make([]byte, 1<<r.bits), used: r.clock}
	written, moved := r.moved[i]
	var err error
	switch {
	case written:
		_, err = readFullAt(r.f, b.counts, int64(r.table[i]))
	case !moved:
		err = r.space.readBlock(b.counts, i)
	}
	if err != nil {
		return nil, fmt.Errorf("read refcount block: %w", err)
	}
	r.blocks[i] = b
	return b, nil
}

// makeRoom writes and forgets the block that was not used for the longest time.
func (r *refcounts) makeRoom() error {
	if int64(len(r.blocks)) < max(1, r.memory>>r.bits) {
		return nil
	}
	oldest := int64(-1)
	for i, b := range r.blocks {
		if oldest < 0 || b.used < r.blocks[oldest].used {
			oldest = i
		}
	}
	if err := r.write(oldest); err != nil {
		return err
	}
	delete(r.blocks, oldest)
	return nil
}

// write puts a block that has changed to its place.
func (r *refcounts) write(i int64) error {
	written, moved := r.moved[i]
	if !moved {
		return nil
	}
	at, b := int64(r.table[i]), r.blocks[i].counts
	var err error
	if written || !r.space.isNew(at>>r.bits) {
		_, err = r.f.WriteAt(b, at)
	} else {
		err = writeSparse(r.f, b, at)
	}
	r.moved[i] = true
	if err != nil {
		return fmt.Errorf("write refcount block: %w", err)
	}
	return nil
}

// finish places the table, counts it, and writes it and the blocks. Nothing can be counted afterwards.
func (r *refcounts) finish() (offset, tableClusters int64, err error) {
	size := int64(1) << r.bits
	for entries := int64(len(r.table)); ; {
		// What counts the table may need more blocks, and they a longer table: then that place is given up.
		blocks := max(entries, (r.space.end+r.blockEntries()-1)/r.blockEntries()) + 1
		tableClusters = (blocks*8 + size - 1) / size
		if tableClusters*size > maxRefTableBytes {
			return 0, 0, fmt.Errorf("refcount table of %d clusters: the file is too large for clusters of %d bytes", tableClusters, size)
		}
		offset = r.space.extend(tableClusters) << r.bits
		if err := r.changeSpan(offset, tableClusters*size, 1); err != nil {
			return 0, 0, err
		}
		if entries = int64(len(r.table)); entries*8 <= tableClusters*size {
			break
		}
		if err := r.changeSpan(offset, tableClusters*size, -1); err != nil {
			return 0, 0, err
		}
	}
	for _, i := range slices.Sorted(maps.Keys(r.blocks)) {
		if err := r.write(i); err != nil {
			return 0, 0, err
		}
	}
	if err := writeEntries(r.f, r.table, offset, make([]byte, min(size, 64<<10))); err != nil {
		return 0, 0, fmt.Errorf("write refcount table: %w", err)
	}
	return offset, tableClusters, nil
}
