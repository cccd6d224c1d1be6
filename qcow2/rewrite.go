package qcow2

import (
	"context"
	"errors"
	"fmt"
	"syscall"
)

// RewriteOptions say what a Rewrite makes of a file.
type RewriteOptions struct {
	Identity []byte                  // of the new file
	Codec    Codec                   // how clusters that Fill gives are compressed; nil: not at all
	Scratch  func() (Scratch, error) // as in WriterOptions

	// Fill gives what the file can't: it fills p with a cluster of the disk, zeroes behind its end, and says as what it
	// shall stand in the new file; Unallocated where that of the file below is the same. want is the digest of what was
	// stored, nil where that is not known. Where ok is false, Fill has nothing.
	Fill func(ctx context.Context, p []byte, guest int64, want *Digest) (kind Kind, ok bool, err error)
	// Trusted makes what Fill gives count even where it is not what was stored.
	Trusted bool
	// Cover are parts of the disk, in ascending order, all clusters of which Fill is asked for, too.
	Cover []Range
}

// Rewritten says what a Rewrite has made.
type Rewritten struct {
	Stats
	Filled []Range // parts of the disk that are now as Fill gave them, and were not before
	Left   []Range // that were stored and can't be proved: in the new file they are as damaged as they were
}

// Rewrite writes to f, which is empty, a file that holds what im itself holds, not those below it: of the same size,
// cluster size, compression and backing file, with the same digests. What it can prove by these moves as it is, compressed or
// not; what it can't comes from Fill. So the tables, refcounts and digests of the new file are right whatever was wrong with
// the old ones.
//
// The error is a *CorruptError where im does not tell any more which clusters it holds and Fill does not, either; others are
// those of VerifyDigests, of Fill, of f and of ctx.
func (im *Image) Rewrite(ctx context.Context, f File, o RewriteOptions) (Rewritten, error) {
	r := rewrite{o: o, im: *im}
	r.im.proof, r.im.backing = nil, nil // it is proved here
	err := r.run(ctx, f)
	if err != nil {
		return r.result, fmt.Errorf("rewrite file: %w", err)
	}
	r.result.Stats = r.w.Stats()
	return r.result, nil
}

// rewrite is a Rewrite at work.
type rewrite struct {
	o       RewriteOptions
	im      Image // the old file alone
	w       *Writer
	encoder *ChunkEncoder
	decoder *inflater
	chunk   Chunk
	fill    []byte  // a cluster
	cover   []Range // what is left of it
	result  Rewritten
}

func (r *rewrite) run(ctx context.Context, f File) (err error) {
	h := r.im.header
	record, err := r.im.record()
	if err != nil {
		return err
	}
	if err := r.im.checkDigests(record); err != nil {
		return err
	}
	codec := r.o.Codec
	if codec == nil && h.Compression != Zlib {
		codec = r.im.codec // of what moves
	}
	r.w, err = NewWriter(f, WriterOptions{
		Size: h.Size, ClusterSize: h.ClusterSize(), BackingFile: h.BackingFile, BackingFormat: h.BackingFormat,
		Codec: codec, Key: r.im.key, Scratch: r.o.Scratch,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.w.Close()) }()
	if codec != nil && codec.Type() != h.Compression {
		return fmt.Errorf("codec of type %s for a file of type %s", codec.Type(), h.Compression)
	}
	if r.encoder, err = NewChunkEncoder(r.o.Codec); err != nil {
		return err
	}
	r.encoder.UseKey(r.im.key)
	if r.decoder, err = r.im.inflater(); err != nil {
		return err
	}
	defer r.im.release(r.decoder)
	r.fill, r.cover = make([]byte, h.ClusterSize()), r.o.Cover
	if err := r.tables(ctx, record); err != nil {
		return err
	}
	return r.w.Finish(r.o.Identity)
}

