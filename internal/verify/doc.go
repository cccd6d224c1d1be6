// Package verify proves that points can be restored, from what is in their files alone. It knows nothing of Ceph.
//
// Each file is looked at once, however many points lie on it: its structure, as qemu-img check does; its identity; whether it lies on the
// point that it was made on; and all its data by their digests. Damage is followed up the chain: which later points still show it. The
// points that have waited longest for it come first, so that runs that are short of time get round to all. What was found is noted beside the points.
package verify
