package qcow2

import (
	"bytes"
	"context"
	"slices"
)

// rewriteStep is how much is written at a time, in bytes; a cluster where that is more.
const rewriteStep = 4 << 20

// table writes what a table holds, piece by piece.
func (r *rewrite) table(ctx context.Context, t rewrittenTable) error {
	size := r.im.header.ClusterSize()
	step := int(max(1, rewriteStep/size))
	for first := 0; first < t.clusters; first += step {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(step, t.clusters-first)
		c := &r.chunk
		c.Offset, c.clusterSize, c.codec, c.key = t.guest+int64(first)*size, size, r.o.Codec, r.im.key
		c.Data = slices.Grow(c.Data[:0], n*int(size))[:n*int(size)]
		c.packed = slices.Grow(c.packed[:0], n*int(size))
		c.clusters = c.clusters[:0]
		used := false
		for i := first; i < first+n; i++ {
			cluster, err := r.cluster(ctx, &t, i, c.Data[int64(i-first)*size:][:size])
			if err != nil {
				return err
			}
			used = used || cluster.kind != Unallocated
			c.clusters = append(c.clusters, cluster)
		}
		if !used {
			continue
		}
		if err := r.w.Append(c); err != nil {
			return err
		}
	}
	return nil
}

// cluster gives a cluster of the new file, and fills p with it.
func (r *rewrite) cluster(ctx context.Context, t *rewrittenTable, i int, p []byte) (encodedCluster, error) {
	guest, packed := t.guest+int64(i)*r.im.header.ClusterSize(), len(r.chunk.packed)
	old, good, err := r.old(t, i, p)
	if err != nil {
		return old, err
	}
	part := r.im.guestRange(guest, r.im.header.ClusterSize())
	if covered := r.covers(part); good && !covered {
		return old, nil
	}
	var want *Digest
	if old.kind == Data {
		want = &old.digest
	}
	kind, ok, err := r.o.Fill(ctx, r.fill, guest, want)
	r.im.clearBehindEnd(r.fill, guest)
	if want != nil && !r.o.Trusted {
		ok = ok && r.im.key.digest(r.fill) == *want
	}
	switch {
	case err != nil:
		return old, err
	case ok && good && r.same(old, p, kind):
		return old, nil
	case ok:
		r.result.Filled = appendRange(r.result.Filled, part)
		r.chunk.packed = r.chunk.packed[:packed] // what the file had goes
		return r.encode(kind, p)
	case t.lost:
		return old, corrupt("L2 table", t.guest, "nobody knows which clusters it held")
	case !good:
		r.result.Left = appendRange(r.result.Left, part)
	}
	return old, nil
}

// same says whether what the file has of a cluster, which is p where it is Data, reads as what Fill gave as that kind.
func (r *rewrite) same(old encodedCluster, p []byte, kind Kind) bool {
	switch old.kind {
	case Data:
		return bytes.Equal(p, r.fill)
	case Zero:
		return r.encoder.isZero(r.fill)
	}
	return kind == Unallocated
}

// encode makes a cluster of what Fill gave.
func (r *rewrite) encode(kind Kind, p []byte) (encodedCluster, error) {
	copy(p, r.fill)
	if kind != Data {
		return encodedCluster{kind: kind}, nil
	}
	return r.encoder.encodeCluster(&r.chunk, p)
}

// old gives a cluster as the old file has it, and whether that is proved. Of Data that are not, p is what there is.
func (r *rewrite) old(t *rewrittenTable, i int, p []byte) (c encodedCluster, good bool, err error) {
	clear(p)
	if t.kinds == nil {
		return c, !t.lost, nil
	}
	if c.kind = Kind(t.kinds[i]); c.kind != Data {
		return c, true, nil
	}
	c.digest, t.digests = t.digests[0], t.digests[1:]
	packed, err := r.read(p, t, i)
	if err != nil && !unreadable(err) {
		return c, false, err
	}
	good = err == nil && r.im.key.digest(p) == c.digest
	c.packed = r.keep(packed)
	return c, good, nil
}

// keep puts compressed data into the chunk.
func (r *rewrite) keep(packed []byte) []byte {
	c := &r.chunk
	if len(packed) == 0 || len(packed) >= int(c.clusterSize) {
		return nil // it is stored as it is
	}
	start := len(c.packed)
	c.packed = append(c.packed, packed...)
	return c.packed[start:len(c.packed):len(c.packed)]
}

// read reads a Data cluster of the old file, with zeroes behind the end of the disk. Where it is compressed it gives the
// compressed data too, until the next call; of such that can't be decompressed as much as the entry says.
func (r *rewrite) read(p []byte, t *rewrittenTable, i int) (packed []byte, err error) {
	guest := t.guest + int64(i)*r.im.header.ClusterSize()
	entries, err := r.im.entries(t.at + int64(i)*8)
	if err != nil {
		return nil, err
	}
	m, err := r.im.decodeEntry(entries.at(0), guest)
	if err != nil {
		return nil, err
	}
	defer r.im.clearBehindEnd(p, guest)
	if !m.compressed {
		return nil, r.im.readHost(p, m.host)
	}
	n, err := r.im.inflateBy(r.decoder, p, m, guest)
	if err != nil {
		clear(p)
		n = int(m.span)
	}
	return r.decoder.src[:n], err
}

// appendRange adds a range behind others.
func appendRange(ranges []Range, r Range) []Range {
	if n := len(ranges); n > 0 && ranges[n-1].End() == r.Offset {
		ranges[n-1].Length += r.Length
		return ranges
	}
	return append(ranges, r)
}
