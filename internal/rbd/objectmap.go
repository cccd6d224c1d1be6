package rbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/ceph/go-ceph/rados"
)

// ErrDamaged is for object maps that can't be what librbd has written.
var ErrDamaged = errors.New("damaged")

// maxMapObjects is the number of objects that librbd can keep a map of, or a
// little more (cls_rbd, MAX_OBJECT_MAP_OBJECT_COUNT).
const maxMapObjects = 256 << 20

// ObjectsPerWord is how many objects a word of an object map describes.
const ObjectsPerWord = 32

// ObjectMap is the object map of an image's head or of a snapshot, as it lies
// in the cluster: two bits per object, the first object in the highest bits of
// the first word, and zeros behind the last.
//
//	00  the object does not exist
//	01  it exists, and was perhaps written since the snapshot before
//	10  it is being removed
//	11  it exists and was not written since the snapshot before (with fast-diff)
type ObjectMap struct {
	Objects int64 // how many it describes
	Words   []uint64
}

// ObjectMap reads the object map of a snapshot, by its id, or with 0 that of
// the head. It says nothing of flags. Errors match ErrNotFound where there is
// no map, ErrDamaged where it is cut short or fails its checksums.
func (i *Image) ObjectMap(ctx context.Context, snapshot uint64) (*ObjectMap, error) {
	name := "rbd_object_map." + i.id
	if snapshot != 0 {
		name += fmt.Sprintf(".%016x", snapshot)
	}
	expected := mapLength(i.Objects(i.size))
	m, err := call(ctx, i.handle, func() (*ObjectMap, error) { return readObjectMap(i.pool.ioctx, name, expected) }, nil)
	return m, fail("read object map", name, err)
}

// readObjectMap reads a map that may be replaced by another while it is read:
// that is the case while the snapshot before it is being removed.
func readObjectMap(ioctx *rados.IOContext, name string, expected int64) (m *ObjectMap, err error) {
	for range 3 {
		var raw []byte
		if raw, err = readObject(ioctx, name, expected); err != nil {
			return nil, err
		}
		if m, err = parseObjectMap(raw); err == nil {
			return m, nil
		}
	}
	return nil, err
}

// readObject reads a whole RADOS object: with one operation, which sees it at
// one instant, where it is no longer than expected.
func readObject(ioctx *rados.IOContext, name string, expected int64) ([]byte, error) {
	var all []byte
	for step := min(expected, mapLength(maxMapObjects)) + 1; int64(len(all)) <= mapLength(maxMapObjects); step = 4 << 20 {
		at := len(all)
		all = append(all, make([]byte, step)...)
		n, err := ioctx.Read(name, all[at:], uint64(at))
		if err != nil {
			return nil, err
		}
		all = all[:at+n]
		if int64(n) < step {
			return all, nil
		}
	}
	return nil, fmt.Errorf("%w: more than %d bytes", ErrDamaged, len(all))
}

// mapLength is how many bytes the map of so many objects takes; see parseObjectMap.
func mapLength(objects int64) int64 {
	bits := (objects + 3) / 4
	return 4 + 14 + bits + 12 + 4*((bits+mapCRCBlock-1)/mapCRCBlock)
}

// mapCRCBlock is how many bytes of an object map have one checksum.
const mapCRCBlock = 4096

// parseObjectMap decodes a ceph::BitVector<2>: length and bytes of a header
// that holds the number of objects; the bits; length and bytes of a footer with
// the CRCs of the header and of each block of bits. Numbers are little-endian.
func parseObjectMap(raw []byte) (*ObjectMap, error) {
	const headerLength = 14 // version, compatible version, length of what follows, number of objects
	le := binary.LittleEndian
	if len(raw) < 4+headerLength || le.Uint32(raw) != headerLength || raw[5] != 1 || le.Uint32(raw[6:]) != 8 {
		return nil, fmt.Errorf("%w: unknown header", ErrDamaged)
	}
	header := raw[4 : 4+headerLength]
	objects := le.Uint64(header[6:])
	if objects > maxMapObjects {
		return nil, fmt.Errorf("%w: of %d objects", ErrDamaged, objects)
	}
	bits, footer := raw[4+headerLength:], []byte(nil)
	if n := (objects + 3) / 4; n <= uint64(len(bits)) {
		bits, footer = bits[:n], bits[n:]
	}
	sums := (len(bits) + mapCRCBlock - 1) / mapCRCBlock
	if len(footer) < 12+4*sums || le.Uint32(footer) != uint32(8+4*sums) || le.Uint32(footer[8:]) != uint32(sums) {
		return nil, fmt.Errorf("%w: cut short", ErrDamaged)
	}
	ok := le.Uint32(footer[4:]) == cephCRC(header)
	for i := range sums {
		block := bits[i*mapCRCBlock : min((i+1)*mapCRCBlock, len(bits))]
		ok = ok && le.Uint32(footer[12+4*i:]) == cephCRC(block)
	}
	if !ok {
		return nil, fmt.Errorf("%w: checksum differs", ErrDamaged)
	}
	return &ObjectMap{Objects: int64(objects), Words: mapWords(bits, int64(objects))}, nil
}

// mapWords puts the bits of so many objects into words.
func mapWords(bits []byte, objects int64) []uint64 {
	words := make([]uint64, 0, (len(bits)+7)/8)
	for len(bits) >= 8 {
		words = append(words, binary.BigEndian.Uint64(bits))
		bits = bits[8:]
	}
	if len(bits) > 0 {
		var last [8]byte
		copy(last[:], bits)
		words = append(words, binary.BigEndian.Uint64(last[:]))
	}
	if rest := objects % ObjectsPerWord; rest > 0 {
		words[len(words)-1] &^= 1<<(64-2*rest) - 1
	}
	return words
}

// cephCRC is CRC-32C as Ceph computes it: it begins with zero and is not inverted.
func cephCRC(p []byte) uint32 {
	return ^crc32.Update(^uint32(0), crc32.MakeTable(crc32.Castagnoli), p)
}
