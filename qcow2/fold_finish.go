package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
)

// keepDigests takes the digest blocks of the tables before an L1 index, which are unchanged, into the new directory.
func (f *fold) keepDigests(end int64) error {
	for f.old.next != nil && int64(f.old.next.l1Index) < min(end, f.keep) && f.proved {
		f.trailer.directory = append(f.trailer.directory, *f.old.next)
		if err := f.old.advance(); err != nil {
			return err
		}
	}
	return nil
}

// dropDigests gives up the digest blocks of the tables before an L1 index that have not been kept.
func (f *fold) dropDigests(end int64) error {
	for f.old.next != nil && int64(f.old.next.l1Index) < end {
		if err := f.dead.add(f.old.next.offset, f.old.next.blockLength()); err != nil {
			return err
		}
		if err := f.old.advance(); err != nil {
			return err
		}
	}
	return nil
}

// finish writes what is left of the new state, and switches to it.
func (f *fold) finish(ctx context.Context) error {
	if err := f.keepDigests(f.keep); err != nil {
		return err
	}
	if err := f.dropDigests(1 << 32); err != nil {
		return err
	}
	if err := f.writeQueue(); err != nil {
		return err
	}
	if err := f.out.flush(); err != nil {
		return err
	}
	if err := f.writeTables(ctx); err != nil {
		return err
	}
	algorithm := f.trailer.key.algorithm()
	if !f.proved {
		algorithm, f.header.key, f.trailer.directory = NoDigest, nil, nil
		if err := f.trailer.blocks.close(); err != nil {
			return err
		}
		f.trailer.blocks = newSpool(f.o.Scratch)
	}
	r, err := f.trailer.write(f.f, f.space.end<<f.header.ClusterBits, f.o.Identity, algorithm)
	if err != nil {
		return fmt.Errorf("write identity and digests: %w", err)
	}
	f.header.Record = r
	if err := f.switchOver(); err != nil {
		return err
	}
	f.stats.WrittenBytes, f.stats.FileBytes, f.stats.FreedBytes = f.f.written, r.FileLength, f.dead.freed
	return nil
}

// writeTables places the L1 table and all that counts references, and gives up the old ones.
func (f *fold) writeTables(ctx context.Context) error {
	h, size := f.target.header, f.header.ClusterSize()
	if n := int64(len(f.l1)) * 8; n > 0 {
		f.header.L1Offset = f.space.extend((n+size-1)/size) << f.header.ClusterBits
		if err := f.refs.changeSpan(f.header.L1Offset, n, 1); err != nil {
			return err
		}
		if err := writeEntries(f.f, f.l1, f.header.L1Offset, f.buf); err != nil {
			return fmt.Errorf("write L1 table: %w", err)
		}
	}
	if err := f.refs.changeSpan(h.L1Offset, int64(h.L1Size)*8, -1); err != nil {
		return err
	}
	if err := f.refs.changeSpan(h.RefTableOffset, int64(h.RefTableClusters)*size, -1); err != nil {
		return err
	}
	if err := f.settleBlobs(ctx); err != nil {
		return err
	}
	if r := h.Record; r != nil {
		if err := f.dead.add(r.IdentityOffset, r.IdentityLength); err != nil {
			return err
		}
		if err := f.dead.add(r.DirectoryOffset, r.DirectoryLength); err != nil {
			return err
		}
	}
	offset, clusters, err := f.refs.finish()
	f.header.RefTableOffset, f.header.RefTableClusters = offset, uint32(clusters)
	if err != nil {
		return err
	}
	return f.dead.flush()
}

// switchOver makes the new state the file's.
func (f *fold) switchOver() error {
	if _, err := f.f.WriteAt([]byte(f.o.BackingFile), f.header.backingOffset); err != nil {
		return fmt.Errorf("write backing file name: %w", err)
	}
	if err := f.f.Sync(); err != nil {
		return fmt.Errorf("sync data and tables: %w", err)
	}
	if f.o.Confirm != nil {
		if err := f.o.Confirm(); err != nil {
			return err
		}
	}
	f.switched = true
	if _, err := f.f.WriteAt(f.header.encodeSector(), 0); err != nil {
		return fmt.Errorf("write header: %w", err)
	}
	if err := f.f.Sync(); err != nil {
		return fmt.Errorf("sync header: %w", err)
	}
	return nil
}

// writeTable writes an L2 table at off.
func (f *fold) writeTable(entries []uint64, off int64) error {
	if f.space.isNew(off >> f.header.ClusterBits) {
		return writeEntries(f.f, entries, off, f.buf)
	}
	b := make([]byte, 0, len(entries)*8)
	for _, e := range entries {
		b = binary.BigEndian.AppendUint64(b, e)
	}
	_, err := f.f.WriteAt(b, off)
	return err
}
