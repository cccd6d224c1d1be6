// Package repo is the repository on disk: a directory that holds one folder per image, in it one qcow2 file per
// point, and nothing that could disagree with these files. It knows nothing of Ceph.
//
//   - A repository is the target directory; a small marker file gives it an id and binds it to one pool.
//   - A folder belongs to one image. It is named after the image at its first backup.
//   - A point is one restore point: one file, which carries its own [Identity]. What it reads as never changes.
//   - A chain is a full point and the increments that lie on it, each the backing file of the next.
//   - A fold removes a point from the middle or the beginning of a chain: its file and that of the next become one.
//
// docs/format.md describes all of it for those who write another reader.
package repo
