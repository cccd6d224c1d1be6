package qcow2

import (
	"encoding/hex"
	"fmt"
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
	id      KeyID
	hashers sync.Pool // of *blake3.Hasher
}

// KeyID tells keys apart, and nothing else of them.
type KeyID [4]byte

// String is the id as the program shows it, in hex.
func (id KeyID) String() string { return hex.EncodeToString(id[:]) }

// keyIDContext is what BLAKE3 derives a key's id by.
const keyIDContext = "rbd2qcow2 2026 id of a key for digests"

// NewDigestKey makes a key of DigestKeySize secret bytes, which are copied.
func NewDigestKey(key []byte) (*DigestKey, error) {
	keyed, err := blake3.NewKeyed(key)
	if err != nil {
		return nil, fmt.Errorf("key for digests of %d bytes: must be %d", len(key), DigestKeySize)
	}
	k := &DigestKey{hashers: sync.Pool{New: func() any { return keyed.Clone() }}}
	blake3.DeriveKey(keyIDContext, key, k.id[:])
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

// digest is that of b.
func (k *DigestKey) digest(b []byte) (d Digest) {
	if k == nil {
		return xxh3.Hash128(b).Bytes()
	}
	h := k.hashers.Get().(*blake3.Hasher)
	defer k.hashers.Put(h)
	h.Reset()
	_, _ = h.Write(b)            // never fails, as hashes do
	_, _ = h.Digest().Read(d[:]) // likewise
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

// useKey takes the key that the file's digests need, if it is the one given, and checks by it that nobody has changed the header.
func (im *Image) useKey(given *DigestKey) error {
	h := im.header
	im.given = given
	if h.Record == nil || h.RecordError != nil || h.Record.Digests != BLAKE3 || given == nil || given.id != h.Record.KeyID {
		return nil
	}
	im.key = given
	sector, err := readSector(im.r)
	if err != nil {
		return fmt.Errorf("read header: %w", err)
	}
	mac := keyedHash(sector, int(h.recordOffset), h.BackingFile, given)
	if mac != Digest(sector[h.recordOffset+recordKeyedHash:][:DigestSize]) {
		h.RecordError = corrupt("header", 0, "its keyed hash is another: it was changed by somebody who has not the key")
	}
	return nil
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
