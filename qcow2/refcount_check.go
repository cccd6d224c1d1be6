package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
)

// refcountWindow is how many host clusters' references are counted at a time.
const refcountWindow = 16 << 20

// checkRefcounts counts the references to each host cluster of the file anew, from all of its tables, and compares them
// with the refcounts. A cluster that has less of those than references is a *CorruptError: it would be taken for free
// before its time. One that has more is but lost, and no error, unless it lies behind the end of the file. It counts
// window clusters at a time.
func (im *Image) checkRefcounts(ctx context.Context, s *space, window int64) error {
	c := refcountCheck{im: im, space: s}
	for ; c.first < s.old; c.first += window {
		c.counts = make([]uint16, min(window, s.old-c.first))
		if err := c.countAll(ctx); err != nil {
			return err
		}
		if err := c.compare(ctx); err != nil {
			return err
		}
	}
	return c.compareBehindEnd(ctx)
}

// refcountCheck counts the references to a window of host clusters.
type refcountCheck struct {
	im     *Image
	space  *space
	first  int64    // cluster of the window
	counts []uint16 // by cluster from there on
}

// count counts a reference to n bytes at off.
func (c *refcountCheck) count(off, n int64) error {
	bits := c.im.header.ClusterBits
	for i := off >> bits; n > 0 && i <= (off+n-1)>>bits; i++ {
		if i < c.first || i >= c.first+int64(len(c.counts)) {
			continue
		}
		if c.counts[i-c.first] == math.MaxUint16 {
			return corrupt("refcount", i<<bits, "more references than can be counted")
		}
		c.counts[i-c.first]++
	}
	return nil
}

func (c *refcountCheck) countAll(ctx context.Context) error {
	h := c.im.header
	spans := []struct{ off, n int64 }{
		{0, h.ClusterSize()},
		{h.L1Offset, int64(h.L1Size) * 8},
		{h.RefTableOffset, int64(h.RefTableClusters) * h.ClusterSize()},
	}
	for _, span := range spans {
		if err := c.count(span.off, span.n); err != nil {
			return err
		}
	}
	for _, block := range c.space.table {
		if block != 0 {
			if err := c.count(int64(block), h.ClusterSize()); err != nil {
				return err
			}
		}
	}
	tables := c.im.walkTables()
	for {
		index, table, err := tables.next(ctx)
		if err != nil || index == int64(h.L1Size) {
			return err
		}
		if err := c.count(table, h.ClusterSize()); err != nil {
			return err
		}
		if err := c.im.walkEntries(table, index*h.l2Span(), c.countEntry); err != nil {
			return err
		}
	}
}

func (c *refcountCheck) countEntry(m mapping) error {
	switch {
	case m.compressed:
		return c.count(m.host, m.span)
	case m.host != 0:
		return c.count(m.host, c.im.header.ClusterSize())
	}
	return nil
}

// compare compares the window with the refcounts of the file.
func (c *refcountCheck) compare(ctx context.Context) error {
	block := make([]byte, c.im.header.ClusterSize())
	perBlock := int64(len(block)) / 2
	for at := int64(0); at < int64(len(c.counts)); {
		i := (c.first + at) / perBlock
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := c.space.readBlock(block, i); err != nil {
			return fmt.Errorf("read refcount block: %w", err)
		}
		for ; at < int64(len(c.counts)) && (c.first+at)/perBlock == i; at++ {
			cluster := c.first + at
			if stored := binary.BigEndian.Uint16(block[cluster%perBlock*2:]); stored < c.counts[at] {
				return corrupt("refcount", cluster<<c.im.header.ClusterBits, "%d, but %d references", stored, c.counts[at])
			}
		}
	}
	return nil
}

// compareBehindEnd refuses refcounts of what lies behind the end of the file.
func (c *refcountCheck) compareBehindEnd(ctx context.Context) error {
	block := make([]byte, c.im.header.ClusterSize())
	perBlock := int64(len(block)) / 2
	for i := c.space.old / perBlock; i < int64(len(c.space.table)); i++ {
		if c.space.table[i] == 0 {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := c.space.readBlock(block, i); err != nil {
			return fmt.Errorf("read refcount block: %w", err)
		}
		for cluster := max(c.space.old, i*perBlock); cluster < (i+1)*perBlock; cluster++ {
			if n := binary.BigEndian.Uint16(block[cluster%perBlock*2:]); n > 0 {
				return corrupt("refcount", cluster<<c.im.header.ClusterBits, "%d: behind the end of the file", n)
			}
		}
	}
	return nil
}
