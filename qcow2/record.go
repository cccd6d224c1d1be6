package qcow2

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/zeebo/xxh3"
)

// DigestAlgorithm names the digest that a file carries of each stored guest cluster.
type DigestAlgorithm uint8

// The digest algorithms.
const (
	NoDigest DigestAlgorithm = 0
	XXH3     DigestAlgorithm = 1 // XXH3-128, canonical (big-endian) form
	BLAKE3   DigestAlgorithm = 2 // BLAKE3 with a key, cut to 16 bytes
)

const (
	recordMagic = "RBD2QCOW"
	// Where digests need no key, and where they do.
	recordVersion, recordLength           = 1, 144
	keyedRecordVersion, keyedRecordLength = 2, 160
	// The record's own last fields.
	recordHeaderHash = 120
	recordChecksum   = 136
	recordKeyedHash  = 144
)

// Record is the content of our header extension: where in the file the identity and the digest directory lie, and
// their hashes. QEMU ignores it and keeps it when it rewrites a header. Both areas lie behind the last cluster with
// a refcount, where no check complains and the first write of a guest that allocates a cluster destroys them.
type Record struct {
	Digests         DigestAlgorithm
	KeyID           KeyID // of BLAKE3
	IdentityOffset  int64
	IdentityLength  int64
	IdentitySHA256  [sha256.Size]byte
	DirectoryOffset int64
	DirectoryLength int64
	DirectorySHA256 [sha256.Size]byte
	FileLength      int64 // length of the whole file
}

// encode gives the record with nothing in its last fields: see seal.
func (r *Record) encode(key *DigestKey) []byte {
	version, length, id := uint16(recordVersion), recordLength, KeyID{}
	if key != nil {
		version, length, id = keyedRecordVersion, keyedRecordLength, key.id
	}
	b := make([]byte, 0, length)
	be := binary.BigEndian
	b = append(b, recordMagic...)
	b = be.AppendUint16(b, version)
	b = append(b, byte(r.Digests), 0)
	b = append(b, id[:]...)
	b = be.AppendUint64(b, uint64(r.IdentityOffset))
	b = be.AppendUint64(b, uint64(r.IdentityLength))
	b = append(b, r.IdentitySHA256[:]...)
	b = be.AppendUint64(b, uint64(r.DirectoryOffset))
	b = be.AppendUint64(b, uint64(r.DirectoryLength))
	b = append(b, r.DirectorySHA256[:]...)
	b = be.AppendUint64(b, uint64(r.FileLength))
	return b[:length]
}

// seal completes the record at the offset at of a file's first sector: by the hash of that sector and the backing file
// name, which lies elsewhere, and by a checksum of the record itself, so that damage of the two is told apart; with a key
// first by a hash that needs it.
func seal(sector []byte, at int, backingFile string, key *DigestKey) {
	if key != nil {
		mac := keyedHeaderHash(sector, at, backingFile, key)
		copy(sector[at+recordKeyedHash:], mac[:])
	}
	record := sector[at:][:recordLength]
	hash := headerHash(sector, at, backingFile)
	copy(record[recordHeaderHash:], hash[:])
	binary.BigEndian.PutUint64(record[recordChecksum:], xxh3.Hash(record[:recordChecksum]))
}

// headerHash is the hash of the first sector, it itself and the checksum behind it taken as zero, and of the backing file name.
func headerHash(sector []byte, at int, backingFile string) Digest {
	b := append(bytes.Clone(sector), backingFile...)
	clear(b[at+recordHeaderHash : at+recordLength])
	return xxh3.Hash128(b).Bytes()
}

// keyedHeaderHash is that of the same with a key, itself taken as zero too. As the record has the hashes of all else in the file, who
// has not the key can change nothing.
func keyedHeaderHash(sector []byte, at int, backingFile string, key *DigestKey) Digest {
	b := append(bytes.Clone(sector), backingFile...)
	clear(b[at+recordHeaderHash : at+keyedRecordLength])
	return key.header.sum(b)
}

// decodeRecord is the inverse of encode and seal, but for the hash of the header. A later version may be longer, but
// keeps the checksum of what was there before, so that damage and age are told apart.
func decodeRecord(b []byte) (*Record, error) {
	be := binary.BigEndian
	if len(b) < recordLength || string(b[:8]) != recordMagic {
		return nil, corrupt("record", 0, "wrong magic or length %d", len(b))
	}
	if be.Uint64(b[recordChecksum:]) != xxh3.Hash(b[:recordChecksum]) {
		return nil, corrupt("record", 0, "wrong checksum")
	}
	length := recordLength
	switch v := be.Uint16(b[8:]); v {
	case recordVersion:
	case keyedRecordVersion:
		length = keyedRecordLength
	default:
		return nil, &UnsupportedError{fmt.Sprintf("record of version %d", v)}
	}
	if keyed := DigestAlgorithm(b[10]) == BLAKE3; len(b) != length || keyed != (length == keyedRecordLength) {
		return nil, corrupt("record", 0, "%d bytes with digest algorithm %d", len(b), b[10])
	}
	r := &Record{
		Digests:         DigestAlgorithm(b[10]),
		IdentityOffset:  int64(be.Uint64(b[16:])),
		IdentityLength:  int64(be.Uint64(b[24:])),
		DirectoryOffset: int64(be.Uint64(b[64:])),
		DirectoryLength: int64(be.Uint64(b[72:])),
		FileLength:      int64(be.Uint64(b[112:])),
	}
	copy(r.KeyID[:], b[12:])
	copy(r.IdentitySHA256[:], b[32:])
	copy(r.DirectorySHA256[:], b[80:])
	return r, nil
}

// maxIdentity bounds the identity that is read into memory, in bytes: image metadata may make it large.
const maxIdentity = 16 << 20

// ReadIdentity gives the bytes that Writer.Finish was given, from a file of fileLength bytes, after comparing them
// with their hash. The error is a *CorruptError where they are not what they were, or not there.
func (r *Record) ReadIdentity(f io.ReaderAt, fileLength int64) ([]byte, error) {
	if r.IdentityLength < 0 || r.IdentityLength > maxIdentity ||
		r.IdentityOffset < 0 || r.IdentityOffset > fileLength-r.IdentityLength {
		return nil, corrupt("identity", r.IdentityOffset, "%d bytes: too many, or beyond the end", r.IdentityLength)
	}
	b := make([]byte, r.IdentityLength)
	if _, err := io.ReadFull(io.NewSectionReader(f, r.IdentityOffset, r.IdentityLength), b); err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	if sha256.Sum256(b) != r.IdentitySHA256 {
		return nil, corrupt("identity", r.IdentityOffset, "wrong SHA-256")
	}
	return b, nil
}
