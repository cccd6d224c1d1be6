package qcow2

import (
	"context"
	"fmt"
	"math"
)

// refcountWindow is how many host clusters' references are counted at a time.
const refcountWindow = 16 << 20

// checkRefcounts counts the references to each host cluster of the file anew, from all of its tables, and compares them
// with the refcounts. A cluster that has less of those than references is a *CorruptError: it would be taken for free
// before its time. So is one that holds a table and has other references too. One that has more refcounts is but lost, and
// no error, unless it lies behind the end of the file. It counts window clusters at a time.
func (im *Image) checkRefcounts(ctx context.Context, s *space, window int64) error {
	c := refcountCheck{im: im, table: s.table, end: s.old}
	c.report = func(f Finding) error {
		if f.Kind == Leak && f.Host.Offset < s.old<<im.header.ClusterBits {
			return nil
		}
		return f.err()
	}
	return c.run(ctx, window)
}

// refcountCheck counts the references to the host clusters of a file, window by window, and compares them with the refcounts.
type refcountCheck struct {
	im     *Image
	table  []uint64            // the refcount table: offsets of blocks; 0: none
	end    int64               // host clusters of the file
	report func(Finding) error // takes what is wrong; its error ends the check
	more   *tableCheck         // what a Check asks for beyond refcounts; nil: nothing, and a wrong entry is an error

	first     int64    // cluster of the window
	counts    []uint16 // by cluster from there on
	tables    bitset   // the same: it is part of a table
	areas     bitset   // the same: it has its place without a refcount
	memo      refcountSlice
	memoFirst int64 // cluster that memo, what stored has read last, begins with
	overflow  bool  // a cluster with too many references was reported
}

func (c *refcountCheck) run(ctx context.Context, window int64) error {
	n := min(window, c.end)
	c.counts, c.tables, c.areas = make([]uint16, n), newBitset(n), newBitset(n)
	for ; c.first < c.end; c.first += window {
		n := min(window, c.end-c.first)
		c.counts = c.counts[:n]
		clear(c.counts)
		clear(c.tables)
		clear(c.areas)
		if err := c.countAll(ctx); err != nil {
			return err
		}
		if err := c.compare(ctx); err != nil {
			return err
		}
	}
	return c.compareBehindEnd(ctx)
}

// span gives the clusters of the window, by index in it, that n bytes at off touch.
func (c *refcountCheck) span(off, n int64) (from, to int64) {
	if n <= 0 {
		return 0, 0
	}
	bits := c.im.header.ClusterBits
	return max(0, off>>bits-c.first), min(int64(len(c.counts)), (off+n-1)>>bits+1-c.first)
}

// count counts a reference to n bytes at off.
func (c *refcountCheck) count(off, n int64) error {
	from, to := c.span(off, n)
	for i := from; i < to; i++ {
		if c.counts[i] < math.MaxUint16 {
			c.counts[i]++
		} else if c.im.header.RefcountOrder <= refcountOrder && !c.overflow {
			c.overflow = true
			f := Finding{Kind: Corruption, Structure: "refcount", Host: c.hostCluster(c.first + i)}
			f.Message = "more references than can be counted"
			if err := c.report(f); err != nil {
				return err
			}
		}
	}
	return nil
}

// countTable counts a reference to n bytes at off that are a table.
func (c *refcountCheck) countTable(off, n int64) error {
	from, to := c.span(off, n)
	for i := from; i < to; i++ {
		c.tables.set(i)
	}
	return c.count(off, n)
}

func (c *refcountCheck) countAll(ctx context.Context) error {
	h := c.im.header
	spans := []struct{ off, n int64 }{
		{0, h.ClusterSize()},
		{h.L1Offset, int64(h.L1Size) * 8},
		{h.RefTableOffset, int64(h.RefTableClusters) * h.ClusterSize()},
	}
	for _, span := range spans {
		if err := c.countTable(span.off, span.n); err != nil {
			return err
		}
	}
	for _, block := range c.table {
		if block != 0 {
			if err := c.countTable(int64(block), h.ClusterSize()); err != nil {
				return err
			}
		}
	}
	var bad func(Finding) error
	if c.more != nil {
		bad = c.more.bad(c.first == 0)
		if err := c.more.markAreas(ctx, c); err != nil {
			return err
		}
	}
	tables := c.im.walkTables(bad)
	for {
		index, table, err := tables.next(ctx)
		if err != nil || index == int64(h.L1Size) {
			return err
		}
		if err := c.countL2(index, table, bad); err != nil {
			return err
		}
	}
}

