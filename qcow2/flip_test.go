package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// region is a part of a file whose damage may go unnoticed, and why that is right.
type region struct {
	why      string
	from, to int64
}

// layout is what the words of docs/format.md and the qcow2 specification make of a file that is not damaged.
type layout struct {
	cluster    int64
	size       int64 // of the disk
	used       []bool
	nameEnd    int64 // of the backing file's, or of the header, in steps of 8 bytes
	compressed []region
	data       []region // that are not compressed
}

func newLayout(b []byte) *layout {
	be := binary.BigEndian
	l := &layout{cluster: 1 << be.Uint32(b[20:]), size: int64(be.Uint64(b[24:])), used: make([]bool, len(b))}
	name := int64(be.Uint64(b[8:]))
	l.mark(0, 512)
	l.nameEnd = (max(512, name+int64(be.Uint32(b[16:]))) + 7) / 8 * 8
	l.mark(name, name+int64(be.Uint32(b[16:])))
	refTable := int64(be.Uint64(b[48:]))
	l.mark(refTable, refTable+int64(be.Uint32(b[56:]))*l.cluster)
	for at := refTable; at < refTable+int64(be.Uint32(b[56:]))*l.cluster; at += 8 {
		if block := int64(be.Uint64(b[at:])); block != 0 {
			l.mark(block, block+l.cluster)
		}
	}
	l1, n := int64(be.Uint64(b[40:])), int64(be.Uint32(b[36:]))
	l.mark(l1, l1+n*8)
	for i := range n {
		if table := int64(be.Uint64(b[l1+i*8:]) & 0x00fffffffffffe00); table != 0 {
			l.mark(table, table+l.cluster)
			l.addTable(b, table, i*l.cluster/8*l.cluster)
		}
	}
	record := bytes.Index(b[:512], []byte("RBD2QCOW"))
	for _, area := range []int{16, 64} {
		off, n := int64(be.Uint64(b[record+area:])), int64(be.Uint64(b[record+area+8:]))
		l.mark(off, off+n)
		for ; area == 64 && n > 0; off, n = off+32, n-32 {
			block := int64(be.Uint64(b[off+8:]))
			l.mark(block, block+16*(1+int64(be.Uint32(b[off+4:]))))
		}
	}
	return l
}

func (l *layout) addTable(b []byte, table, guest int64) {
	x := 62 - (binary.BigEndian.Uint32(b[20:]) - 8)
	for at := table; at < table+l.cluster; at, guest = at+8, guest+l.cluster {
		switch e := binary.BigEndian.Uint64(b[at:]); {
		case e&(1<<62) != 0:
			off, more := int64(e&(1<<x-1)), int64(e&(1<<62-1)>>x)
			l.compressed = append(l.compressed, region{"compressed", off, min((off/512+1+more)*512, int64(len(b)))})
		case e > 1:
			host := int64(e & 0x00fffffffffffe00)
			l.data = append(l.data, region{"data", host, host + min(l.cluster, l.size-guest)})
			l.mark(host, host+min(l.cluster, l.size-guest))
		}
	}
}

func (l *layout) mark(from, to int64) {
	for i := from; i < min(to, int64(len(l.used))); i++ {
		l.used[i] = true
	}
}

// reason says why the damage of a byte may go unnoticed.
func (l *layout) reason(at int64, folded bool) string {
	for _, r := range l.compressed {
		if at >= r.from && at < r.to {
			return "compressed data that decompresses to the same"
		}
	}
	switch {
	case at == l.nameEnd && l.cluster > 512:
		return "where a fold that was undone leaves a name"
	case folded && !l.used[at]:
		return "unused"
	}
	return ""
}

// flipTest is a file whose bytes are to be damaged.
type flipTest struct {
	name   string
	file   []byte
	folded bool
	every  int // how many bytes behind the header there are for one that is tried; of a small file 1 with RBD2QCOW2_SEEDS
}

