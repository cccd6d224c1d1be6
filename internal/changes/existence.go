package changes

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"strings"

	"github.com/zeebo/xxh3"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
)

// ByObjects is the Existence of a snapshot that librbd reads without an object map.
const ByObjects = "objects"

// readBy says what objects librbd takes for existing when it reads the newer snapshot: ByObjects, or the hash of what its map
// says; "" where that can't be told.
func (f *finder) readBy() string {
	switch m := f.maps[f.newer.ID]; {
	case m != nil:
		return f.hashExistence(m, f.parent)
	case f.mapless:
		return ByObjects
	}
	return ""
}

// hashExistence hashes which objects exist by a map. Of a clone there are two hashes: objects may be copied from the parent
// later on, into snapshots too, so that the first one leaves out those that the parent may have.
func (f *finder) hashExistence(m *rbd.ObjectMap, parent *rbd.Parent) string {
	first := f.from(parent)
	if first == 0 {
		return hashExisting(m, 0)
	}
	return hashExisting(m, first) + cloneMark + hashExisting(m, 0)
}

// cloneMark stands between the two hashes.
const cloneMark = "+"

// sameExistence says whether a snapshot's map may be the one that a hash was made of. One that is flagged has not been kept
// up by anybody.
func sameExistence(now, then string, flags rbd.Flags) bool {
	before, _, clone := strings.Cut(then, cloneMark)
	return now == then || clone && flags == 0 && strings.HasPrefix(now, before+cloneMark)
}

// from gives the first object behind a parent's overlap.
func (f *finder) from(parent *rbd.Parent) int64 {
	if parent == nil {
		return 0
	}
	return (parent.Overlap + f.img.Period() - 1) / f.img.Period() * f.img.StripeCount()
}

// hashExisting hashes which objects exist by a map, those before first left out.
func hashExisting(m *rbd.ObjectMap, first int64) string {
	s := newObjectSet(m.Objects)
	s.addExisting(m)
	h := xxh3.New()
	var word [8]byte
	for i, w := range s.words {
		switch at := int64(i) * rbd.ObjectsPerWord; {
		case at+rbd.ObjectsPerWord <= first:
			w = 0
		case at < first:
			w &= 1<<(64-2*(first-at)) - 1
		}
		binary.BigEndian.PutUint64(word[:], w)
		_, _ = h.Write(word[:]) // never fails
	}
	sum := h.Sum128().Bytes()
	return hex.EncodeToString(sum[:])
}

// compareExistence finds the objects of which the precise diff may not tell all: see unsure. For that it needs the map
// that the base was read by; where that is not to be had any more, the result is a reason why there can be no diff.
func (f *finder) compareExistence(ctx context.Context) (reason string, err error) {
	b, newer := f.o.Base, f.maps[f.newer.ID]
	if newer == nil && !f.mapless {
		return "", nil // it is not known what it is read by
	}
	base := f.maps[b.Snapshot.ID]
	switch b.Existence {
	case ByObjects:
		base = nil
	case "": // The best that there is.
		if base == nil || newer == nil {
			return "", nil
		}
	default:
		if base == nil { // its marks may be wrong, and what exists may still be as it was
			base, err = f.img.ObjectMap(ctx, b.Snapshot.ID)
			if _, err = asDamage(mapDamage(err)); err != nil {
				return "", err
			}
		}
		snapshot, _ := f.snapshot(b.Snapshot.ID)
		if base == nil || !sameExistence(f.hashExistence(base, b.Parent), b.Existence, snapshot.Flags) {
			return "the object map that the newest point was read by is gone or was rebuilt: " +
				"objects may be seen now that were not seen then", nil
		}
	}
	if base != nil || newer != nil {
		f.unsure = newUnsure(base, newer, f.img.Objects(f.size))
	}
	return "", nil
}
