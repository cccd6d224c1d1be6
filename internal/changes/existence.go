package changes

import (
	"bytes"
	"compress/flate"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/zeebo/xxh3"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
)

// ByObjects is the Existence of a snapshot that librbd reads without an object map.
const ByObjects = "objects"

// readBy says what objects librbd takes for existing when it reads the newer snapshot: ByObjects, or what its map
// has; "" where that can't be told.
func (f *finder) readBy() (string, error) {
	switch m := f.maps[f.newer.ID]; {
	case m != nil:
		return f.existence(m, f.parent)
	case f.mapless:
		return ByObjects, nil
	}
	return "", nil
}

// cloneMark stands between the hash and the objects that a parent may have.
const cloneMark = "+"

// existence tells which objects exist by a map: those behind the parent's overlap by a hash. Of a clone, others are copied from
// the parent later on, into snapshots too, so that these are told one by one.
func (f *finder) existence(m *rbd.ObjectMap, parent *rbd.Parent) (string, error) {
	s := newObjectSet(m.Objects)
	s.addExisting(m)
	first := min(f.from(parent), m.Objects)
	hash := hashObjects(s, first)
	if first == 0 {
		return hash, nil
	}
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestSpeed)
	if err == nil {
		_, err = w.Write(s.bytes()[:wordsOf(first)*8])
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return "", fmt.Errorf("compress object map: %w", err)
	}
	return hash + cloneMark + base64.StdEncoding.EncodeToString(b.Bytes()), nil
}

// existed gives the objects that existed when existence was told, by what it gave and a map of the same snapshot as it is now; nil
// where that map is not the one that it was any more.
func (f *finder) existed(existence string, now *rbd.ObjectMap, parent *rbd.Parent) *objectSet {
	hash, packed, clone := strings.Cut(existence, cloneMark)
	first := min(f.from(parent), now.Objects)
	s := newObjectSet(now.Objects)
	s.addExisting(now)
	if hashObjects(s, first) != hash || clone != (first > 0) {
		return nil
	}
	if !clone {
		return s
	}
	words := make([]byte, wordsOf(first)*8)
	in := flate.NewReader(base64.NewDecoder(base64.StdEncoding, strings.NewReader(packed)))
	if _, err := io.ReadFull(in, words); err != nil {
		return nil
	}
	for n := range first {
		word, shift := place(n)
		s.words[word] &^= 1 << shift
		s.words[word] |= binary.BigEndian.Uint64(words[8*word:]) & (1 << shift)
	}
	return s
}

// from gives the first object behind a parent's overlap.
func (f *finder) from(parent *rbd.Parent) int64 {
	if parent == nil {
		return 0
	}
	return (parent.Overlap + f.img.Period() - 1) / f.img.Period() * f.img.StripeCount()
}

// hashObjects hashes the objects from first on.
func hashObjects(s *objectSet, first int64) string {
	b := s.bytes()
	clear(b[:first/rbd.ObjectsPerWord*8])
	if at := first / rbd.ObjectsPerWord; first%rbd.ObjectsPerWord != 0 {
		w := s.words[at] & (1<<(64-2*(first%rbd.ObjectsPerWord)) - 1)
		binary.BigEndian.PutUint64(b[8*at:], w)
	}
	sum := xxh3.Hash128(b).Bytes()
	return hex.EncodeToString(sum[:])
}

// orphaned gives the objects that the base had a parent behind and the newer snapshot has not.
func (f *finder) orphaned() *objectSet {
	s := newObjectSet(f.img.Objects(f.size))
	before, now := int64(0), int64(0)
	if p := f.o.Base.Parent; p != nil {
		before = p.Overlap
	}
	if f.parent != nil {
		now = f.parent.Overlap
	}
	f.addBytes(s, now, min(before, f.size)-now)
	return s
}

// compareExistence finds the objects of which the precise diff may not tell all: see unsure. For that it needs the map
// that the base was read by; where that is not to be had any more, the result is a reason why there can be no diff.
func (f *finder) compareExistence(ctx context.Context) (reason string, err error) {
	b, newer := f.o.Base, f.maps[f.newer.ID]
	if newer == nil && !f.mapless {
		return "", nil // it is not known what it is read by
	}
	base := f.maps[b.Snapshot.ID]
	var before *objectSet // nil: any
	switch b.Existence {
	case ByObjects:
		base = nil
	case "": // The best that there is.
		if base == nil || newer == nil {
			return "", nil
		}
		before = newObjectSet(base.Objects)
		before.addExisting(base)
	default:
		if base == nil { // its marks may be wrong, and what exists may still be as it was
			base, err = f.img.ObjectMap(ctx, b.Snapshot.ID)
			if _, err = asDamage(mapDamage(err)); err != nil {
				return "", err
			}
		}
		if base != nil {
			before = f.existed(b.Existence, base, b.Parent)
		}
		if before == nil {
			return "the object map that the newest point was read by is gone or was rebuilt: " +
				"objects may be seen now that were not seen then", nil
		}
	}
	f.unsure = newUnsure(before, base, newer, f.img.Objects(f.size))
	f.unsure.orphaned = f.orphaned()
	return "", nil
}
