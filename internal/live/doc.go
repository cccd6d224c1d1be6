// Package live restores a point to a new RBD image that can be used at once, while its data are still on their way.
//
//	chain of qcow2 files ──> HTTP server of one flat disk ──> librbd of whoever reads the image, and of its migration
//
// The stages of an image, and what leads from one to the next:
//
//	absent ──prepare──> copying ──execute──> copied ──commit──> committed ──metadata, sparsify──> done
//
// The cluster tells the stage, so a restore that was interrupted goes on from where it is. What the cluster does not tell
// lies in a journal beside the points of the image: the address and the token of the server, which stand in the image and have
// to be the same for as long as it is copied, and the id of the image. The journal is written before the image is made, and
// removed when nothing is left to do.
//
// Nothing marks the image while it is copied but its migration, which keeps it from being backed up. Once that is committed, the
// disk is whole, with all that its users have written; only metadata and thinness may be missing.
package live
