package qcow2_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// newKey makes a key of bytes that are all the same.
func newKey(t testing.TB, b byte) *qcow2.DigestKey {
	t.Helper()
	k, err := qcow2.NewDigestKey(bytes.Repeat([]byte{b}, qcow2.DigestKeySize))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func openKeyed(b []byte, key *qcow2.DigestKey, prove bool) (*qcow2.Image, error) {
	return qcow2.Open(bytes.NewReader(b), int64(len(b)), qcow2.OpenOptions{Prove: prove, Alone: true, Key: key})
}

// verifyKeyed is what is wrong with a file in the eyes of who has the key.
func verifyKeyed(b []byte, key *qcow2.DigestKey) error {
	im, err := openKeyed(b, key, false)
	if err != nil {
		return err
	}
	if _, err := im.Identity(); err != nil {
		return err
	}
	return im.VerifyDigests(context.Background())
}

// checkKeyed is the first thing that Check finds for who has the key.
func checkKeyed(b []byte, key *qcow2.DigestKey) (found error) {
	im, err := openKeyed(b, key, true)
	if err != nil {
		return err
	}
	report := func(f qcow2.Finding) { found = errors.Join(found, errors.New(f.Message)) }
	_, err = im.Check(context.Background(), qcow2.CheckOptions{Data: true, Report: report})
	return errors.Join(found, err)
}

// Digests that were made with a key prove nothing to who has another one, or none; structure and identity are there for all.
func TestDigestKey(t *testing.T) {
	key, content := newKey(t, 1), guest(40<<10, 3)
	b := writeFile(t, qcow2.WriterOptions{ClusterSize: 4 << 10, Codec: qcow2.ZstdCodec(1), Key: key}, content, "identity")
	im, err := openKeyed(b, key, true)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, im.Size())
	if _, err := im.ReadAt(got, 0); err != nil || !bytes.Equal(got[:len(content)], content) || !im.Keyed() {
		t.Errorf("read: keyed %t, error %v", im.Keyed(), err)
	}
	if err := verifyKeyed(b, key); err != nil {
		t.Error(err)
	}
	if _, err := im.Check(t.Context(), qcow2.CheckOptions{Data: true, Report: func(f qcow2.Finding) { t.Error(f) }}); err != nil {
		t.Error(err)
	}
	for name, other := range map[string]*qcow2.DigestKey{"another key": newKey(t, 2), "no key": nil} {
		var wrong *qcow2.KeyError
		if err := verifyKeyed(b, other); !errors.As(err, &wrong) || wrong.Need != key.ID() || (wrong.Have == nil) != (other == nil) {
			t.Errorf("verify with %s: %v", name, err)
		}
		if _, err := openKeyed(b, other, true); !errors.As(err, &wrong) {
			t.Errorf("open with %s: %v", name, err)
		}
		im, err := openKeyed(b, other, false)
		if err != nil {
			t.Fatal(err)
		}
		if id, err := im.Identity(); err != nil || string(id) != "identity" {
			t.Errorf("identity with %s: %q, %v", name, id, err)
		}
		if _, err := im.Check(t.Context(), qcow2.CheckOptions{Data: true}); !errors.As(err, &wrong) {
			t.Errorf("check with %s: %v", name, err)
		}
	}
}

// Who does not have the key changes nothing unnoticed, however well he knows the format.
func TestDigestKeyForged(t *testing.T) {
	key := newKey(t, 1)
	b := writeFile(t, qcow2.WriterOptions{ClusterSize: 512, Key: key}, guest(9<<10, 3), "identity")
	for at := range b {
		changed := bytes.Clone(b)
		changed[at] ^= 1
		changed = seal(changed)
		if !bytes.Equal(changed, b) && checkKeyed(changed, key) == nil {
			t.Errorf("byte %d was changed, and all hashes that need no key put right: not noticed", at)
		}
	}
	forged := bytes.Clone(b)
	forged[bytes.Index(b, []byte("identity"))] = 'I'
	if err := verifyKeyed(seal(forged), nil); !errors.As(err, new(*qcow2.KeyError)) {
		t.Errorf("the test's forgery is none: %v", err)
	}
	plain := writeFile(t, qcow2.WriterOptions{ClusterSize: 512}, guest(9<<10, 3), "identity")
	if im, err := openKeyed(plain, key, true); err != nil || im.Keyed() {
		t.Errorf("a file without keyed digests: keyed, or %v", err)
	}
}

func TestDigestKeyMisuse(t *testing.T) {
	if _, err := qcow2.NewDigestKey([]byte("short")); err == nil {
		t.Error("a key of 5 bytes was accepted")
	}
	w, err := qcow2.NewWriter(&ramFile{}, qcow2.WriterOptions{Size: 512, ClusterSize: 512, Key: newKey(t, 1)})
	if err != nil {
		t.Fatal(err)
	}
	e, err := qcow2.NewChunkEncoder(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &qcow2.Chunk{Data: bytes.Repeat([]byte{7}, 512)}
	if err := e.Encode(c, 512); err != nil {
		t.Fatal(err)
	}
	if err := w.Append(c); err == nil {
		t.Error("digests without the key in a file with one")
	}
}
