package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// region is a part of a file whose damage may go unnoticed, and why that is right.
type region struct {
	why      string
	from, to int64
	bits     byte // which ones; 0: all of them
}

// unchecked lists the parts of a file that neither its structure nor its digests tell anything about.
func unchecked(t *testing.T, b []byte) []region {
	t.Helper()
	h, err := qcow2.ReadHeader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	be, size := binary.BigEndian, h.ClusterSize()
	name := min(512, size) // of the backing file: behind it the first cluster is empty
	regions := []region{
		{"rest of the first cluster", name + int64(len(h.BackingFile)), size, 0},
		{"end of the L1 table's last cluster", h.L1Offset + int64(h.L1Size)*8, (h.L1Offset + int64(h.L1Size)*8 + size - 1) / size * size, 0},
		{"refcount table", h.RefTableOffset, h.RefTableOffset + int64(h.RefTableClusters)*size, 0},
		{"refcount blocks", h.RefTableOffset, h.Record.IdentityOffset, 0}, // the last ones lie behind the table
		{"gap before the directory", h.Record.IdentityOffset + h.Record.IdentityLength, h.Record.DirectoryOffset, 0},
	}
	for at := h.RefTableOffset; at < h.RefTableOffset+int64(h.RefTableClusters)*size; at += 8 {
		if block := int64(be.Uint64(b[at:])); block != 0 {
			regions = append(regions, region{"refcount block", block, block + size, 0})
		}
	}
	used := make([]bool, len(b)) // by data and tables
	mark := func(from, to int64) {
		for i := from; i < min(to, int64(len(b))); i++ {
			used[i] = true
		}
	}
	mark(0, size)
	mark(h.L1Offset, int64(len(b)))
	for i := range int64(h.L1Size) {
		at := h.L1Offset + i*8
		regions = append(regions, region{"COPIED of an L1 entry", at, at + 1, 0x80})
		table := int64(be.Uint64(b[at:]) & 0x00fffffffffffe00)
		if table == 0 {
			continue
		}
		mark(table, table+size)
		for at := table; at < table+size; at += 8 {
			e := be.Uint64(b[at:])
			if e&(1<<62) == 0 {
				regions = append(regions, region{"COPIED of an L2 entry", at, at + 1, 0x80})
				if e&1 == 0 && e != 0 {
					mark(int64(e&0x00fffffffffffe00), int64(e&0x00fffffffffffe00)+size)
				}
				continue
			}
			x := 62 - (h.ClusterBits - 8)
			off, sectors := int64(e&(1<<x-1)), int64(e&(1<<62-1)>>x)
			regions = append(regions, region{"number of sectors: it may be larger than needed", at, at + 2, 0})
			end := (off/512 + 1 + sectors) * 512
			mark(off, end)
			regions = append(regions, region{"compressed data: some bits say nothing of what it decompresses to", off, end, 0})
		}
	}
	for i, u := range used {
		if !u {
			regions = append(regions, region{"unused", int64(i), int64(i) + 1, 0})
		}
	}
	return regions
}

// Damage of a single bit anywhere in a file is found, or lies where it changes nothing that a guest or we can read.
func TestVerifyFindsEveryFlippedBit(t *testing.T) {
	below, err := openBytes(writeFile(t, qcow2.WriterOptions{ClusterSize: 512}, guest(8<<10, 3), "below"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]qcow2.WriterOptions{
		"none":    {ClusterSize: 512},
		"zlib":    {ClusterSize: 1 << 10, Codec: qcow2.ZlibCodec()},
		"zstd":    {ClusterSize: 512, Codec: qcow2.ZstdCodec(3)},
		"backing": {ClusterSize: 1 << 10, Codec: qcow2.ZstdCodec(3), BackingFile: "./below.qcow2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := writeFile(t, o, guest(5<<10, 4), "the identity of this file")
			content, identity, err := inspect(file, below)
			if err != nil {
				t.Fatal(err)
			}
			allowed := unchecked(t, file)
			if n := flipEveryBit(t, file, below, content, identity, allowed); n < len(file)/2 {
				t.Errorf("only %d of %d bytes tried", n, len(file))
			}
		})
	}
}

// flipEveryBit flips one bit of each byte, and each bit of those that are not data, and gives the number of bytes tried.
func flipEveryBit(t *testing.T, file []byte, below *qcow2.Image, content, identity []byte, allowed []region) int {
	tried := 0
	for at := range file {
		tried++
		for bit := range 8 {
			if at > 512 && bit != at%8 {
				continue
			}
			mask := byte(1) << bit
			file[at] ^= mask
			gotContent, gotIdentity, err := inspect(file, below)
			file[at] ^= mask
			if err != nil {
				var corrupt *qcow2.CorruptError
				var unsupported *qcow2.UnsupportedError
				if at >= 1024 && !errors.As(err, &corrupt) && !errors.As(err, &unsupported) {
					t.Errorf("byte %d, bit %d: %v is not a CorruptError", at, bit, err)
				}
				continue
			}
			if why := reason(allowed, at, mask); why == "" {
				t.Errorf("byte %d (%#x), bit %d: not found", at, file[at], bit)
			}
			if !bytes.Equal(gotContent, content) || !bytes.Equal(gotIdentity, identity) {
				t.Errorf("byte %d, bit %d: not found, but other content", at, bit)
			}
		}
	}
	return tried
}

func reason(regions []region, at int, mask byte) string {
	for _, r := range regions {
		if int64(at) >= r.from && int64(at) < r.to && (r.bits == 0 || r.bits&mask != 0) {
			return r.why
		}
	}
	return ""
}
