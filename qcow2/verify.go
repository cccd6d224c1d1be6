package qcow2

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
)

// verifyBuffer is how much data is read at a time to compare it with its digests, in bytes; a cluster where that is more.
const verifyBuffer = 1 << 20

// ErrNoRecord says that a file carries no Record: another program made it.
var ErrNoRecord = errors.New("no record in the header: made by another program")

// ErrNoDigests says that a file was written without digests.
var ErrNoDigests = errors.New("no digests in the file")

// record gives the file's record, or why there is none.
func (im *Image) record() (*Record, error) {
	h := im.header
	switch {
	case h.RecordError != nil:
		return nil, h.RecordError
	case h.Record == nil:
		return nil, ErrNoRecord
	}
	return h.Record, nil
}

// area gives a part of the file that the record names.
func (im *Image) area(structure string, off, n int64) (*io.SectionReader, error) {
	if off < 0 || n < 0 || n > im.fileLength || off > im.fileLength-n {
		return nil, corrupt(structure, off, "%d bytes: not inside the file of %d bytes", n, im.fileLength)
	}
	return io.NewSectionReader(im.r, off, n), nil
}

// Identity gives the bytes that Writer.Finish was given, after comparing them with their hash in the record.
// Errors are ErrNoRecord, Header.RecordError, *CorruptError or those of the file's reader.
func (im *Image) Identity() ([]byte, error) {
	r, err := im.record()
	if err != nil {
		return nil, err
	}
	return r.ReadIdentity(im.r, im.fileLength)
}

// VerifyDigests compares this file, not those below it, with its digests: that it has not become shorter, the directory,
// the digest blocks, which clusters each L2 table holds, and the content of each of them, on all processors. It stops at the
// first difference, which is a *CorruptError with the guest offset; other errors are ErrNoRecord, ErrNoDigests,
// Header.RecordError, *KeyError, *UnsupportedError, ctx's, or those of the file's reader. Check goes on, and tells of each.
func (im *Image) VerifyDigests(ctx context.Context) error {
	r, err := im.record()
	if err != nil {
		return err
	}
	if err := im.checkDigests(r); err != nil {
		return err
	}
	if r.FileLength > im.fileLength {
		return corrupt("file", im.fileLength, "ends here instead of at %d", r.FileLength)
	}
	if err := im.verifyDirectory(ctx, r); err != nil {
		return err
	}
	d := dataCheck{im: im, record: r, parallel: runtime.GOMAXPROCS(0), report: Finding.err}
	return d.run(ctx)
}

// verifyDirectory compares the directory with its hash, before anything in it is used.
func (im *Image) verifyDirectory(ctx context.Context, r *Record) error {
	in, err := im.area("digest directory", r.DirectoryOffset, r.DirectoryLength)
	if err != nil {
		return err
	}
	if r.DirectoryLength%directoryEntrySize != 0 {
		return corrupt("digest directory", r.DirectoryOffset, "%d bytes: not whole entries", r.DirectoryLength)
	}
	hash := sha256.New()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		_, err := io.CopyN(hash, in, verifyBuffer)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read digest directory: %w", err)
		}
	}
	if [sha256.Size]byte(hash.Sum(nil)) != r.DirectorySHA256 {
		return corrupt("digest directory", r.DirectoryOffset, "wrong SHA-256")
	}
	return nil
}

// verifyBlock verifies a digest block and which clusters the L2 table holds that it is of. It gives the digests of its
// Data clusters and one Kind per entry of the table. bad is as in walkEntries.
func (im *Image) verifyBlock(d *directoryEntry, table int64, bad func(Finding) error) (digests, kinds []byte, err error) {
	guest := int64(d.l1Index) * im.header.l2Span()
	if int64(d.count) > im.header.l2Entries() {
		return nil, nil, corrupt("digest block", guest, "%d digests: more than a table has entries", d.count)
	}
	in, err := im.area("digest block", d.offset, d.blockLength())
	if err != nil {
		return nil, nil, err
	}
	block := make([]byte, d.blockLength())
	if _, err := io.ReadFull(in, block); errors.Is(err, io.EOF) {
		return nil, nil, corrupt("digest block", guest, "the file has become shorter")
	} else if err != nil {
		return nil, nil, fmt.Errorf("read digest block: %w", err)
	}
	if im.key.tableDigest(block) != d.hash {
		return nil, nil, corrupt("digest block", guest, "wrong hash")
	}
	kinds, count, err := im.tableKinds(table, guest, bad)
	if err != nil {
		return nil, nil, err
	}
	if im.key.tableDigest(kinds) != Digest(block[:DigestSize]) || count != int(d.count) {
		return nil, nil, corrupt("L2 table", guest, "up to %d: other clusters are stored than were", guest+im.header.l2Span())
	}
	return block[DigestSize:], kinds, nil
}

// tableKinds gives one Kind per entry of an L2 table, and how many of them are Data.
func (im *Image) tableKinds(table, guest int64, bad func(Finding) error) (kinds []byte, count int, err error) {
	kinds = make([]byte, 0, im.header.l2Entries())
	err = im.walkEntries(table, guest, bad, func(m mapping, _ int64) error {
		kinds = append(kinds, byte(m.kind))
		if m.kind == Data {
			count++
		}
		return nil
	})
	return kinds, count, err
}

// readDirectory reads the digest directory, which verifyDirectory has found right, from its beginning on.
func (im *Image) readDirectory(r *Record) (*directoryReader, error) {
	in, err := im.area("digest directory", r.DirectoryOffset, r.DirectoryLength)
	if err != nil {
		return nil, err
	}
	d := &directoryReader{in: bufio.NewReader(in), left: r.DirectoryLength / directoryEntrySize}
	return d, d.advance()
}
