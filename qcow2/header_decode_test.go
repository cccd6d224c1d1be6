package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

func put32(b []byte, at int, v uint32) { binary.BigEndian.PutUint32(b[at:], v) }
func put64(b []byte, at int, v uint64) { binary.BigEndian.PutUint64(b[at:], v) }

func TestReadHeaderDamaged(t *testing.T) {
	// One of QEMU's with a backing file at 512 bytes or more, so that there is room for extensions.
	original, err := os.ReadFile("testdata/overlay.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		change func(b []byte)
		want   string // part of the message; "" for a header that is fine
	}{
		{"as it is", func([]byte) {}, ""},
		{"magic", func(b []byte) { b[0] = 0 }, "not a qcow2 file"},
		{"version 1", func(b []byte) { put32(b, 4, 1) }, "version 1"},
		{"version 4", func(b []byte) { put32(b, 4, 4) }, "version 4"},
		{"cluster bits 8", func(b []byte) { put32(b, 20, 8) }, "cluster bits 8"},
		{"cluster bits 22", func(b []byte) { put32(b, 20, 22) }, "cluster bits 22"},
		{"encryption", func(b []byte) { put32(b, 32, 2) }, "encryption"},
		{"backing file name too long", func(b []byte) { put32(b, 16, 1024) }, "backing file name of 1024 bytes"},
		{"backing file name outside", func(b []byte) { put64(b, 8, 510) }, "not inside the first cluster"},
		{"backing file name in header", func(b []byte) { put64(b, 8, 100) }, "inside the header"},
		{"backing file name far outside", func(b []byte) { put64(b, 8, 1<<63) }, "too large"},
		{"backing file name with NUL", func(b []byte) { b[binary.BigEndian.Uint64(b[8:])+1] = 0 }, "NUL"},
		{"size 2^63", func(b []byte) { put64(b, 24, 1<<63) }, "too large"},
		{"size 2^62", func(b []byte) { put64(b, 24, 1<<62) }, "too large for clusters"},
		{"size beyond the L1 table", func(b []byte) { put64(b, 24, 1<<20) }, "too small for a virtual size"},
		{"L1 table too large", func(b []byte) { put32(b, 36, 1<<31) }, "L1 table of 2147483648 entries"},
		{"L1 table longer than the file", func(b []byte) { put32(b, 36, 4<<20) }, "behind the end"},
		{"L1 table unaligned", func(b []byte) { put64(b, 40, 520) }, "not at a cluster"},
		{"L1 table at 0", func(b []byte) { put64(b, 40, 0) }, "not at a cluster"},
		{"L1 table beyond the end", func(b []byte) { put64(b, 40, 1<<40) }, "behind the end"},
		{"no refcount table", func(b []byte) { put32(b, 56, 0) }, "refcount table of 0"},
		{"refcount table too large", func(b []byte) { put32(b, 56, 1<<15) }, "refcount table of 32768"},
		{"refcount table unaligned", func(b []byte) { put64(b, 48, 513) }, "refcount table at offset 513"},
		{"too many snapshots", func(b []byte) { put32(b, 60, 65537) }, "65537 internal snapshots"},
		{"dirty", func(b []byte) { b[79] |= 1 }, ""},
		{"corrupt", func(b []byte) { b[79] |= 2 }, "marked corrupt"},
		{"external data file", func(b []byte) { b[79] |= 4 }, "external data file"},
		{"extended L2", func(b []byte) { b[79] |= 16 }, "extended L2"},
		{"unknown feature", func(b []byte) { b[72] |= 128; b[79] |= 32 }, "bit 5, incompatible feature bit 63"},
		{"compatible features", func(b []byte) { put64(b, 80, 1<<63) }, ""},
		{"autoclear features", func(b []byte) { put64(b, 88, 1<<63) }, ""},
		{"refcount order", func(b []byte) { put32(b, 96, 7) }, "refcount order 7"},
		{"header length 96", func(b []byte) { put32(b, 100, 96) }, "header length 96"},
		{"header length 105", func(b []byte) { put32(b, 100, 105) }, "header length 105"},
		{"header length 1024", func(b []byte) { put32(b, 100, 1024) }, "header length 1024"},
		{"zstd without the feature", func(b []byte) { b[104] = 1 }, "contradicts"},
		{"the feature without zstd", func(b []byte) { b[79] |= 8 }, "contradicts"},
		{"the feature without the field", func(b []byte) { b[79] |= 8; put32(b, 100, 104); b[104] = 1 }, "contradicts"},
		{"unknown compression", func(b []byte) { b[79] |= 8; b[104] = 2 }, "compression type 2"},
		{"extension too long", func(b []byte) { put32(b, 116, 1<<31) }, "too long"},
		{"format too long", func(b []byte) { put32(b, 112, 0xe2792aca); put32(b, 116, 16) }, "backing format of 16 bytes"},
		{"unknown extension", func(b []byte) { put32(b, 112, 0x12345678) }, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := bytes.Clone(original)
			test.change(b)
			_, err := qcow2.ReadHeader(bytes.NewReader(b), int64(len(b)))
			var corrupt *qcow2.CorruptError
			var unsupported *qcow2.UnsupportedError
			switch {
			case test.want == "":
				if err != nil {
					t.Error(err)
				}
			case err == nil || !strings.Contains(err.Error(), test.want):
				t.Errorf("got %v, want %q", err, test.want)
			case !errors.As(err, &corrupt) && !errors.As(err, &unsupported) && !errors.Is(err, qcow2.ErrNotQcow2):
				t.Errorf("%v is not typed", err)
			}
		})
	}
}

