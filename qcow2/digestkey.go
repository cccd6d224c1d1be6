package qcow2

import (
	"encoding/hex"
	"fmt"
	"io"
	"sync"

	"github.com/zeebo/blake3"
	"github.com/zeebo/xxh3"
)

// DigestKeySize is the length of a key for digests in bytes.
const DigestKeySize = 32

// DigestKey makes digests that nobody makes who does not know the key: BLAKE3, keyed, cut to 16 bytes. So what a file holds
// can't be changed unnoticed, not even on purpose. A nil *DigestKey makes those that find damage: XXH3-128.
// It may be used concurrently.
type DigestKey struct {
	id KeyID
	// One key for each kind of thing, lest one passes for another.
	data, tables, header, notes keyedHash
}

// KeyID tells keys apart, and nothing else of them.
type KeyID [4]byte

// String is the id as the program shows it, in hex.
func (id KeyID) String() string { return hex.EncodeToString(id[:]) }

// keyContext begins what BLAKE3 derives all keys by, and the id.
const keyContext = "rbd2qcow2 2026 digests: "

// NewDigestKey makes a key of DigestKeySize secret bytes, which are copied.
func NewDigestKey(key []byte) (*DigestKey, error) {
	if len(key) != DigestKeySize {
		return nil, fmt.Errorf("key for digests of %d bytes: must be %d", len(key), DigestKeySize)
	}
	k := &DigestKey{}
	blake3.DeriveKey(keyContext+"id", key, k.id[:])
	for purpose, hash := range map[string]*keyedHash{"data": &k.data, "tables": &k.tables, "header": &k.header, "notes": &k.notes} {
		var derived [DigestKeySize]byte
		blake3.DeriveKey(keyContext+purpose, key, derived[:])
		if err := hash.init(derived[:]); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// ID is the id of the key.
func (k *DigestKey) ID() KeyID { return k.id }

func (k *DigestKey) algorithm() DigestAlgorithm {
	if k == nil {
		return XXH3
	}
	return BLAKE3
}

// digest is that of a cluster.
func (k *DigestKey) digest(b []byte) Digest {
	if k == nil {
		return xxh3.Hash128(b).Bytes()
	}
	return k.data.sum(b)
}

// tableDigest is that of what a table says, or of a digest block.
func (k *DigestKey) tableDigest(b []byte) Digest {
	if k == nil {
		return xxh3.Hash128(b).Bytes()
	}
	return k.tables.sum(b)
}

// NoteDigest is that of something that is kept beside files. The key must not be nil.
func (k *DigestKey) NoteDigest(b []byte) Digest { return k.notes.sum(b) }

// keyedHash is BLAKE3 with one key.
type keyedHash struct {
	hashers sync.Pool // of *blake3.Hasher
}

func (h *keyedHash) init(key []byte) error {
	keyed, err := blake3.NewKeyed(key)
	h.hashers.New = func() any { return keyed.Clone() }
	return err
}

func (h *keyedHash) sum(b []byte) (d Digest) {
	hasher := h.hashers.Get().(*blake3.Hasher)
	defer h.hashers.Put(hasher)
	hasher.Reset()
	_, _ = hasher.Write(b)            // never fails, as hashes do
	_, _ = hasher.Digest().Read(d[:]) // likewise
	return d
}

// is says whether two keys make the same digests.
func (k *DigestKey) is(other *DigestKey) bool {
	return k == other || k != nil && other != nil && k.id == other.id
}

// KeyError says that the digests of a file were made with a key that is not the one given.
type KeyError struct {
	Need KeyID
	Have *KeyID // nil: none was given
}

func (e *KeyError) Error() string {
	if e.Have == nil {
		return fmt.Sprintf("its digests were made with a key, of id %s, and none is given", e.Need)
	}
	return fmt.Sprintf("its digests were made with another key than the one given: of id %s, not %s", e.Need, e.Have)
}

// CheckKey compares the header, which was read from r, with the hash of it that needs the key. Where the file was made without a
// key, with another one, or where key is nil, it does nothing: see IsKeyed. The error is a *CorruptError, or r's.
func (h *Header) CheckKey(r io.ReaderAt, key *DigestKey) error {
	if !h.IsKeyed(key) {
		return nil
	}
	sector, err := readSector(r)
	if err != nil {
		return fmt.Errorf("read header: %w", err)
	}
	mac := keyedHeaderHash(sector, int(h.recordOffset), h.BackingFile, key)
	if mac != Digest(sector[h.recordOffset+recordKeyedHash:][:DigestSize]) {
		return corrupt("header", 0, "its keyed hash is another: it was changed by somebody who has not the key")
	}
	return nil
}

// IsKeyed says whether the file's digests were made with a key, by what its header says.
func (h *Header) IsKeyed(key *DigestKey) bool {
	return h.Record != nil && h.RecordError == nil && h.Record.Digests == BLAKE3 && key != nil && key.id == h.Record.KeyID
}

// useKey takes the key that the file's digests need, if it is the one given.
func (im *Image) useKey(given *DigestKey) error {
	im.given = given
	if im.header.IsKeyed(given) {
		im.key = given
	}
	return im.header.CheckKey(im.r, given)
}

// checkDigests says why the file's digests can't be compared with what it holds.
func (im *Image) checkDigests(r *Record) error {
	switch {
	case r.Digests == NoDigest:
		return ErrNoDigests
	case r.Digests == XXH3, r.Digests == BLAKE3 && im.key != nil:
		return nil
	case r.Digests == BLAKE3 && im.given == nil:
		return &KeyError{Need: r.KeyID}
	case r.Digests == BLAKE3:
		return &KeyError{Need: r.KeyID, Have: &im.given.id}
	}
	return &UnsupportedError{fmt.Sprintf("digest algorithm %d", r.Digests)}
}

// Keyed says whether what is read of this file is compared with digests that were made with the key given.
func (im *Image) Keyed() bool { return im.proof != nil && im.key != nil }
