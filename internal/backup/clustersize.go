package backup

import (
	"cmp"
	"context"

	"github.com/rbd2qcow2/rbd2qcow2/internal/extent"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// The cluster sizes that an increment is given by itself, in bytes. Smaller ones than a page of the file system save
// nothing; the largest is a compromise between the size of increments and that of the tables of full points.
const (
	smallestCluster = 4 << 10
	largestCluster  = 64 << 10
)

// sizing chooses the cluster size of a file: of a full point a fixed one, of an increment such that its file becomes
// cheapest, but never larger than its chain's full point has, or folding a small change into that one would rewrite
// large clusters.
type sizing struct {
	size     int64 // of the disk, bytes
	fixed    int64 // bytes, where there is nothing to choose; 0 elsewhere
	largest  int64 // the cluster size of the chain's full point, bytes
	codec    qcow2.Codec
	parallel int // reads in flight
}

// sizing is for a point on b, or without one for a full point, of a disk of size bytes.
func (j *job) sizing(size int64, b *base) *sizing {
	s := &sizing{size: size, fixed: j.ClusterSize, largest: qcow2.MaxClusterSize, codec: j.Compression.Codec, parallel: j.Parallel}
	if b == nil {
		s.fixed = cmp.Or(j.ClusterSize, largestCluster)
	} else {
		full := b.chain.Image
		for full.Backing() != nil {
			full = full.Backing()
		}
		s.largest = full.Header().ClusterSize()
	}
	return s
}

// unit is what changes have to be collected in, so that every size can still be chosen.
func (s *sizing) unit() int64 {
	return qcow2.MinimumClusterSize(s.size, min(cmp.Or(s.fixed, smallestCluster), s.largest))
}

// choose gives the cluster size in bytes for extents, as they were reported or in units that divide every choice.
// It reads a few samples from src where more may be reported than there is.
func (s *sizing) choose(ctx context.Context, src source, extents []extent.Extent) (int64, error) {
	smallest := s.unit()
	if s.fixed != 0 || smallest >= min(s.largest, largestCluster) {
		return smallest, nil
	}
	likely, err := s.thinOut(ctx, src, extents)
	if err != nil {
		return 0, err
	}
	return s.cheapest(smallest, likely), nil
}

func (s *sizing) cheapest(smallest int64, extents []extent.Extent) (best int64) {
	var lowest int64
	for n := smallest; n <= min(s.largest, largestCluster); n *= 2 {
		if cost := s.predict(n, extents).total(); best == 0 || cost < lowest {
			best, lowest = n, cost
		}
	}
	return best
}

// fileCost is what a file takes, in bytes.
type fileCost struct {
	allocated int64 // on disk
	apparent  int64 // its length
}

// total is what we want to be small. A quarter of the holes counts: a copy without support for them pays for all of them.
func (c fileCost) total() int64 { return c.allocated + (c.apparent-c.allocated)/4 }

const filePage = 4 << 10 // what a file system allocates

// predict says how large the file with these extents becomes. Small clusters store little besides what has changed, but
// compress worse, and need more tables: an L2 table, one cluster, maps cluster²/8 bytes of the disk, and the L1 table has
// 8 bytes for each of those, whether it is there or not. Only the pages of a table that have entries are allocated.
// Compressed data is packed, but not across tables that lie in between, which leaves some room unused.
func (s *sizing) predict(clusterSize int64, extents []extent.Extent) fileCost {
	f := newFileLayout(clusterSize, s.codec)
	for e := range extent.Widen(extents, s.size, clusterSize) {
		for off := e.Offset; off < e.End(); {
			n := min(e.End(), (off/f.span+1)*f.span) - off
			f.add(off, n, e.Data)
			off += n
		}
	}
	f.endTable()
	return f.cost(s.size)
}

// fileLayout lays out a file as qcow2.Writer does, with data that compresses as expected.
type fileLayout struct {
	cluster int64 // bytes
	blob    int64 // bytes that a data cluster takes
	span    int64 // guest bytes that an L2 table maps

	table, page, l1Page int64 // the current ones, by number; -1: none
	inTable             int64 // data clusters of the current table

	tables, pages, l1Pages, clusters int64 // so far: L2 tables, pages of them with entries, data clusters
	data                             int64 // bytes of host clusters for data
	room                             int64 // bytes left in the last of them
	queued                           int64 // tables that will be written behind it
	behind                           bool  // nothing else lies behind it yet: compressed data can go on across its end
	holes                            int64 // bytes of whole pages that were left in others
}

func newFileLayout(clusterSize int64, codec qcow2.Codec) *fileLayout {
	blob := int64(float64(clusterSize) * expectedRatio(clusterSize, codec))
	return &fileLayout{cluster: clusterSize, blob: blob, span: clusterSize * clusterSize / 8, table: -1, page: -1, l1Page: -1}
}

// expectedRatio is the size of a compressed cluster to that of its content, both as zstd:1 and zlib had it on the mean of
// the larger files of a Debian system below /usr/lib, /usr/bin, /usr/share and /var/lib.
func expectedRatio(clusterSize int64, codec qcow2.Codec) float64 {
	if codec == nil {
		return 1
	}
	ratios := [...]float64{0.436, 0.411, 0.392, 0.387, 0.378} // 4, 8, 16, 32, 64 KiB
	if codec.Type() == qcow2.Zlib {
		ratios = [...]float64{0.427, 0.407, 0.397, 0.393, 0.391}
	}
	i := 0
	for n := int64(smallestCluster); n < clusterSize && i < len(ratios)-1; n *= 2 {
		i++
	}
	return ratios[i]
}

// add maps n bytes from off that lie in one table.
func (f *fileLayout) add(off, n int64, data bool) {
	if table := off / f.span; table != f.table {
		f.endTable()
		f.table = table
	}
	const entries = filePage / 8
	first, last := off/f.cluster/entries, (off+n-1)/f.cluster/entries
	f.pages += last - max(first, f.page+1) + 1
	f.page = last
	if data {
		f.inTable += (n + f.cluster - 1) / f.cluster
	}
}

// endTable places the data of the current table, and with others, some time later, the table behind it.
func (f *fileLayout) endTable() {
	if f.table < 0 {
		return
	}
	f.clusters += f.inTable
	f.place(f.inTable)
	f.inTable = 0
	f.tables++
	if page := f.table * 8 / filePage; page != f.l1Page {
		f.l1Page = page
		f.l1Pages++
	}
	const queue = 1 << 20 // bytes of tables that qcow2.Writer writes together
	if f.queued++; f.queued*f.cluster >= queue {
		f.queued, f.behind = 0, false
	}
}

// place packs n clusters of data.
func (f *fileLayout) place(n int64) {
	if !f.behind {
		fit := min(n, f.room/f.blob)
		f.room -= fit * f.blob
		if n -= fit; n == 0 {
			return
		}
		f.holes += f.room / filePage * filePage
		f.room, f.behind = 0, true
	}
	more := max(0, roundUp(n*f.blob-f.room, f.cluster))
	f.data += more
	f.room += more - n*f.blob
}

// cost adds what a file has besides data and L2 tables: header, L1 table, refcounts, and behind them identity and digests.
func (f *fileLayout) cost(size int64) fileCost {
	l1 := roundUp((size+f.span-1)/f.span*8, f.cluster)
	hosts := 1 + (f.data+l1)/f.cluster + f.tables
	blocks := 1 + hosts*2/f.cluster
	refTable := roundUp(blocks*8, f.cluster)
	hosts += blocks + refTable/f.cluster
	const identity = 2 << 10
	trailer := identity + 48*f.tables + qcow2.DigestSize*f.clusters
	return fileCost{
		apparent: hosts*f.cluster + trailer,
		allocated: filePage + f.data - f.holes - f.room/filePage*filePage + (f.pages+f.l1Pages)*filePage +
			roundUp(hosts*2, filePage) + roundUp(blocks*8, filePage) + roundUp(trailer, filePage),
	}
}
