package qcow2

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
)

// space finds host clusters that the committed state of a file leaves alone: first what is free inside it, then what
// lies behind. The former have refcount 0, and nothing in them belongs to identity, digest directory or digest blocks.
type space struct {
	im    *Image
	table []uint64      // the committed refcount table
	inUse []clusterSpan // the areas without refcounts, in ascending order
	hole  int64         // the first cluster that was not looked at
	old   int64         // the clusters of the committed file
	end   int64         // the first cluster behind the new one
	block []byte        // the committed refcount block that was read last
	index int64         // its index; -1: none
}

// clusterSpan is a run of host clusters.
type clusterSpan struct{ first, last int64 }

func newSpace(im *Image, length int64) (*space, error) {
	h := im.header
	s := &space{im: im, hole: 1, index: -1, block: make([]byte, h.ClusterSize())}
	s.old = (length + h.ClusterSize() - 1) >> h.ClusterBits
	s.end = s.old
	b := make([]byte, int64(h.RefTableClusters)*h.ClusterSize()) // bounded by ReadHeader
	if err := im.readHost(b, h.RefTableOffset); err != nil {
		return nil, fmt.Errorf("read refcount table: %w", err)
	}
	for at := 0; at < len(b); at += 8 {
		e := binary.BigEndian.Uint64(b[at:])
		if e > maxHostOffset || e != 0 && im.checkCluster(int64(e)) != nil {
			return nil, corrupt("refcount table", h.RefTableOffset+int64(at), "block at offset %d: not a cluster of the file", e)
		}
		s.table = append(s.table, e)
	}
	return s, s.findAreas(length)
}

// findAreas lists what the record leads to.
func (s *space) findAreas(length int64) error {
	r := s.im.header.Record
	if r == nil {
		return nil
	}
	add := func(off, n int64) error {
		if off < 0 || n < 0 || off > length || n > length-off {
			return corrupt("record", off, "%d bytes: not inside the file of %d bytes", n, length)
		}
		span := clusterSpan{off >> s.im.header.ClusterBits, (off + max(n, 1) - 1) >> s.im.header.ClusterBits}
		if i := len(s.inUse); i > 0 && s.inUse[i-1].first <= span.first && span.first <= s.inUse[i-1].last+1 {
			s.inUse[i-1].last = max(s.inUse[i-1].last, span.last)
		} else {
			s.inUse = append(s.inUse, span)
		}
		return nil
	}
	if err := add(r.IdentityOffset, r.IdentityLength); err != nil {
		return err
	}
	if err := add(r.DirectoryOffset, r.DirectoryLength); err != nil {
		return err
	}
	d, err := s.im.openDirectory()
	if err != nil {
		return err
	}
	for d.next != nil {
		if err := add(d.next.offset, d.next.blockLength()); err != nil {
			return err
		}
		if err := d.advance(); err != nil {
			return err
		}
	}
	slices.SortFunc(s.inUse, func(a, b clusterSpan) int { return int(a.first - b.first) })
	return nil
}

// readBlock reads a refcount block of the committed state; zeroes where there is none.
func (s *space) readBlock(b []byte, i int64) error {
	if i >= int64(len(s.table)) || s.table[i] == 0 {
		clear(b)
		return nil
	}
	return s.im.readHost(b, int64(s.table[i]))
}

// take gives a cluster.
func (s *space) take() (int64, error) {
	c, err := s.next()
	if c < s.old {
		s.hole = c + 1
	} else {
		s.end = c + 1
	}
	return c, err
}

// next is the cluster that take would give.
func (s *space) next() (int64, error) {
	entries := int64(len(s.block)) / 2
	for ; s.hole < s.old; s.hole++ {
		if i := s.hole / entries; i != s.index {
			if err := s.readBlock(s.block, i); err != nil {
				return 0, fmt.Errorf("read refcount block: %w", err)
			}
			s.index = i
		}
		for len(s.inUse) > 0 && s.inUse[0].last < s.hole {
			s.inUse = s.inUse[1:]
		}
		if len(s.inUse) > 0 && s.inUse[0].first <= s.hole {
			s.hole = s.inUse[0].last
			continue
		}
		if binary.BigEndian.Uint16(s.block[s.hole%entries*2:]) == 0 {
			return s.hole, nil
		}
	}
	return s.end, nil
}

// extend gives the first of n contiguous clusters behind everything.
func (s *space) extend(n int64) int64 {
	first := s.end
	s.end += n
	return first
}

// isNew says whether a cluster lies behind the committed file, where what is not written reads as zeroes.
func (s *space) isNew(cluster int64) bool { return cluster >= s.old }

// directoryReader reads a digest directory from its beginning to its end.
type directoryReader struct {
	in   *bufio.Reader
	left int64
	next *directoryEntry // nil behind the last one
}

// openDirectory compares the digest directory of the file with its hash and reads it. It is empty where there is none.
func (im *Image) openDirectory() (*directoryReader, error) {
	if im.proof == nil {
		return &directoryReader{}, nil
	}
	if _, err := im.proof.find(0); err != nil { // which proves it
		return nil, err
	}
	r := im.proof.record
	in, err := im.area("digest directory", r.DirectoryOffset, r.DirectoryLength)
	if err != nil {
		return nil, err
	}
	d := &directoryReader{in: bufio.NewReader(in), left: r.DirectoryLength / directoryEntrySize}
	return d, d.advance()
}

func (d *directoryReader) advance() error {
	if d.left == 0 {
		d.next = nil
		return nil
	}
	b := make([]byte, directoryEntrySize)
	if _, err := io.ReadFull(d.in, b); err != nil {
		return fmt.Errorf("read digest directory: %w", err)
	}
	d.left--
	e := decodeDirectoryEntry(b)
	d.next = &e
	return nil
}
