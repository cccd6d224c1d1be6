package qcow2_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

func BenchmarkReadAt(b *testing.B) {
	const size = 64 << 20
	content := halfRandom(newRand(1), size)
	for _, test := range []struct {
		name  string
		codec qcow2.Codec
		step  int
	}{
		{"none/1M", nil, 1 << 20},
		{"zlib/1M", qcow2.ZlibCodec(), 1 << 20},
		{"zstd/1M", qcow2.ZstdCodec(3), 1 << 20},
		{"zstd/4K", qcow2.ZstdCodec(3), 4 << 10},
	} {
		b.Run(test.name, func(b *testing.B) {
			name := filepath.Join(b.TempDir(), "a.qcow2")
			if err := os.WriteFile(name, writeFile(b, qcow2.WriterOptions{Codec: test.codec}, content, ""), 0o600); err != nil {
				b.Fatal(err)
			}
			im := openChain(b, name)
			p := make([]byte, test.step)
			off := int64(0)
			b.SetBytes(int64(test.step))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := im.ReadAt(p, off); err != nil {
					b.Fatal(err)
				}
				if !bytes.Equal(p[:64], content[off:off+64]) {
					b.Fatal("other content")
				}
				off = (off + int64(test.step)) % size
			}
		})
	}
}

func BenchmarkVerifyDigests(b *testing.B) {
	const size = 64 << 20
	file := writeFile(b, qcow2.WriterOptions{Codec: qcow2.ZstdCodec(3)}, halfRandom(newRand(1), size), "")
	im, err := openBytes(file, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	for b.Loop() {
		if err := im.VerifyDigests(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCheck reads all data of a file; bytes are those of the disk.
func BenchmarkCheck(b *testing.B) {
	content := halfRandom(newRand(1), 256<<20)
	for _, codec := range []qcow2.Codec{nil, qcow2.ZstdCodec(1)} {
		b.Run(fmt.Sprintf("compressed=%t", codec != nil), func(b *testing.B) {
			file := writeFile(b, qcow2.WriterOptions{ClusterSize: 64 << 10, Codec: codec}, content, "identity")
			b.SetBytes(int64(len(content)))
			for b.Loop() {
				if list, _, err := findings(b.Context(), file); err != nil || len(list) > 0 {
					b.Fatal(list, err)
				}
			}
		})
	}
}
