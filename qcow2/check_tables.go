package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// tableCheck is what a Check looks at while references are counted.
type tableCheck struct {
	*checker
	counts *refcountCheck
	record *Record // nil: none
	limit  int64   // the host cluster that the identity begins in
	free   bool    // one before that has neither reference nor refcount
	l2     int64   // the table that is looked at
}

// checkTables checks all tables, what their entries refer to, and the refcounts of that.
func (c *checker) checkTables(ctx context.Context, r *Record) error {
	im := c.im
	table, err := c.loadRefcountTable()
	if err != nil {
		return err
	}
	t := tableCheck{checker: c, record: r}
	t.counts = &refcountCheck{im: im, table: table, report: c.report, more: &t}
	t.counts.end = (im.fileLength + im.header.ClusterSize() - 1) >> im.header.ClusterBits
	if r != nil {
		t.limit = r.IdentityOffset >> im.header.ClusterBits
		if err := c.checkDirectory(ctx, r); err != nil {
			return err
		}
	}
	if err := im.checkCountable(); err != nil {
		c.unknown = append(c.unknown, err)
		return t.counts.countAll(ctx) // of no cluster: it is for the entries
	}
	err = t.counts.run(ctx, c.o.window)
	// A fold leaves at least the cluster of the former refcount table free, and a Writer none.
	c.pristine = c.digested && !c.changed && !t.free
	return err
}

// loadRefcountTable gives the offsets of refcount blocks that can be used, 0 for others.
func (c *checker) loadRefcountTable() ([]uint64, error) {
	h := c.im.header
	b := make([]byte, int64(h.RefTableClusters)*h.ClusterSize()) // bounded by ReadHeader
	if err := c.im.readHost(b, h.RefTableOffset); err != nil {
		return nil, fmt.Errorf("read refcount table: %w", err)
	}
	if end := h.RefTableOffset + int64(len(b)); end-c.im.fileLength >= h.ClusterSize() {
		f := Finding{Kind: Corruption, Structure: "refcount table", Host: Range{h.RefTableOffset, int64(len(b))}}
		f.Message = fmt.Sprintf("it ends behind the end of the file at %d", c.im.fileLength)
		_ = c.report(f)
	}
	table := make([]uint64, len(b)/8)
	for i := range table {
		e := binary.BigEndian.Uint64(b[i*8:])
		f := Finding{Kind: Corruption, Structure: "refcount table", Host: Range{h.RefTableOffset + int64(i)*8, 8}}
		block := e &^ (MinClusterSize - 1)
		if e != block {
			f.Message = fmt.Sprintf("%#x: reserved bits", e)
			_ = c.report(f)
		}
		if block == 0 {
			continue
		}
		if block > maxHostOffset || c.im.checkCluster(int64(block)) != nil {
			f.Message = fmt.Sprintf("block at offset %d: not a cluster of the file", block)
			_ = c.report(f)
			continue
		}
		table[i] = block
	}
	c.dropTwins(table)
	return table, nil
}

// dropTwins leaves of the entries of the refcount table that name the same block only the first one, so that the time
// that a table takes is bounded by the length of the file.
func (c *checker) dropTwins(table []uint64) {
	order := make([]int32, 0, len(table))
	for i, block := range table {
		if block != 0 {
			order = append(order, int32(i))
		}
	}
	slices.SortStableFunc(order, func(a, b int32) int { return int(int64(table[a]) - int64(table[b])) })
	var twins []int32
	for i := 1; i < len(order); i++ {
		if table[order[i]] == table[order[i-1]] {
			twins = append(twins, order[i])
		}
	}
	slices.Sort(twins)
	for _, i := range twins {
		f := Finding{Kind: Corruption, Structure: "refcount table", Host: Range{c.im.header.RefTableOffset + int64(i)*8, 8}}
		f.Message = fmt.Sprintf("block at offset %d: it counts other clusters already", table[i])
		_ = c.report(f)
		table[i] = 0
	}
}

