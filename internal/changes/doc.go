// Package changes finds what differs between two snapshots of an image, in time
// proportional to what differs where that can be proved safe.
//
// # Two sources
//
// librbd's precise diff asks the OSDs about every object of a range. It is the
// rule, it was never seen wrong, and it costs one operation per object, whether
// there is data or not: a quarter of a million for an empty disk of 1 TiB.
//
// The object maps of the two snapshots tell in a few reads which objects can
// differ at all; the precise diff is then asked about those alone. librbd's own
// way of using the maps (fast-diff) is not used: it misses changes after a
// rollback and after a shrink, reports whole objects, and had other faults in
// many releases. The maps are read as they lie in the cluster.
//
// # When the maps may be believed
//
// Call B the base's snapshot, N the new one. A map has, for each object, one of:
// nonexistent; marked (it exists, and was written since the snapshot before);
// being removed; clean (it exists, and is not marked). Every client marks an
// object in the head's map before it writes to it, and librbd itself, when it
// reads, goes by nonexistent without a look at the object. A new snapshot takes
// over the head's map, and then the marks of the head are cleared. A rollback
// replaces the head's map by the snapshot's, as it is at that moment, and only
// then begins with the objects; killed in the middle it leaves the one done and
// the others not. Removing a snapshot adds its marks to the next one's map.
//
// By change: suppose that since B no snapshot was made but N, and that nobody
// rolled back. Then only writes (and discards, resizes, and the like) have
// touched the head, and each object that differs is marked in N's map, or exists
// in one of the two maps and not in the other, or was being removed at B.
//
// No snapshot was made: the image's header has the id of the last one that ever
// was; just before N it was still B's.
//
// Nobody rolled back: one can roll back to a snapshot that is there, which is B
// or one of those that were there when B was made. The map that a rollback to one
// of them, call it S, gives to the head has S's marks, and as no snapshot has
// cleared them since, they are in N's map: of none of the objects that S's map
// marks can N's map say that it is clean. So when B is made, some objects that
// the maps of B and of all the others mark are noted down; if for each of these
// snapshots one of its objects is clean in N's map, there was no rollback. They
// have to be noted down then, because the map of a snapshot gains marks when the
// one before it is removed, as that of the point before always is.
//
// No rollback was under way at B, either, which would go on after it without a
// mark. It has two parts. In the first the image gets the snapshot's size; where
// that is a shrink, its map has objects that are being removed. In the second,
// nobody else writes: so the head's map is still the one that the snapshot had,
// or without any mark if another snapshot was made since. Marks of a snapshot's
// map come but never go, and what exists by it stays, but for what is copied from
// a parent. So if for each of the others B's map marks an object that the other
// does not, or has another one, then there was none; or if one of the marks noted
// down before that, when all was quiet, is missing. Where that can't be shown,
// librbd has another fault: shrink and rollback go on writing into the snapshot
// that was just made, until they are made to make one more. That is what
// Options.Settle is for. One that has begun just before N shows in the head's map,
// which has none of the marks' objects as clean any more.
//
// By existence, where the above can't be shown: an object that exists in neither
// map reads the same at B and at N, provided that what shows through where no
// object is, the parent up to its overlap, is the same. All objects that exist in
// one of the maps are asked about.
//
// A client that opens the image while N is made may not know of N for a moment,
// and what it writes then goes into N. Its marks are in the head's map alone. So
// the marks and the objects of the head's map, as it is when the search begins,
// are asked about as well; whoever reads from N has to see to it before that no
// client writes so any more (rbd.Pool.Refresh).
//
// # What was read
//
// librbd reads by the maps, which may be wrong: what it reads as zeroes at B may
// be seen at N, though nobody has written it. So by any method, an object that
// exists in one of the two maps and not in the other is reported as a whole. The
// exception is one that has come and of which the precise diff from B reports all
// that the precise diff from nothing does: it is new. The map of B has to be the
// one that B was read by: Result.Existence is a hash of it. Where it has changed
// since, there is no diff.
//
// # What can't be seen
//
// That is a snapshot that is made, rolled back to and removed
// between a look at the image and our own snapshot; one that is removed while
// the maps are being read for the marks; and a rollback to B that begins while
// the one before B is still there, and takes until N; and a rebuild of a map that
// takes a mark away while an object is written for the first time.
//
// Flags that call a map invalid, a map that is missing, has the wrong length or
// a wrong checksum, a size or parent that changed: each is a reason for the
// next better way, and the reason is told.
package changes
