// Package repair mends points that are damaged, as far as what was in them can be proved. It knows nothing of Ceph.
//
// What a file has lost of the disk is known in two ways. If the snapshot that the newest point was made from has, at that place,
// content with the digest that was stored in the file, it is what was lost: nobody has changed it since. And the newest point
// itself reads as that snapshot, so that what it lost, or shows of a damaged file below it, can be taken from there whatever it
// was. Tables, refcounts and digests follow from the data.
//
// A file is never changed: a new one is written beside it, verified, and put in its place.
package repair
