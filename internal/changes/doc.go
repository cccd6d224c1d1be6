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
// Call B the base's snapshot, N the new one. Each map has, for each object,
// one of: nonexistent, written since the snapshot before, being removed, clean
// (exists, and not written since the snapshot before).
//
// Every client writes "exists" into the head's map before it writes to an
// object, and librbd itself, when it reads, goes by nonexistent without a look
// at the object. So, whatever happened in between:
//
// By existence: an object that exists in neither map reads the same at B and at
// N, provided that what shows through where no object is, the parent up to its
// overlap, is the same. All objects that exist in one of the maps are asked
// about.
//
// By change: let nothing be older than B that one could have rolled back to.
// Then an object whose content at N is not that of B exists in one map and not in
// the other, or is "written" in the map of N or of a snapshot M that was made
// since B and is still there. By induction over all that can happen to the
// head, for the pair of B and the head:
//
//   - A write marks the object in the head's map.
//   - A new snapshot M takes over the head's map; only then are the head's marks
//     cleared. What was marked is marked in M's map.
//   - A rollback to M gives the head M's content and M's map, and for the pair of
//     B and M the statement holds. That is true for each object alone, also in a
//     rollback that is under way or was cut short, where the map is still the
//     old one. A rollback to B gives it B's content.
//   - Removing M adds M's marks to the map of the snapshot after it, or the
//     head's, before M disappears.
//
// The last step reads which snapshot comes next and writes to it later: made in
// between, N would miss M's marks. So it is refused where a snapshot
// disappeared while N was made. What the listing before and the one after can't
// show is a snapshot that was made, rolled back to if it is older than ours, and
// removed between the two: within the milliseconds that our own snapshot takes.
//
// One snapshot older than B is always there: the one that the point before was
// read from, which is removed only when the new point exists. Where its content
// differs from B's is what that point stores; those objects are added.
//
// Flags that call a map invalid, a map that is missing, has the wrong length or
// a wrong checksum, a size or parent that changed: each is a reason for the
// next better way, and the reason is told.
package changes
