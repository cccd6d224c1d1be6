package qcow2

import (
	"encoding/binary"
	"slices"
)

// allocator hands out space at the end of the file and counts the references to every host cluster. As space only
// grows, a refcount block is complete once the file has grown past what it covers; it is then written and forgotten.
type allocator struct {
	clusterBits uint32
	next        int64              // index of the first host cluster that nobody has
	packAt      int64              // byte offset where the next compressed data goes; 0: nowhere yet
	blocks      map[int64][]uint16 // refcount blocks that still change, by index
	table       []uint64           // host offset of each written block, by index; 0: none yet
}

func newAllocator(clusterBits uint32) *allocator {
	a := &allocator{clusterBits: clusterBits, blocks: map[int64][]uint16{}}
	a.clusters(1) // the header
	return a
}

// blockEntries is the number of host clusters that one refcount block covers, at 16 bits each.
func (a *allocator) blockEntries() int64 { return 1 << (a.clusterBits - 1) }

func (a *allocator) ref(cluster int64) {
	i := cluster / a.blockEntries()
	block := a.blocks[i]
	if block == nil {
		block = make([]uint16, a.blockEntries())
		a.blocks[i] = block
	}
	block[cluster%a.blockEntries()]++
}

// clusters gives the offset of n new contiguous clusters, each referenced once.
func (a *allocator) clusters(n int64) int64 {
	first := a.next
	a.next += n
	for c := first; c < a.next; c++ {
		a.ref(c)
	}
	return first << a.clusterBits
}

// pack gives the offset of n bytes for compressed data, n less than a cluster: in the cluster that was packed last
// if they fit there, across into a new one only where that is its neighbour.
func (a *allocator) pack(n int64) int64 {
	size := int64(1) << a.clusterBits
	used := a.packAt & (size - 1)
	home := a.packAt >> a.clusterBits
	if used == 0 || used+n > size && home+1 != a.next {
		a.packAt = a.next << a.clusterBits
	}
	off := a.packAt
	a.packAt += n
	last := (a.packAt - 1) >> a.clusterBits
	for c := off >> a.clusterBits; c <= last; c++ {
		a.ref(c)
	}
	a.next = max(a.next, last+1)
	return off
}

// packing says whether compressed data could go on across the end of the cluster that was packed last: it is the last
// one of the file and not full.
func (a *allocator) packing() bool {
	return a.packAt&(1<<a.clusterBits-1) != 0 && a.packAt>>a.clusterBits+1 == a.next
}

// complete gives the indexes of the blocks that cannot change any more, in ascending order. Half-filled clusters
// of compressed data in a block that the file has outgrown are given up: less than a cluster per block.
func (a *allocator) complete() []int64 {
	current := a.next / a.blockEntries()
	if len(a.blocks) == 1 && a.blocks[current] != nil {
		return nil
	}
	if a.packAt>>a.clusterBits/a.blockEntries() < current {
		a.packAt = 0
	}
	var done []int64
	for i := range a.blocks {
		if i < current {
			done = append(done, i)
		}
	}
	slices.Sort(done)
	return done
}

// take removes block i and gives it as it stands in a file that has it at offset.
func (a *allocator) take(i, offset int64) []byte {
	b := make([]byte, 0, 1<<a.clusterBits)
	for _, n := range a.blocks[i] {
		b = binary.BigEndian.AppendUint16(b, n)
	}
	delete(a.blocks, i)
	a.setTable(i, offset)
	return b
}

func (a *allocator) setTable(i, offset int64) {
	for int64(len(a.table)) <= i {
		a.table = append(a.table, 0)
	}
	a.table[i] = uint64(offset)
}

// reserveTable allocates the refcount table and every block that is not yet written, both counted by themselves.
// It gives the table's offset and its length in clusters; blocks follow directly behind it, in order of their index.
func (a *allocator) reserveTable() (offset, tableClusters int64, blocks []int64) {
	size := int64(1) << a.clusterBits
	written := int64(0)
	for _, off := range a.table {
		if off != 0 {
			written++
		}
	}
	var covered int64 // number of blocks, grown until they cover themselves
	for {
		total := a.next + tableClusters + max(covered-written, 0)
		need := (total + a.blockEntries() - 1) / a.blockEntries()
		if need == covered {
			break
		}
		covered = need
		tableClusters = (covered*8 + size - 1) / size
	}
	offset = a.clusters(tableClusters)
	for i := int64(0); i < covered; i++ {
		if i >= int64(len(a.table)) || a.table[i] == 0 {
			blocks = append(blocks, i)
		}
	}
	a.clusters(int64(len(blocks)))
	return offset, tableClusters, blocks
}
