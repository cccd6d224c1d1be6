package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"sort"
	"sync"
)

// proof proves what is read of a file by its digests, while it is read: which clusters an L2 table holds when the
// table is first looked at, the content of each of them when it is read.
type proof struct {
	im     *Image
	record *Record

	once sync.Once
	err  error // of the directory
}

// newProof gives nil for a file without digests.
func newProof(im *Image) (*proof, error) {
	r, err := im.record()
	switch {
	case errors.Is(err, ErrNoRecord), err == nil && r.Digests == NoDigest:
		return nil, nil
	case err != nil:
		return nil, err
	}
	if err := im.checkDigests(r); err != nil {
		return nil, err
	}
	if r.FileLength > im.fileLength {
		return nil, corrupt("file", im.fileLength, "ends here instead of at %d", r.FileLength)
	}
	return &proof{im: im, record: r}, nil
}

// table proves what an L1 entry says: the L2 table, or that there are none for so many entries.
func (p *proof) table(index, table, holes int64) error {
	if table != 0 {
		_, err := p.block(index)
		return err
	}
	d, err := p.find(index)
	if err != nil || d == nil || int64(d.l1Index) >= index+holes {
		return err
	}
	return corrupt("L2 table", int64(d.l1Index)*p.im.header.l2Span(), "it has digests but is not there")
}

// clusters proves whole clusters from a guest offset on. What they have behind the end of the disk is zero.
func (p *proof) clusters(b []byte, guest int64) error {
	h := p.im.header
	for ; len(b) > 0; guest += h.ClusterSize() {
		block, err := p.block(guest / h.l2Span())
		if err != nil {
			return err
		}
		want, ok := block.digest(guest % h.l2Span() / h.ClusterSize())
		if !ok || p.im.key.digest(b[:h.ClusterSize()]) != want {
			return corrupt("cluster", guest, "%d bytes: other content than was stored", h.ClusterSize())
		}
		b = b[h.ClusterSize():]
	}
	return nil
}

// digestBlock is the digest block of an L2 table, proved, with a way to find a cluster's digest in it.
type digestBlock struct {
	digests []byte
	data    []uint64 // one bit per entry of the table: is it Data?
	before  []uint32 // per word of data: how many are Data in the words before
}

// digest is that of the cluster at the index of the table, if it is Data.
func (b *digestBlock) digest(index int64) (d Digest, ok bool) {
	word, bit := b.data[index/64], uint64(1)<<(index%64)
	if word&bit == 0 {
		return d, false
	}
	n := int(b.before[index/64]) + bits.OnesCount64(word&(bit-1))
	return Digest(b.digests[n*DigestSize:][:DigestSize]), true
}

// block gives the digest block of an L2 table that is there.
func (p *proof) block(index int64) (*digestBlock, error) {
	d, err := p.find(index)
	if err != nil {
		return nil, err
	}
	if d == nil || int64(d.l1Index) != index {
		return nil, corrupt("L2 table", index*p.im.header.l2Span(), "it has no digests")
	}
	cost := d.blockLength() + p.im.header.l2Entries()*3/16 + 64
	return p.im.shared.digests.get(blockKey{p.im, index}, cost, func() (*digestBlock, error) { return p.load(index, d) })
}

func (p *proof) load(index int64, d *directoryEntry) (*digestBlock, error) {
	table, _, err := p.im.l2Table(index)
	if err != nil {
		return nil, err
	}
	digests, kinds, err := p.im.verifyBlock(d, table, nil)
	if err != nil {
		return nil, err
	}
	return newDigestBlock(digests, kinds), nil
}

func newDigestBlock(digests, kinds []byte) *digestBlock {
	b := &digestBlock{digests: digests, data: make([]uint64, (len(kinds)+63)/64), before: make([]uint32, (len(kinds)+63)/64)}
	n := uint32(0)
	for i, kind := range kinds {
		if i%64 == 0 {
			b.before[i/64] = n
		}
		if Kind(kind) == Data {
			b.data[i/64] |= 1 << (i % 64)
			n++
		}
	}
	return b
}

// find gives the first entry of the directory at or behind an L1 index, nil behind the last one.
func (p *proof) find(index int64) (*directoryEntry, error) {
	p.once.Do(func() { p.err = p.im.verifyDirectory(context.Background(), p.record) })
	if p.err != nil {
		return nil, p.err
	}
	n := int(p.record.DirectoryLength / directoryEntrySize)
	var failed error
	i := sort.Search(n, func(i int) bool {
		b, err := p.entry(i)
		if err != nil {
			failed = err
			return true
		}
		return int64(binary.BigEndian.Uint32(b)) >= index
	})
	if failed != nil || i == n {
		return nil, failed
	}
	b, err := p.entry(i)
	if err != nil {
		return nil, err
	}
	d := decodeDirectoryEntry(b)
	return &d, nil
}

// entry reads an entry of the directory, by way of the cache.
func (p *proof) entry(i int) ([]byte, error) {
	const page = 4096
	at := int64(i) * directoryEntrySize
	start := at / page * page
	b, err := p.im.shared.directory.get(tableKey{p.im, start}, page, func() ([]byte, error) {
		b := make([]byte, min(page, p.record.DirectoryLength-start))
		if err := p.im.readHost(b, p.record.DirectoryOffset+start); err != nil {
			return nil, fmt.Errorf("read digest directory: %w", err)
		}
		return b, nil
	})
	if err != nil {
		return nil, err
	}
	return b[at-start:][:directoryEntrySize], nil
}
