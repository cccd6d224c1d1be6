package qcow2_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// Refcounts of files that outgrow several refcount blocks while they are written, counted anew from the tables by
// the words of the specification.
func TestWriterRefcounts(t *testing.T) {
	qemutest.Require(t, "qemu-img")
	for _, test := range []struct {
		cluster int64
		size    int64 // of a disk without gaps
		blocks  int   // that are there at least
	}{
		{512, 3 << 20, 12}, // one block covers 128 KiB of file
		{1 << 10, 4 << 20, 5},
		{4 << 10, 40 << 20, 3}, // one covers 8 MiB
	} {
		for name, codec := range map[string]qcow2.Codec{"none": nil, "zlib": qcow2.ZlibCodec(), "zstd": qcow2.ZstdCodec(1)} {
			t.Run(fmt.Sprint(test.cluster, " ", name), func(t *testing.T) {
				t.Parallel()
				r := newRand(uint64(test.cluster))
				content := make([]byte, test.size)
				for off := int64(0); off < test.size; off += test.cluster {
					if part := content[off : off+test.cluster]; r.IntN(3) == 0 {
						noise(r, part)
					} else { // shrinks to something between nothing and its half
						noise(r, part[:r.IntN(len(part)/2)])
						part[len(part)-1] = 1
					}
				}
				file := filepath.Join(t.TempDir(), "a.qcow2")
				b := writeFile(t, qcow2.WriterOptions{ClusterSize: test.cluster, Codec: codec}, content, "identity")
				if err := os.WriteFile(file, b, 0o600); err != nil {
					t.Fatal(err)
				}
				if blocks := checkRefcounts(t, b); blocks < test.blocks {
					t.Errorf("%d refcount blocks, want at least %d", blocks, test.blocks)
				}
				qemutest.Check(t, file)
			})
		}
	}
}

// checkRefcounts compares the refcounts of a file with the references in it, the COPIED flags too, and gives the
// number of refcount blocks. Check has to agree.
func checkRefcounts(t *testing.T, b []byte) int {
	t.Helper()
	checkSound(t, b)
	be := binary.BigEndian
	cluster := uint64(1) << be.Uint32(b[20:])
	entries := func(off, n uint64) []uint64 {
		list := make([]uint64, n)
		for i := range list {
			list[i] = be.Uint64(b[off+uint64(i)*8:])
		}
		return list
	}
	stored := make(map[uint64]uint64) // by host cluster
	want := make(map[uint64]uint64)
	refer := func(off, n uint64) { // the bytes from off
		for c := off / cluster; n > 0 && c <= (off+n-1)/cluster; c++ {
			want[c]++
		}
	}
	refer(0, cluster)
	table, tableLength := be.Uint64(b[48:]), uint64(be.Uint32(b[56:]))*cluster
	refer(table, tableLength)
	blocks := 0
	for i, block := range entries(table, tableLength/8) {
		if block == 0 {
			continue
		}
		blocks++
		refer(block, cluster)
		for j := range cluster / 2 {
			if n := be.Uint16(b[block+2*j:]); n > 0 {
				stored[uint64(i)*cluster/2+j] = uint64(n)
			}
		}
	}
	var single []uint64 // offsets of clusters with COPIED
	l1, l1Size := be.Uint64(b[40:]), uint64(be.Uint32(b[36:]))
	refer(l1, l1Size*8)
	for _, e := range entries(l1, l1Size) {
		if e == 0 {
			continue
		}
		l2 := e &^ (1 << 63)
		single = append(single, l2)
		refer(l2, cluster)
		for _, e := range entries(l2, cluster/8) {
			switch x := 62 - (be.Uint32(b[20:]) - 8); {
			case e&(1<<62) != 0:
				off, more := e&(1<<x-1), e&^(1<<62)>>x
				refer(off, (off/512+1+more)*512-off)
			case e > 1:
				single = append(single, e&^(1<<63))
				refer(e&^(1<<63), cluster)
			}
		}
	}
	compareRefcounts(t, stored, want)
	for _, off := range single {
		if want[off/cluster] != 1 {
			t.Errorf("cluster at %d: COPIED, but %d references", off, want[off/cluster])
		}
	}
	return blocks
}

func compareRefcounts(t *testing.T, stored, want map[uint64]uint64) {
	t.Helper()
	var wrong []uint64
	for c := range want {
		if stored[c] != want[c] {
			wrong = append(wrong, c)
		}
	}
	for c := range stored {
		if want[c] == 0 {
			wrong = append(wrong, c)
		}
	}
	slices.Sort(wrong)
	for _, c := range wrong[:min(len(wrong), 10)] {
		t.Errorf("cluster %d: refcount %d, but %d references", c, stored[c], want[c])
	}
}

// Compressed data shares clusters: what lies between clusters that don't compress loses little room at their borders.
func TestWriterPacksTightly(t *testing.T) {
	const cluster = 64 << 10
	r := newRand(1)
	content := make([]byte, 8<<20)
	for off := 0; off < len(content); off += cluster {
		if part := content[off : off+cluster]; off/cluster%2 == 0 {
			noise(r, part)
		} else {
			noise(r, part[:cluster*5/8]) // so that the next one never fits into the same cluster
			part[cluster-1] = 1
		}
	}
	file := writeFile(t, qcow2.WriterOptions{ClusterSize: cluster, Codec: qcow2.ZstdCodec(1)}, content, "")
	stored := int64(len(content)) / 2 * 13 / 8
	if n := int64(len(file)); n > stored*104/100+512<<10 {
		t.Errorf("%d bytes for %d", n, stored)
	}
}
