package qcow2

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
)

// trailer is what lies behind the last cluster with a refcount: identity, digest directory and digest blocks.
type trailer struct {
	directory []directoryEntry // in the order of L1 indexes
	blocks    *spool           // those of the directory that are queued, one behind the other
	key       *DigestKey
}

// add queues the digest block of an L2 table. kinds has one Kind per entry; block is room for the hash of them, and the
// digests of the table's Data clusters. Neither is kept.
func (t *trailer) add(index int64, kinds, block []byte) error {
	hash := t.key.tableDigest(kinds)
	copy(block, hash[:])
	t.directory = append(t.directory, directoryEntry{
		l1Index: uint32(index),
		count:   uint32(len(block)/DigestSize - 1),
		offset:  t.blocks.length,
		hash:    t.key.tableDigest(block),
		queued:  true,
	})
	if _, err := t.blocks.Write(block); err != nil {
		return fmt.Errorf("write digests aside: %w", err)
	}
	return nil
}

// write puts the trailer at off, which becomes the last part of the file, and gives the record of it.
// The identity comes first: it is the first thing that an allocating write through QEMU destroys.
func (t *trailer) write(f File, off int64, identity []byte, digests DigestAlgorithm) (*Record, error) {
	r := &Record{
		Digests:         digests,
		IdentityOffset:  off,
		IdentityLength:  int64(len(identity)),
		IdentitySHA256:  sha256.Sum256(identity),
		DirectoryLength: int64(len(t.directory)) * directoryEntrySize,
	}
	r.DirectoryOffset = (r.IdentityOffset + r.IdentityLength + 7) / 8 * 8
	first := r.DirectoryOffset + r.DirectoryLength
	r.FileLength = first + t.blocks.length

	// Exactly this length, however much of it stays a hole.
	if err := f.Truncate(r.FileLength); err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(identity, r.IdentityOffset); err != nil {
		return nil, err
	}
	hash := sha256.New()
	out := bufio.NewWriterSize(io.NewOffsetWriter(f, r.DirectoryOffset), 256<<10)
	for _, d := range t.directory {
		if d.queued {
			d.offset += first
		}
		entry := d.append(nil)
		hash.Write(entry)
		if _, err := out.Write(entry); err != nil {
			return nil, err
		}
	}
	if err := t.blocks.copyTo(out); err != nil {
		return nil, err
	}
	if err := out.Flush(); err != nil {
		return nil, err
	}
	hash.Sum(r.DirectorySHA256[:0])
	return r, nil
}