// tables goes through the L2 tables that there are, that there were, and that there are to be.
func (r *rewrite) tables(ctx context.Context, record *Record) error {
	directory, lost := &directoryReader{}, false
	err := r.im.verifyDirectory(ctx, record)
	if err == nil {
		directory, err = r.im.readDirectory(record)
	}
	if unreadable(err) {
		directory, lost, err = &directoryReader{}, true, nil
	}
	if err != nil {
		return err
	}
	tables := r.im.walkTables(func(Finding) error { return nil })
	found, at, err := tables.next(ctx)
	if err != nil {
		return err
	}
	for index := range int64(r.im.header.L1Size) {
		t := rewrittenTable{guest: index * r.im.header.l2Span(), clusters: r.clusters(index), lost: lost}
		if directory.next != nil && int64(directory.next.l1Index) == index {
			if found == index {
				err = r.prove(ctx, &t, directory.next, at)
			} else {
				t.lost = true
			}
			if err = errors.Join(err, directory.advance()); err != nil {
				return err
			}
		}
		if found == index {
			if found, at, err = tables.next(ctx); err != nil {
				return err
			}
		}
		if t.kinds == nil && !t.lost && !r.covers(r.im.tableRange(index)) {
			continue
		}
		if err := r.table(ctx, t); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// clusters is how many clusters of the disk an L2 table is for.
func (r *rewrite) clusters(index int64) int {
	size := r.im.header.ClusterSize()
	return int((r.im.tableRange(index).Length + size - 1) / size)
}

// unreadable says whether an error is that of a broken file or disk.
func unreadable(err error) bool {
	return errors.As(err, new(*CorruptError)) || errors.Is(err, syscall.EIO)
}

// rewrittenTable is what is known of an L2 table.
type rewrittenTable struct {
	guest    int64
	clusters int
	at       int64    // where it lies in the old file
	kinds    []byte   // one Kind per entry; nil: it has none, or lost is set
	digests  []Digest // of those that are Data
	lost     bool     // nobody knows what it held
}

// prove finds out what a table holds. It is lost where neither the digest block nor the data tell.
func (r *rewrite) prove(ctx context.Context, t *rewrittenTable, d *directoryEntry, at int64) error {
	t.at = at
	digests, kinds, err := r.im.verifyBlock(d, at, func(Finding) error { return nil })
	if err != nil && unreadable(err) {
		digests, kinds, err = r.recount(ctx, t, d)
	}
	if err != nil {
		t.lost = unreadable(err)
		if t.lost {
			return nil
		}
		return err
	}
	t.kinds = kinds
	for ; len(digests) > 0; digests = digests[DigestSize:] {
		t.digests = append(t.digests, Digest(digests))
	}
	return nil
}

// recount makes the digest block of a table anew, by the data. It is what it was if its hash is that in the directory.
func (r *rewrite) recount(ctx context.Context, t *rewrittenTable, d *directoryEntry) (digests, kinds []byte, err error) {
	kinds, count, err := r.im.tableKinds(t.at, t.guest, nil)
	if err != nil {
		return nil, nil, err
	}
	if count != int(d.count) {
		return nil, nil, corrupt("L2 table", t.guest, "%d clusters are stored instead of %d", count, d.count)
	}
	hash := r.im.key.tableDigest(kinds)
	block := append(make([]byte, 0, d.blockLength()), hash[:]...)
	for i, kind := range kinds {
		if Kind(kind) != Data {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		if _, err := r.read(r.fill, t, i); err != nil {
			return nil, nil, err
		}
		digest := r.im.key.digest(r.fill)
		block = append(block, digest[:]...)
	}
	if r.im.key.tableDigest(block) != d.hash {
		return nil, nil, corrupt("digest block", t.guest, "wrong hash")
	}
	return block[DigestSize:], kinds, nil
}

// covers says whether Fill is to be asked for a part of the disk. Parts must ascend.
func (r *rewrite) covers(part Range) bool {
	for len(r.cover) > 0 && r.cover[0].End() <= part.Offset {
		r.cover = r.cover[1:]
	}
	return len(r.cover) > 0 && r.cover[0].Offset < part.End()
}
