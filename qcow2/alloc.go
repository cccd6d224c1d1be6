package qcow2

import (
	"encoding/binary"
	"slices"
)

// allocator hands out space at the end of the file and counts the references to every host cluster. As space only
// grows, a refcount block is complete once the file has grown past what it covers; it is then written and forgotten.
type allocator struct {
	clusterBits uint32
	next        int64 // index of the first host cluster that nobody has
	packer      packer
	blocks      map[int64][]uint16 // refcount blocks that still change, by index
	table       []uint64           // host offset of each written block, by index; 0: none yet
}

func newAllocator(clusterBits uint32) *allocator {
	a := &allocator{clusterBits: clusterBits, packer: packer{clusterBits: clusterBits}, blocks: map[int64][]uint16{}}
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

// pack gives the offset of n bytes for compressed data, n less than a cluster.
func (a *allocator) pack(n int64) int64 {
	off := a.packer.place(n, a.next)
	last := (off + n - 1) >> a.clusterBits
	for c := off >> a.clusterBits; c <= last; c++ {
		a.ref(c)
	}
	a.next = max(a.next, last+1)
	return off
}

// complete gives the indexes of the blocks that cannot change any more, in ascending order. Half-filled clusters
// of compressed data in a block that the file has outgrown are given up: less than a cluster per block.
func (a *allocator) complete() []int64 {
	current := a.next / a.blockEntries()
	if len(a.blocks) == 1 && a.blocks[current] != nil {
		return nil
	}
	if a.packer.at>>a.clusterBits/a.blockEntries() < current {
		a.packer.at = 0
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

// packer puts compressed data one behind the other.
type packer struct {
	clusterBits uint32
	at          int64 // byte offset where the next data goes; at the start of a cluster: in a new one
}

// place gives the offset of n bytes, n less than a cluster: in the cluster that was packed last if they fit there,
// across into the cluster next, the one that can be had next, only where that is its neighbour.
func (p *packer) place(n, next int64) int64 {
	size := int64(1) << p.clusterBits
	used := p.at & (size - 1)
	if used == 0 || used+n > size && p.at>>p.clusterBits+1 != next {
		p.at = next << p.clusterBits
	}
	off := p.at
	p.at += n
	return off
}

// goesOn says whether data could go on across the end of the cluster that was packed last: it is not full, and the
// cluster next is its neighbour.
func (p *packer) goesOn(next int64) bool {
	return p.at&(1<<p.clusterBits-1) != 0 && p.at>>p.clusterBits+1 == next
}
