package qcow2_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// countingCodec counts how many clusters are decompressed.
type countingCodec struct {
	qcow2.Codec
	n *atomic.Int64
}

type countingDecoder struct {
	qcow2.Decoder
	n *atomic.Int64
}

func (c countingCodec) NewDecoder() (qcow2.Decoder, error) {
	d, err := c.Codec.NewDecoder()
	return countingDecoder{d, c.n}, err
}

func (d countingDecoder) Decode(dst, src []byte) (int, error) {
	d.n.Add(1)
	return d.Decoder.Decode(dst, src)
}

// Small reads, one after the other or at the same time, decompress each cluster once.
func TestReadDecompressesOnce(t *testing.T) {
	content := halfRandom(newRand(1), 1<<20)
	file := writeFile(t, qcow2.WriterOptions{Codec: qcow2.ZstdCodec(3)}, content, "")
	for _, readers := range []int{1, 4} {
		var n atomic.Int64
		im, err := qcow2.Open(bytes.NewReader(file), int64(len(file)), qcow2.OpenOptions{
			Codec: func(c qcow2.CompressionType) qcow2.Codec { return countingCodec{qcow2.DefaultCodec(c), &n} },
		})
		if err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		for range readers {
			group.Go(func() {
				p := make([]byte, 4<<10)
				for off := 0; off < len(content); off += len(p) {
					if _, err := im.ReadAt(p, int64(off)); err != nil || !bytes.Equal(p, content[off:off+len(p)]) {
						t.Errorf("read at %d: %v", off, err)
						return
					}
				}
			})
		}
		group.Wait()
		if got := n.Load(); got != 16 {
			t.Errorf("%d readers: %d clusters decompressed, want 16", readers, got)
		}
	}
}

// Neighbouring clusters are read in one go.
func TestReadJoinsClusters(t *testing.T) {
	content := random(newRand(1), 1<<20)
	file := writeFile(t, qcow2.WriterOptions{ClusterSize: 4 << 10}, content, "")
	r := &countingReader{Reader: bytes.NewReader(file)}
	im, err := qcow2.Open(r, int64(len(file)), qcow2.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(content))
	r.n = 0
	if _, err := im.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
		t.Fatal(err)
	}
	if r.n > 3 { // the L1 table, a slice of the L2 table, the data; refcount blocks may lie between
		t.Errorf("%d reads", r.n)
	}
}

type countingReader struct {
	*bytes.Reader
	n int
}

func (r *countingReader) ReadAt(p []byte, off int64) (int, error) {
	r.n++
	return r.Reader.ReadAt(p, off)
}

func TestLongChain(t *testing.T) {
	const depth, step = 100, 4 << 10
	var top *qcow2.Image
	want := make([]byte, depth*step)
	for i := range depth {
		name := ""
		if i > 0 {
			name = "./below.qcow2"
		}
		copy(want[i*step:], bytes.Repeat([]byte{byte(i), byte(i >> 8), 1, 0}, step/4))
		top = overlay(t, name, top, int64(len(want)), int64(i*step), want[i*step:(i+1)*step])
	}
	got := make([]byte, len(want))
	if _, err := top.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read: %v", err)
	}
	for i := range depth {
		e, err := top.Extent(int64(i * step))
		if err != nil || e.Kind != qcow2.Data || e.Length != step || e.Depth != depth-1-i {
			t.Fatalf("extent %d: %+v, %v", i, e, err)
		}
	}
}

// overlay writes a file that holds data at off only, and opens it on top of below.
func overlay(t *testing.T, name string, below *qcow2.Image, size, off int64, data []byte) *qcow2.Image {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "a.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := qcow2.NewWriter(f, qcow2.WriterOptions{Size: size, ClusterSize: 4 << 10, BackingFile: name})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	encoder, err := qcow2.NewChunkEncoder(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &qcow2.Chunk{Offset: off, Data: data}
	if err := errors.Join(encoder.Encode(c, w.ClusterSize()), w.Append(c), w.Finish(nil)); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	im, err := openBytes(b, below)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func TestOpenBacking(t *testing.T) {
	file := writeFile(t, qcow2.WriterOptions{BackingFile: "./below.qcow2"}, guest(64<<10, 1), "")
	fail := errors.New("fail")
	open := func(backing func(string, string) (*qcow2.Image, error)) error {
		_, err := qcow2.Open(bytes.NewReader(file), int64(len(file)), qcow2.OpenOptions{Backing: backing})
		return err
	}
	if err := open(nil); err == nil || !strings.Contains(err.Error(), `"./below.qcow2"`) {
		t.Errorf("without an opener: %v", err)
	}
	if err := open(func(string, string) (*qcow2.Image, error) { return nil, fail }); !errors.Is(err, fail) {
		t.Errorf("opener that fails: %v", err)
	}
	if err := open(func(string, string) (*qcow2.Image, error) { return nil, nil }); err == nil {
		t.Error("opener that gives nothing: no error")
	}
}

// A file may end inside its last cluster: QEMU reads zeroes behind its end, and so do we.
func TestReadShortLastCluster(t *testing.T) {
	qemutest.Require(t, "qemu-img", "qemu-io")
	file := filepath.Join(t.TempDir(), "a.qcow2")
	qemutest.Create(t, "-f", "qcow2", file, "1M")
	qemutest.IO(t, file, "write -q -P 7 256k 64k", "write -q -P 8 0 64k")
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, cut := range []int64{512, 4096, 65024} {
		if err := os.Truncate(file, info.Size()/65536*65536-cut); err != nil {
			t.Fatal(err)
		}
		t.Run(fmt.Sprint(cut), func(t *testing.T) { compareWithQEMU(t, file) })
	}
}
