package changes

import (
	"context"
	"encoding/binary"
	"encoding/hex"

	"github.com/zeebo/xxh3"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
)

// ByObjects is the Existence of a snapshot that librbd reads without an object map.
const ByObjects = "objects"

// readBy says what objects librbd takes for existing when it reads the newer snapshot: ByObjects, or the hash of what its map
// says; "" where that can't be told. Objects that may be copied from a parent later on, into snapshots too, don't count.
func (f *finder) readBy() string {
	switch m := f.maps[f.newer.ID]; {
	case m != nil:
		return hashExistence(m, f.from(f.parent))
	case f.mapless:
		return ByObjects
	}
	return ""
}

// from gives the first object behind a parent's overlap.
func (f *finder) from(parent *rbd.Parent) int64 {
	if parent == nil {
		return 0
	}
	return (parent.Overlap + f.img.Period() - 1) / f.img.Period() * f.img.StripeCount()
}

// hashExistence hashes which objects exist by a map, those before first left out.
func hashExistence(m *rbd.ObjectMap, first int64) string {
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
		return "", nil
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
		if base == nil || hashExistence(base, f.from(b.Parent)) != b.Existence {
			return "the object map that the newest point was read by is gone or was rebuilt: " +
				"objects may be seen now that were not seen then", nil
		}
	}
	f.unsure = newUnsure(base, newer, f.img.Objects(f.size))
	return "", nil
}