func TestReadHeaderShort(t *testing.T) {
	original, err := os.ReadFile("testdata/zstd.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	for n := range 1024 {
		if _, err := qcow2.ReadHeader(bytes.NewReader(original[:n]), int64(n)); err == nil {
			t.Errorf("%d bytes: no error", n)
		}
	}
	// A file that is shorter than its length says, as on a failing disk.
	if _, err := qcow2.ReadHeader(bytes.NewReader(original[:50]), int64(len(original))); err == nil {
		t.Error("short read: no error")
	}
}

// Files of ours, damaged files of ours, and files of others are three things.
func TestReadHeaderRecord(t *testing.T) {
	ours := writeFile(t, qcow2.WriterOptions{ClusterSize: 4 << 10}, guest(8<<10, 1), "identity")
	foreign, err := os.ReadFile("testdata/zstd.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(ours, []byte("RBD2QCOW"))
	twice := bytes.Clone(ours)
	copy(twice[at+128:], ours[at-8:at+128])
	for _, test := range []struct {
		name         string
		file         []byte
		record, fail bool
	}{
		{"ours", ours, true, false},
		{"foreign", foreign, false, false},
		{"magic", flip(ours, at), false, true},
		{"version", flip(ours, at+9), false, true},
		{"hash", flip(ours, at+32), false, true},
		{"length", flip(ours, at-1), false, true},
		{"twice", twice, false, true},
	} {
		h, err := qcow2.ReadHeader(bytes.NewReader(test.file), int64(len(test.file)))
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if (h.Record != nil) != test.record || (h.RecordError != nil) != test.fail {
			t.Errorf("%s: record %v, error %v", test.name, h.Record, h.RecordError)
		}
		im, err := openBytes(test.file, nil)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		_, err = im.Identity()
		if (err == nil) != test.record || errors.Is(err, qcow2.ErrNoRecord) != (!test.record && !test.fail) {
			t.Errorf("%s: identity: %v", test.name, err)
		}
	}
}

// Every use of a damaged entry is an error with the guest offset: never zeroes, never other data.
func TestReadDamagedEntry(t *testing.T) {
	original, err := os.ReadFile("testdata/version2.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	be := binary.BigEndian
	l1 := int(be.Uint64(original[40:]))
	l2 := int(be.Uint64(original[l1:]) & 0x00fffffffffffe00)
	const data, compressed = 16, 2 // entries of those kinds, see testdata/make.sh
	for _, test := range []struct {
		name  string
		at    int
		entry uint64
		index int64 // of the guest cluster
	}{
		{"L1 reserved bit", l1, be.Uint64(original[l1:]) | 1, 0},
		{"L1 beyond the end", l1, 1<<63 | 1<<40, 0},
		{"L1 copied without offset", l1, 1 << 63, 0},
		{"L2 reserved bit", l2 + 8*data, be.Uint64(original[l2+8*data:]) | 2, data},
		{"L2 high reserved bit", l2 + 8*data, be.Uint64(original[l2+8*data:]) | 1<<61, data},
		{"L2 beyond the end", l2 + 8*data, 1<<63 | 1<<40, data},
		{"L2 copied without offset", l2 + 8*data, 1 << 63, data},
		{"zero in version 2", l2 + 8*data, 1, data},
		{"compressed, copied", l2 + 8*compressed, be.Uint64(original[l2+8*compressed:]) | 1<<63, compressed},
		{"compressed beyond the end", l2 + 8*compressed, 1<<62 | 1<<40, compressed},
		{"compressed, offset of 57 bits", l2 + 8*compressed, be.Uint64(original[l2+8*compressed:]) | 1<<57, compressed},
		{"compressed in the header", l2 + 8*compressed, 1<<62 | 100, compressed},
		{"compressed data that is none", l2 + 8*compressed, 1<<62 | uint64(l1), compressed},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := bytes.Clone(original)
			put64(b, test.at, test.entry)
			im, err := openBytes(b, nil)
			if err != nil {
				t.Fatal(err)
			}
			var corrupt *qcow2.CorruptError
			n, err := im.ReadAt(make([]byte, im.Size()), 0)
			if !errors.As(err, &corrupt) || int64(n) != test.index*512 {
				t.Fatalf("read: %d bytes, %v", n, err)
			}
			if !strings.HasPrefix(test.name, "L1") && corrupt.Offset != test.index*512 {
				t.Errorf("read: offset %d, want %d", corrupt.Offset, test.index*512)
			}
			err = im.CheckStructure(t.Context())
			if !errors.As(err, &corrupt) && test.name != "compressed data that is none" {
				t.Errorf("check: %v", err)
			}
		})
	}
}
