package repo

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/zeebo/xxh3"

	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// forge changes a file's identity and makes all hashes anew that need no key.
func forge(t *testing.T, name, was, is string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	forged := bytes.Replace(b, []byte(was), []byte(is), 1)
	if bytes.Equal(forged, b) || len(forged) != len(b) {
		t.Fatalf("%s: nothing to forge", name)
	}
	b, be := forged, binary.BigEndian
	record := b[bytes.Index(b[:512], []byte("RBD2QCOW")):]
	off, n := be.Uint64(record[16:]), be.Uint64(record[24:])
	identity := sha256.Sum256(b[off : off+n])
	copy(record[32:], identity[:])
	clear(record[120:144])
	backing, n := be.Uint64(b[8:]), uint64(be.Uint32(b[16:]))
	hash := xxh3.Hash128(append(bytes.Clone(b[:512]), b[backing:backing+n]...)).Bytes()
	copy(record[120:], hash[:])
	be.PutUint64(record[136:], xxh3.Hash(record[:136]))
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestForgedIdentity has the identity of the newest point changed by somebody who has not the key.
func TestForgedIdentity(t *testing.T) {
	key, err := qcow2.NewDigestKey(bytes.Repeat([]byte{1}, qcow2.DigestKeySize))
	if err != nil {
		t.Fatal(err)
	}
	r, err := Init(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r.DigestKey = key
	f := r.Folder("vm")
	if err := f.Create(); err != nil {
		t.Fatal(err)
	}
	var names []PointName
	for i := range 2 {
		id := &Identity{Repository: r.ID(), PointID: uuid.NewString(), Folder: "vm", ClusterSize: sceneCluster, Created: time.Now()}
		id.Point = NextPointName(id.Created.Add(time.Duration(i)*time.Hour), "")
		id.Image.SetName("vm")
		id.Image.Size = sceneSize
		b, err := id.Encode()
		if err != nil {
			t.Fatal(err)
		}
		writeIdentity(t, f, id.Point, "", b)
		names = append(names, id.Point)
	}
	forge(t, f.Path(names[1]), `"name":"vm"`, `"name":"xx"`)
	if p := f.Point(names[0]); p.State == Damaged || !p.Header.IsKeyed(key) {
		t.Errorf("a good point is %s: %v", p.State, p.Err)
	}
	if p := f.Point(names[1]); p.State != Damaged {
		t.Errorf("a forged point is %s", p.State)
	}
	if name := r.ImageName(f); name != "vm" {
		t.Errorf("the image is %q", name)
	}
	r.DigestKey = nil
	f = r.Folder("vm")
	if p := f.Point(names[1]); p.State == Damaged || r.ImageName(f) != "xx" {
		t.Errorf("the test's forgery is none: %s, %v, image %q", p.State, p.Err, r.ImageName(f))
	}
	// One that never had the key, and is newer.
	b, err := os.ReadFile(f.Path(names[1]))
	if err != nil {
		t.Fatal(err)
	}
	identity := b[bytes.Index(b, []byte(`{"format"`)):]
	identity = identity[:bytes.IndexByte(identity, 0)]
	writeIdentity(t, f, names[1], "", bytes.TrimRight(identity, "\x00"))
	r.DigestKey = key
	if name := r.ImageName(r.Folder("vm")); name != "vm" {
		t.Errorf("with a newer point without the key the image is %q", name)
	}
}