// checkDirectory finds out whether the file has a digest directory that can be believed.
func (c *checker) checkDirectory(ctx context.Context, r *Record) error {
	if err := c.im.checkDigests(r); err != nil {
		if !errors.Is(err, ErrNoDigests) {
			c.unknown = append(c.unknown, err)
		}
		return nil
	}
	if err := c.im.verifyDirectory(ctx, r); err != nil {
		return c.reportError(err, Finding{Kind: Damage, Host: c.im.hostRange(r.DirectoryOffset, r.DirectoryLength)})
	}
	c.digested = true
	return nil
}

// bad takes what is wrong with tables and entries, of which it is told for each window anew.
func (t *tableCheck) bad(first bool) func(Finding) error {
	if first {
		return t.report
	}
	return func(Finding) error { return nil }
}

// markAreas marks what the record leads to.
func (t *tableCheck) markAreas(ctx context.Context, c *refcountCheck) error {
	if t.record == nil {
		return nil
	}
	mark := func(off, n int64) {
		if r := t.im.hostRange(off, n); r.Length > 0 {
			from, to := c.span(r.Offset, r.Length)
			for i := from; i < to; i++ {
				c.areas.set(i)
			}
		}
	}
	mark(t.record.IdentityOffset, t.record.IdentityLength)
	mark(t.record.DirectoryOffset, t.record.DirectoryLength)
	if !t.digested {
		return nil
	}
	d, err := t.im.readDirectory(t.record)
	for ; err == nil && d.next != nil; err = d.advance() {
		if err := ctx.Err(); err != nil {
			return err
		}
		mark(d.next.offset, d.next.blockLength())
	}
	return err
}

// lookAtTable checks the flag of an L1 entry.
func (t *tableCheck) lookAtTable(index, table int64) error {
	t.stats.Tables++
	t.l2 = table
	at := t.im.header.L1Offset + index*8
	entries, err := t.im.entries(at)
	if err != nil {
		return err
	}
	return t.checkCopied("L1 entry", at, entries.at(0), table)
}

// lookAtEntry counts an L2 entry by its kind, and checks what decodeEntry leaves to others.
func (t *tableCheck) lookAtEntry(m mapping, guest int64) error {
	h := t.im.header
	switch m.kind {
	case Zero:
		t.stats.ZeroClusters++
	case Data:
		t.stats.DataClusters++
	case Unallocated:
		return nil
	}
	if m.host == 0 {
		return nil
	}
	at := t.l2 + guest%h.l2Span()/h.ClusterSize()*8
	if !m.compressed {
		return t.checkCopied("L2 entry", at, m.entry, m.host)
	}
	t.stats.CompressedClusters++
	if off, n := compressedSpan(m.entry, h.ClusterBits); off+n-t.im.fileLength >= h.ClusterSize() {
		f := Finding{Kind: Corruption, Structure: "L2 entry", Host: Range{at, 8}, Guest: t.im.guestRange(guest, h.ClusterSize())}
		f.Message = fmt.Sprintf("%#x: data at offset %d: not inside the file", m.entry, off)
		return t.report(f)
	}
	return nil
}

// checkCopied checks that an entry at an offset of the file says of a cluster that its refcount is one if it is.
func (t *tableCheck) checkCopied(structure string, at int64, entry uint64, host int64) error {
	stored, err := t.counts.stored(host >> t.im.header.ClusterBits)
	if err != nil || (stored == 1) == (entry&entryCopied != 0) {
		return err
	}
	f := Finding{Kind: Corruption, Structure: structure, Host: Range{at, 8}}
	f.Message = fmt.Sprintf("COPIED is %t, but the refcount is %d", entry&entryCopied != 0, stored)
	return t.report(f)
}

// lookAtFree is told of each cluster without reference and refcount.
func (t *tableCheck) lookAtFree(cluster int64) {
	if cluster < t.limit {
		t.free = true
	}
}

// checkCountable says why the references in a file are more than those that its tables hold.
func (im *Image) checkCountable() error {
	switch h := im.header; {
	case h.Snapshots > 0:
		return &UnsupportedError{"refcounts beside internal snapshots"}
	case h.Autoclear != 0 || h.bitmaps:
		return &UnsupportedError{"refcounts beside bitmaps or other data of later versions"}
	}
	return nil
}