func flipTests(t *testing.T) []flipTest {
	t.Helper()
	file := func(size int64, o qcow2.WriterOptions) []byte {
		return writeFile(t, o, guest(size, 7), "the identity of this file")
	}
	zlib, zstd, below := qcow2.ZlibCodec(), qcow2.ZstdCodec(3), "./below.qcow2"
	return []flipTest{
		{"none", file(9<<10, qcow2.WriterOptions{ClusterSize: 512}), false, 4},
		{"zlib", file(40<<10, qcow2.WriterOptions{ClusterSize: 1 << 10, Codec: zlib}), false, 20},
		{"zstd", file(20<<10, qcow2.WriterOptions{ClusterSize: 512, Codec: zstd}), false, 10},
		{"backing", file(40<<10, qcow2.WriterOptions{ClusterSize: 4 << 10, Codec: zstd, BackingFile: below}), false, 20},
		{"packed", file(1021<<10, qcow2.WriterOptions{ClusterSize: 64 << 10, Codec: zstd, BackingFile: below}), false, 2000},
		{"packed, zlib", file(1021<<10, qcow2.WriterOptions{ClusterSize: 64 << 10, Codec: zlib}), false, 2000},
		{"folded", foldedFile(t), true, 30},
	}
}

// foldedFile is a file that points were folded into.
func foldedFile(t *testing.T) []byte {
	t.Helper()
	c, r := foldChain{}, newRand(5)
	for i := range 4 {
		c.add(t, r, layer{size: 60 << 10, cluster: 4 << 10, codec: qcow2.ZstdCodec(1), sparse: i > 0})
	}
	for len(c.points) > 2 {
		c.fold(t, 1, true, qcow2.FoldOptions{Compress: true})
	}
	return c.points[1].file.b
}

// Damage of a single byte anywhere in a file is found, or changes nothing that a guest or we can read: there are bits of
// compressed data that say nothing, and after a fold there is what it superseded.
func TestCheckFindsEveryFlippedByte(t *testing.T) {
	for _, test := range flipTests(t) {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			checkGood(t, test.file)
			test.run(t)
		})
	}
}

func (test flipTest) run(t *testing.T) {
	content, identity := inspectAlone(t, test.file)
	l, r := newLayout(test.file), newRand(9)
	missed, tried, unfound := map[string]int{}, 0, 0
	b, all := bytes.Clone(test.file), os.Getenv("RBD2QCOW2_SEEDS") != "" && len(test.file) < 100<<10
	for at := range b {
		if !all && at >= 1024 && r.IntN(test.every) != 0 {
			continue
		}
		tried++
		found := true
		for _, mask := range test.masks(r, at) {
			b[at] ^= mask
			list, _, err := findings(t.Context(), b)
			if len(list) == 0 && err == nil {
				found = false
				why := l.reason(int64(at), test.folded)
				if why == "" {
					t.Errorf("byte %d (%#x) ^ %#x: not found", at, b[at]^mask, mask)
				}
				missed[why]++
				gotContent, gotIdentity := inspectAlone(t, b)
				if !bytes.Equal(gotContent, content) || !bytes.Equal(gotIdentity, identity) {
					t.Errorf("byte %d ^ %#x: not found, but other content", at, mask)
				}
			}
			b[at] ^= mask
		}
		if !found {
			unfound++
		}
	}
	t.Logf("%d of %d bytes tried, %d of them with a change that is not found: %v", tried, len(b), unfound, missed)
	if !test.folded && unfound*100 > tried {
		t.Errorf("%d of %d bytes can be changed without notice", unfound, tried)
	}
}

// masks gives the bits to flip of a byte: each of the header, some others.
func (test flipTest) masks(r *rand.Rand, at int) []byte {
	if at < 512 && len(test.file) < 64<<10 {
		return []byte{1, 2, 4, 8, 16, 32, 64, 128, 255}
	}
	return []byte{1 << r.IntN(8), 255}
}

// inspectAlone is what a file holds itself.
func inspectAlone(t *testing.T, b []byte) (content, identity []byte) {
	t.Helper()
	im, err := qcow2.Open(bytes.NewReader(b), int64(len(b)), qcow2.OpenOptions{Alone: true})
	if err != nil {
		t.Fatal(err)
	}
	if identity, err = im.Identity(); err != nil {
		t.Fatal(err)
	}
	content = make([]byte, im.Size())
	if n, err := im.ReadAt(content, 0); n < len(content) {
		t.Fatal(err)
	}
	return content, identity
}

// A file that is cut off anywhere is found.
func TestCheckTruncated(t *testing.T) {
	file := writeFile(t, qcow2.WriterOptions{ClusterSize: 512, Codec: qcow2.ZlibCodec()}, guest(20<<10, 5), "identity")
	for n := range file {
		list, _, err := findings(t.Context(), file[:n])
		if len(list) == 0 && err == nil {
			t.Fatalf("cut to %d of %d bytes: not found", n, len(file))
		}
		if err != nil && !errors.Is(err, qcow2.ErrNotQcow2) {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(file), err)
		}
	}
}
