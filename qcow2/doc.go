// Package qcow2 writes and reads QEMU's qcow2 disk images in pure Go, after docs/interop/qcow2.txt of QEMU's source.
//
// A [Writer] writes a file from its beginning to its end, in one pass and in bounded memory, however large the disk:
// clusters in ascending guest order, compressed or not, on top of a backing file or not. The file is none until its
// header is there, and the header comes last.
//
//	enc, err := qcow2.NewChunkEncoder(codec)   // one per goroutine
//	w, err := qcow2.NewWriter(file, qcow2.WriterOptions{Size: size, Codec: codec})
//	err = enc.Encode(chunk, w.ClusterSize())   // costs time: zeroes, digests, compression
//	err = w.Append(chunk)                      // in guest order
//	err = w.Finish(identity)
//
// An [Image] is what a guest sees of a file and the chain of its backing files, as an [io.ReaderAt]. It opens no
// file by itself: names in a file are foreign input, and what they may lead to is for the caller to say. Files may
// be of other programs; nothing that they say is believed before it is bounded, and what can't be true is a
// [CorruptError].
//
// Beyond the specification, files that a Writer makes carry an identity, bytes of the caller's, and a digest of each
// stored cluster, by which [Image.VerifyDigests] proves a file from itself. A header extension that QEMU keeps leads to
// them; see [Record]. [Image.Check] looks for all that is wrong with a file, whoever made it, and says where: every entry,
// every refcount, every digest.
//
// A fold removes a file from the middle of a chain, in place and safe from power cuts: [FoldIntoChild] and
// [FoldIntoBacking], and [Folded.Punch] for the room that it frees.
//
// Not supported: encryption, external data files, extended L2 entries, internal snapshots other than ignoring them.
package qcow2
