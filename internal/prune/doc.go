// Package prune removes the points that no rule keeps. It knows nothing of Ceph.
//
// For each image, under its folder's lock:
//
//  1. complete what an earlier run had to leave half done;
//  2. read what the points say of themselves, and let package retention decide;
//  3. unlink those that nothing lies on, the newest first;
//  4. fold each of the others into the point above it, the oldest first.
//
// Each removal is complete and on disk before the next one begins. So whatever ends a run, every point that is left reads as
// before, and the next run goes on.
package prune
