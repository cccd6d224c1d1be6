package qcow2

import "encoding/binary"

// perBlock is how many clusters a refcount block counts.
func (c *refcountCheck) perBlock() int64 {
	return c.im.header.ClusterSize() * 8 >> c.im.header.RefcountOrder
}

// refcounts reads the refcounts that the file has from a cluster on, at least one, to the end of a slice of their block.
func (c *refcountCheck) refcounts(cluster int64) (refcountSlice, error) {
	order, perBlock := c.im.header.RefcountOrder, c.perBlock()
	i, inside := cluster/perBlock, cluster%perBlock
	if i >= int64(len(c.table)) || c.table[i] == 0 {
		return refcountSlice{last: perBlock - inside}, nil
	}
	at := inside << order / 64 * 8 // the table cache gives whole entries of 8 bytes
	b, err := c.im.entries(int64(c.table[i]) + at)
	if err != nil {
		return refcountSlice{}, err
	}
	return refcountSlice{b: b, order: order, first: inside - at*8>>order, last: int64(len(b)) * 8 >> order}, nil
}

// stored is the refcount that the file has of a cluster.
func (c *refcountCheck) stored(cluster int64) (uint64, error) {
	i := cluster - c.memoFirst
	if i < 0 || i >= c.memo.len() {
		s, err := c.refcounts(cluster)
		if err != nil {
			return 0, err
		}
		c.memo, c.memoFirst, i = s, cluster, 0
	}
	return c.memo.at(i), nil
}

// refcountSlice is some refcounts in a row, of 1<<order bits each (qcow2 specification, "Host cluster management").
type refcountSlice struct {
	b           []byte // nil: zeroes
	order       uint32
	first, last int64 // those meant of b
}

func (s refcountSlice) len() int64 { return s.last - s.first }

func (s refcountSlice) at(i int64) uint64 {
	if s.b == nil {
		return 0
	}
	i += s.first
	switch be := binary.BigEndian; s.order {
	case 3:
		return uint64(s.b[i])
	case 4:
		return uint64(be.Uint16(s.b[i*2:]))
	case 5:
		return uint64(be.Uint32(s.b[i*4:]))
	case 6:
		return be.Uint64(s.b[i*8:])
	}
	bits := int64(1) << s.order // the first ones lie in the low bits of a byte
	return uint64(s.b[i*bits/8]) >> (i * bits % 8) & (1<<bits - 1)
}

// bitset is a bit for each of some clusters.
type bitset []uint64

func newBitset(n int64) bitset { return make(bitset, (n+63)/64) }

func (b bitset) set(i int64)      { b[i/64] |= 1 << (i % 64) }
func (b bitset) has(i int64) bool { return b[i/64]&(1<<(i%64)) != 0 }
