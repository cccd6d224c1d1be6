package qcow2

import (
	"context"
	"math"
)

// FoldCost estimates how many bytes FoldIntoChild and FoldIntoBacking would write, from tables alone; math.MaxInt64 where
// that way is impossible. Of the dearer way it need not be all: the tables of a large base are not read to their end
// where the other way turns out to cost less. Errors are those of Extent, and ctx's.
func (im *Image) FoldCost(ctx context.Context) (intoChild, intoBacking int64, err error) {
	backing := im.backing
	if backing == nil {
		return math.MaxInt64, math.MaxInt64, nil
	}
	child := foldCost{target: im, other: backing, size: im.Size(), hidden: im}
	base := foldCost{target: backing, other: im, size: im.Size()}
	first, second := &base, &child // the smaller file is read first
	if backing.fileLength < im.fileLength {
		first, second = second, first
	}
	if err := first.estimate(ctx, math.MaxInt64); err != nil {
		return 0, 0, err
	}
	if err := second.estimate(ctx, first.bytes); err != nil {
		return 0, 0, err
	}
	return child.bytes, base.bytes, nil
}

// foldCost estimates what a fold would write.
type foldCost struct {
	target, other *Image
	hidden        *Image // what this one holds by itself need not be written; nil: all must be
	size          int64  // of the disk
	bytes         int64
	table         int64 // the target's table that was counted last
	cluster       int64 // and the cluster that was
}

// estimate counts until it comes to more than enough.
func (c *foldCost) estimate(ctx context.Context, enough int64) error {
	if c.target.checkFoldable(c.size) != nil {
		c.bytes = math.MaxInt64
		return nil
	}
	h := c.target.header
	c.bytes = int64(h.L1Size)*8 + 2*h.ClusterSize() // and at least one refcount block
	if r := h.Record; r != nil {
		c.bytes += r.DirectoryLength + r.IdentityLength
	}
	c.table, c.cluster = -1, -1
	for off, end := int64(0), min(c.size, c.other.Size()); c.bytes <= enough; {
		var err error
		if off, err = c.other.nextHeld(ctx, off, end); err != nil || off >= end {
			return err
		}
		length, err := c.add(off, end-off)
		if err != nil {
			return err
		}
		off += length
	}
	return nil
}

// add counts what the other file holds from off on, in one piece of at most limit bytes, and gives its length.
func (c *foldCost) add(off, limit int64) (int64, error) {
	if c.hidden != nil {
		e, err := c.hidden.FileExtent(off)
		if err != nil || e.Kind != Unallocated {
			return e.Length, err
		}
		limit = min(limit, e.Length)
	}
	run, err := c.other.lookup(off, limit, contiguous)
	if err != nil {
		return 0, err
	}
	h := c.target.header
	for g := off; g < off+run.length; g = (g/h.l2Span() + 1) * h.l2Span() {
		if err := c.addTable(g / h.l2Span()); err != nil {
			return 0, err
		}
	}
	first, last := off>>h.ClusterBits, (off+run.length-1)>>h.ClusterBits
	clusters := last - max(first, c.cluster+1) + 1
	c.cluster = last
	switch {
	case run.kind == Zero && c.other.header.ClusterBits >= h.ClusterBits:
	case run.compressed && c.other.header.ClusterBits == h.ClusterBits:
		c.bytes += run.span
	default:
		c.bytes += max(0, clusters) * h.ClusterSize()
	}
	return run.length, nil
}

// addTable counts an L2 table of the target, and its digests.
func (c *foldCost) addTable(index int64) error {
	if index == c.table {
		return nil
	}
	c.table = index
	c.bytes += c.target.header.ClusterSize()
	if c.target.proof == nil {
		return nil
	}
	d, err := c.target.proof.find(index)
	if err == nil && d != nil && int64(d.l1Index) == index {
		c.bytes += d.blockLength()
	}
	return err
}
