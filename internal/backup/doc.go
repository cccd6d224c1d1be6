// Package backup makes points of the images of a pool.
//
// For each image, in this order, so that a crash at any step loses nothing and leaves nothing that the next run
// does not clear away:
//
//  1. take the folder's lock, remove what a killed run left behind;
//  2. choose the base: the newest point and its snapshot, if they can be trusted, otherwise none and a reason;
//  3. make a snapshot; ask the cluster what changed since the base's snapshot;
//  4. read the changed clusters from the new snapshot, many at a time, and write them to a file without a name;
//  5. sync the file, give it its name, sync the directory: now the point exists;
//  6. remove the base's snapshot.
package backup
