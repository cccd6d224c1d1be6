// Package restore writes the disk of a point to where it is wanted. It needs no Ceph: targets that do are elsewhere.
//
//	map of the chain, window by window ──> readers (decompress, prove by digest) ──> Target
//
// Nothing is replayed: a window's map says for each byte which file of the chain has it, and each is read once. Memory is
// a number: the window, and one buffer for each reader.
package restore
