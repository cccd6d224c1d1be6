package qcow2_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
	"github.com/zeebo/xxh3"
)

const (
	fuzzMemory = 64 << 20 // what one file may make us allocate, bytes
	fuzzTime   = 10 * time.Second
	fuzzInput  = 256 << 10
)

// FuzzOpen takes any bytes for a file: no panic, no hang, no memory beyond what is stated, and where there is no
// error the methods agree with each other.
func FuzzOpen(f *testing.F) {
	for _, seed := range seeds(f) {
		f.Add(seed)
	}
	below, err := openBytes(writeFile(f, qcow2.WriterOptions{ClusterSize: 512}, guest(8<<10, 3), "below"), nil)
	if err != nil {
		f.Fatal(err)
	}
	key := newKey(f, 1)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > fuzzInput {
			t.Skip("longer than what is tried")
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		exercise(t, b, below, key)
		exercise(t, seal(b), below, key)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 2*fuzzMemory {
			t.Errorf("%d bytes allocated for a file of %d, twice", n, len(b))
		}
	})
}

// seeds are files of QEMU's and of our own Writer.
func seeds(t testing.TB) [][]byte {
	t.Helper()
	names, err := filepath.Glob("testdata/*.qcow2")
	if err != nil || len(names) < 3 {
		t.Fatalf("%d seeds in testdata: %v", len(names), err)
	}
	var files [][]byte
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, b)
	}
	for _, o := range []qcow2.WriterOptions{
		{ClusterSize: 512, Codec: qcow2.ZlibCodec()},
		{ClusterSize: 1 << 10, Codec: qcow2.ZstdCodec(3), BackingFile: "./below.qcow2"},
		{ClusterSize: 512},
		{ClusterSize: 512, Key: newKey(t, 1)},
	} {
		files = append(files, writeFile(t, o, guest(8<<10, 6), "identity"))
	}
	return files
}

func exercise(t *testing.T, b []byte, below *qcow2.Image, key *qcow2.DigestKey) {
	im, err := qcow2.Open(bytes.NewReader(b), int64(len(b)), qcow2.OpenOptions{
		Key:     key,
		Backing: func(string, string) (*qcow2.Image, error) { return below, nil },
	})
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), fuzzTime)
	defer cancel()
	_, _ = im.Identity()
	structure, digests := im.CheckStructure(ctx), im.VerifyDigests(ctx)
	if ctx.Err() != nil {
		t.Fatalf("check and verify took more than %s", fuzzTime)
	}
	p := make([]byte, 64<<10)
	for _, off := range []int64{0, im.Size() / 2, im.Size() - 512} {
		n, err := im.ReadAt(p, max(off, 0))
		var corrupt *qcow2.CorruptError
		if errors.As(err, &corrupt) && structure == nil && digests == nil {
			t.Errorf("read at %d: %v, but nothing is wrong with structure and digests", off, err)
		}
		if n < 0 || n > len(p) {
			t.Errorf("read at %d: %d bytes", off, n)
		}
	}
	off := int64(0)
	for range 1000 {
		e, err := im.Extent(off)
		if err != nil {
			break
		}
		if e.Offset != off || e.Length <= 0 || e.Length > im.Size()-off {
			t.Fatalf("extent at %d: %+v", off, e)
		}
		off += e.Length
	}
}

// seal makes the checksums of a record right again, so that what lies behind them is tried too.
func seal(b []byte) []byte {
	b = bytes.Clone(b)
	at := bytes.Index(b[:min(len(b), 512)], []byte("RBD2QCOW"))
	if at < 0 || at+144 > min(len(b), 512) || len(b) < 512 {
		return b
	}
	record, be := b[at:at+144], binary.BigEndian
	area := func(i int) []byte {
		off, n := be.Uint64(record[i:]), be.Uint64(record[i+8:])
		if off > uint64(len(b)) || n > uint64(len(b))-off {
			return nil
		}
		return b[off : off+n]
	}
	directory := area(64)
	for len(directory) >= 32 {
		count, off := uint64(be.Uint32(directory[4:])), be.Uint64(directory[8:])
		if n := 16 * (1 + count); off < uint64(len(b)) && n <= uint64(len(b))-off {
			hash := xxh3.Hash128(b[off : off+n]).Bytes()
			copy(directory[16:32], hash[:])
		}
		directory = directory[32:]
	}
	for _, i := range []int{16, 64} {
		hash := sha256.Sum256(area(i))
		copy(record[i+16:], hash[:])
	}
	be.PutUint64(record[112:], uint64(len(b)))
	clear(record[120:])
	header := bytes.Clone(b[:512])
	if name, n := be.Uint64(b[8:]), uint64(be.Uint32(b[16:])); name < uint64(len(b)) && n <= uint64(len(b))-name {
		header = append(header, b[name:name+n]...)
	}
	hash := xxh3.Hash128(header).Bytes()
	copy(record[120:], hash[:])
	be.PutUint64(record[136:], xxh3.Hash(record[:136]))
	return b
}

// What seal makes of a whole file is that file.
func TestSeal(t *testing.T) {
	for _, o := range []qcow2.WriterOptions{{ClusterSize: 512}, {ClusterSize: 1 << 10, BackingFile: "./below.qcow2"}} {
		b := writeFile(t, o, guest(8<<10, 6), "identity")
		if !bytes.Equal(seal(b), b) {
			t.Error("another file")
		}
	}
}
