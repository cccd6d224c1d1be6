package main

import (
	"encoding/binary"
	"math/rand/v2"

	"github.com/zeebo/xxh3"
)

// block is the smallest write, and what the content of a disk is known by, in bytes.
const block = 4 * kib

// version is the number of the day on which a block was written last, from 1; 0: never, it reads as zeroes.
type version uint32

// disk is a simulated disk. Every second mebibyte of it holds data; the others are never written.
type disk struct {
	versions []version // by block
	sum      uint64    // of the content, as sumOf has it
	random   *rand.Rand
	buf      []byte
}

// newDisk makes a disk of size bytes whose data was all written on the first day.
func newDisk(size int64, seed uint64) *disk {
	d := &disk{versions: make([]version, size/block), random: rand.New(rand.NewPCG(seed, 0)), buf: make([]byte, block)}
	for at := int64(0); at < d.data(); at += block {
		d.write(place(at), 1)
	}
	return d
}

// size is that of the disk in bytes.
func (d *disk) size() int64 { return int64(len(d.versions)) * block }

// data is how much of the disk holds data, in bytes.
func (d *disk) data() int64 { return d.size() / 2 / mib * mib }

// place is the offset in the disk of a byte of its data.
func place(at int64) int64 { return at/mib*2*mib + at%mib }

// Shares of the changes of a day.
const (
	changed  = 100 // one part in so many of the disk is written
	hot      = 16  // one part in so many of the data gets
	hotWrite = 4   // all writes but one in so many
	large    = 17  // one write in so many is of 64 KiB, so that these have half of the bytes
)

// change writes as much as a day does, and gives the number of bytes that are other than before.
func (d *disk) change(day version) (different int64) {
	for left := d.size() / changed; left > 0; {
		length, area := int64(block), d.data()
		if d.random.IntN(large) == 0 {
			length = 64 * kib
		}
		if d.random.IntN(hotWrite) > 0 {
			area /= hot
		}
		at := d.random.Int64N(area/length) * length
		for end := at + length; at < end; at += block {
			if d.write(place(at), day) {
				different += block
			}
		}
		left -= length
	}
	return different
}

// write writes a block, and says whether it is for the first time on that day.
func (d *disk) write(off int64, day version) bool {
	v := &d.versions[off/block]
	if *v == day {
		return false
	}
	d.sum += sumOf(content(d.buf, off, day), off) - sumOf(content(d.buf, off, *v), off)
	*v = day
	return true
}

// content fills p with what a block holds: random data in its first half, so that it can be compressed to about that.
func content(p []byte, off int64, v version) []byte {
	clear(p)
	if v == 0 {
		return p
	}
	r := rand.NewPCG(uint64(off), uint64(v))
	for i := 0; i < len(p)/2; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], r.Uint64())
	}
	return p
}

// sumOf is what a block adds to the sum of a disk. Zeroes add nothing, so that a reader may leave out holes, and blocks may
// come in any order.
func sumOf(p []byte, off int64) uint64 {
	var zeros [block]byte
	if string(p) == string(zeros[:]) {
		return 0
	}
	return xxh3.HashSeed(p, uint64(off))
}
