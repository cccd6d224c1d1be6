package qcow2_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// guest is the content of a small disk: data that compresses and data that does not, zeroes and gaps.
func guest(size int64, seed uint64) []byte {
	r := newRand(seed)
	b := make([]byte, size)
	for off := int64(0); off < size; off += 3 << 10 {
		part := b[off:min(off+3<<10, size)]
		switch r.IntN(4) {
		case 0:
			copy(part, random(r, len(part)))
		case 1, 2:
			copy(part, halfRandom(r, len(part)))
		}
	}
	return b
}

// writeFile writes content with the Writer and gives the file. A backing file is taken to hold data everywhere.
func writeFile(t testing.TB, o qcow2.WriterOptions, content []byte, identity string) []byte {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "a.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	o.Size = int64(len(content))
	w, err := qcow2.NewWriter(f, o)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	encoder, err := qcow2.NewChunkEncoder(o.Codec)
	if err != nil {
		t.Fatal(err)
	}
	encoder.UseKey(o.Key)
	size := w.ClusterSize()
	padded := make([]byte, (o.Size+size-1)/size*size)
	copy(padded, content)
	step := max(size, 128<<10)
	for off := int64(0); off < int64(len(padded)); off += step {
		c := &qcow2.Chunk{Offset: off, Data: padded[off:min(off+step, int64(len(padded)))]}
		if err := encoder.Encode(c, size); err != nil {
			t.Fatal(err)
		}
		if err := w.Append(c); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish([]byte(identity)); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func openBytes(b []byte, backing *qcow2.Image) (*qcow2.Image, error) {
	return qcow2.Open(bytes.NewReader(b), int64(len(b)), qcow2.OpenOptions{
		Backing: func(name, format string) (*qcow2.Image, error) {
			if backing == nil || name != "./below.qcow2" || format != "qcow2" {
				return nil, fmt.Errorf("%w: %q of format %q", os.ErrNotExist, name, format)
			}
			return backing, nil
		},
	})
}

// inspect is all that can be asked of a file.
func inspect(b []byte, backing *qcow2.Image) (content, identity []byte, err error) {
	im, err := openBytes(b, backing)
	if err != nil {
		return nil, nil, err
	}
	if identity, err = im.Identity(); err != nil {
		return nil, nil, err
	}
	if err := im.CheckStructure(context.Background()); err != nil {
		return nil, nil, err
	}
	if err := im.VerifyDigests(context.Background()); err != nil {
		return nil, nil, err
	}
	content, err = io.ReadAll(io.NewSectionReader(im, 0, min(im.Size(), 1<<20)))
	return content, identity, err
}

func TestVerifyWritten(t *testing.T) {
	for _, cluster := range []int64{512, 4 << 10, 64 << 10, 2 << 20} {
		for name, codec := range map[string]qcow2.Codec{"none": nil, "zlib": qcow2.ZlibCodec(), "zstd": qcow2.ZstdCodec(3)} {
			t.Run(fmt.Sprint(cluster, name), func(t *testing.T) {
				want := guest(5<<20+512, uint64(cluster))
				b := writeFile(t, qcow2.WriterOptions{ClusterSize: cluster, Codec: codec}, want, "who I am")
				im, err := openBytes(b, nil)
				if err != nil {
					t.Fatal(err)
				}
				got := make([]byte, len(want))
				if _, err := im.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("read: %v, first difference at %d", err, firstDifference(got, want))
				}
				if err := im.CheckStructure(t.Context()); err != nil {
					t.Error(err)
				}
				if err := im.VerifyDigests(t.Context()); err != nil {
					t.Error(err)
				}
				if id, err := im.Identity(); err != nil || string(id) != "who I am" {
					t.Errorf("identity %q, %v", id, err)
				}
			})
		}
	}
}

func TestVerifyEmptyDisk(t *testing.T) {
	for _, size := range []int{0, 512, 1 << 20} {
		content, identity, err := inspect(writeFile(t, qcow2.WriterOptions{}, make([]byte, size), "empty"), nil)
		if err != nil || len(content) != size || string(identity) != "empty" {
			t.Errorf("%d bytes: got %d, identity %q, %v", size, len(content), identity, err)
		}
	}
}

func TestVerifyCanceled(t *testing.T) {
	im, err := openBytes(writeFile(t, qcow2.WriterOptions{}, guest(1<<20, 1), ""), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := im.VerifyDigests(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("verify: %v", err)
	}
	if err := im.CheckStructure(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("check: %v", err)
	}
}

func TestVerifyTruncated(t *testing.T) {
	file := writeFile(t, qcow2.WriterOptions{ClusterSize: 512, Codec: qcow2.ZlibCodec()}, guest(40<<10, 5), "identity")
	for n := range file {
		if _, _, err := inspect(file[:n], nil); err == nil {
			t.Fatalf("cut to %d of %d bytes: not found", n, len(file))
		}
	}
	if _, _, err := inspect(append(file, 0), nil); err != nil { // what a fold leaves that was cut short
		t.Errorf("a byte longer: %v", err)
	}
}