// countL2 counts the references to an L2 table, and those in it.
func (c *refcountCheck) countL2(index, table int64, bad func(Finding) error) error {
	h := c.im.header
	if err := c.countTable(table, h.ClusterSize()); err != nil {
		return err
	}
	look := c.more != nil && c.first == 0
	if look {
		if err := c.more.lookAtTable(index, table); err != nil {
			return err
		}
	}
	return c.im.walkEntries(table, index*h.l2Span(), bad, func(m mapping, guest int64) error {
		if look {
			if err := c.more.lookAtEntry(m, guest); err != nil {
				return err
			}
		}
		switch {
		case m.compressed:
			return c.count(m.host, m.span)
		case m.host != 0:
			return c.count(m.host, h.ClusterSize())
		}
		return nil
	})
}

func (c *refcountCheck) hostCluster(cluster int64) Range {
	return Range{cluster << c.im.header.ClusterBits, c.im.header.ClusterSize()}
}

// compare compares the window with the refcounts of the file.
func (c *refcountCheck) compare(ctx context.Context) error {
	for at := int64(0); at < int64(len(c.counts)); {
		if err := ctx.Err(); err != nil {
			return err
		}
		stored, err := c.refcounts(c.first + at)
		if err != nil {
			return err
		}
		n := min(stored.len(), int64(len(c.counts))-at)
		for i := range n {
			if err := c.compareCluster(at+i, stored.at(i)); err != nil {
				return err
			}
		}
		at += n
	}
	return nil
}

// compareCluster compares the cluster at an index of the window with its refcount.
func (c *refcountCheck) compareCluster(at int64, stored uint64) error {
	counted := uint64(c.counts[at])
	f := Finding{Structure: "refcount", Host: c.hostCluster(c.first + at)}
	if counted == 0 && stored == 0 {
		if c.more != nil && !c.areas.has(at) {
			c.more.lookAtFree(c.first + at)
		}
		return nil
	}
	if counted > 1 && c.tables.has(at) {
		f.Kind, f.Message = Corruption, fmt.Sprintf("%d references to a cluster that holds a table", counted)
		if err := c.report(f); err != nil {
			return err
		}
	}
	if counted > 0 && c.areas.has(at) {
		f.Kind, f.Message = Corruption, "a reference to a cluster that holds identity or digests"
		if err := c.report(f); err != nil {
			return err
		}
	}
	switch {
	case stored < counted:
		f.Kind = Corruption
	case stored > counted && counted < math.MaxUint16:
		f.Kind = Leak
	default:
		return nil
	}
	f.Message = fmt.Sprintf("%d, but %d references", stored, counted)
	return c.report(f)
}

// compareBehindEnd looks for refcounts of what lies behind the end of the file.
func (c *refcountCheck) compareBehindEnd(ctx context.Context) error {
	perBlock := c.perBlock()
	for i := c.end / perBlock; i < int64(len(c.table)); i++ {
		if c.table[i] == 0 {
			continue
		}
		for cluster := max(c.end, i*perBlock); cluster < (i+1)*perBlock; {
			if err := ctx.Err(); err != nil {
				return err
			}
			stored, err := c.refcounts(cluster)
			if err != nil {
				return err
			}
			for i := range stored.len() {
				if n := stored.at(i); n > 0 {
					f := Finding{Kind: Leak, Structure: "refcount", Host: c.hostCluster(cluster + i)}
					f.Message = fmt.Sprintf("%d: behind the end of the file", n)
					if err := c.report(f); err != nil {
						return err
					}
				}
			}
			cluster += stored.len()
		}
	}
	return nil
}
