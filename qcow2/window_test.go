package qcow2_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// checkWindows maps the disk in windows, here and there and from end to end, and compares with single extents and with what
// is read by way of the map.
func checkWindows(t *testing.T, r *rand.Rand, im *qcow2.Image, want []byte) {
	t.Helper()
	size := im.Size()
	type span struct{ off, n int64 }
	spans := []span{{0, size}, {size, 512}, {0, size + 512}}
	for range 20 {
		off := r.Int64N(size + 1)
		spans = append(spans, span{off, r.Int64N(size - off + 1)})
	}
	for _, s := range spans {
		extents, err := im.Extents(nil, s.off, s.n)
		if err != nil {
			t.Fatalf("map %d bytes at %d: %v", s.n, s.off, err)
		}
		at := s.off
		for i, e := range extents {
			if e.Offset != at || e.Length <= 0 || i > 0 && e.Kind == extents[i-1].Kind && e.Depth == extents[i-1].Depth {
				t.Fatalf("map %d bytes at %d: extent %d of %+v", s.n, s.off, i, extents)
			}
			at += e.Length
			checkExtent(t, r, im, e, want)
		}
		if at != min(s.off+s.n, size) && s.n > 0 && s.off < size {
			t.Fatalf("map %d bytes at %d: ends at %d", s.n, s.off, at)
		}
	}
}

// checkExtent compares an extent with what Extent says of some places in it, and with the content.
func checkExtent(t *testing.T, r *rand.Rand, im *qcow2.Image, e qcow2.Extent, want []byte) {
	t.Helper()
	for range 3 {
		off := e.Offset + r.Int64N(e.Length)
		if one, err := im.Extent(off); err != nil || one.Kind != e.Kind || one.Depth != e.Depth {
			t.Fatalf("at %d: %+v, %v; by the map %+v", off, one, err, e)
		}
		p := make([]byte, 1+r.Int64N(e.Offset+e.Length-off))
		if err := im.ReadExtent(p, off, e); err != nil || !bytes.Equal(p, want[off:off+int64(len(p))]) {
			t.Fatalf("read %d bytes at %d of %+v: %v, first difference %d", len(p), off, e, err, firstDifference(p, want[off:]))
		}
	}
}

func TestExtentsRefuses(t *testing.T) {
	im, err := openBytes(writeFile(t, qcow2.WriterOptions{}, guest(1<<20, 1), ""), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range [][2]int64{{-1, 5}, {5, -1}} {
		if extents, err := im.Extents(nil, s[0], s[1]); err == nil {
			t.Errorf("map %v: %+v", s, extents)
		}
	}
	if err := im.ReadExtent(make([]byte, 2), 1, qcow2.Extent{Offset: 0, Length: 2, Kind: qcow2.Data}); err == nil {
		t.Error("read beyond the end of an extent")
	}
}

// openProved opens a file whose reads are proved.
func openProved(b []byte, below *qcow2.Image) (*qcow2.Image, error) {
	return qcow2.Open(bytes.NewReader(b), int64(len(b)), qcow2.OpenOptions{
		Prove:   true,
		Backing: func(string, string) (*qcow2.Image, error) { return below, nil },
	})
}

// Whatever bit of a file is flipped: who reads it proved gets the content or an error.
func TestProvedReads(t *testing.T) {
	below, err := openProved(writeFile(t, qcow2.WriterOptions{ClusterSize: 2 << 10}, guest(8<<10, 3), "below"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]qcow2.WriterOptions{
		"none": {ClusterSize: 512},
		"over": {ClusterSize: 1 << 10, BackingFile: "./below.qcow2"},
		"zstd": {ClusterSize: 1 << 10, Codec: qcow2.ZstdCodec(3), BackingFile: "./below.qcow2"},
		"zlib": {ClusterSize: 1 << 10, Codec: qcow2.ZlibCodec()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			content := guest(5<<10+512, 4)
			file := writeFile(t, o, content, "the identity of this file")
			if err := readProved(file, below, content); err != nil {
				t.Fatal(err)
			}
			found := 0
			for at := range file {
				mask := byte(1) << (at % 8)
				file[at] ^= mask
				if err := readProved(file, below, content); errors.Is(err, errOther) {
					t.Errorf("byte %d, bit %d: %v", at, at%8, err)
				} else if err != nil {
					found++
				}
				file[at] ^= mask
			}
			if found < len(file)/10 {
				t.Errorf("only %d of %d found", found, len(file))
			}
		})
	}
}

var errOther = errors.New("other content")

// readProved reads all of a file, in one go and by small parts.
func readProved(file []byte, below *qcow2.Image, want []byte) error {
	im, err := openProved(file, below)
	if err != nil {
		return err
	}
	if !im.Proved() { // the record is gone, and with it the digests
		return errors.New("it has no digests")
	}
	for _, step := range []int{len(want), 700} {
		got := make([]byte, im.Size())
		for off := 0; off < len(got); off += step {
			p := got[off:min(off+step, len(got))]
			if _, err := im.ReadAt(p, int64(off)); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%w at %d", errOther, firstDifference(got, want))
		}
	}
	return nil
}

// shrinking is a file that becomes shorter while it is read.
type shrinking struct {
	content []byte
	length  int
}

func (s *shrinking) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(s.content[:s.length]).ReadAt(p, off)
}

// What a file has lost since it was opened is an error, not the end of the disk.
func TestExtentsOfShrunkFile(t *testing.T) {
	file := writeFile(t, qcow2.WriterOptions{ClusterSize: 4 << 10}, bytes.Repeat([]byte{7}, 16<<20), "identity")
	r := &shrinking{file, len(file)}
	im, err := qcow2.Open(r, int64(len(file)), qcow2.OpenOptions{Prove: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := im.Extents(nil, 0, 4096); err != nil { // the directory is known from here on
		t.Fatal(err)
	}
	r.length -= 3 * (512*16 + 16)
	if extents, err := im.Extents(nil, 0, 16<<20); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("%+v, %v", extents, err)
	}
}
