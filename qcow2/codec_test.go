package qcow2_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

func codecs() map[string]qcow2.Codec {
	return map[string]qcow2.Codec{
		"zlib":   qcow2.ZlibCodec(),
		"zstd-1": qcow2.ZstdCodec(1), "zstd-3": qcow2.ZstdCodec(3),
		"zstd-7": qcow2.ZstdCodec(7), "zstd-19": qcow2.ZstdCodec(19),
	}
}

// halfRandom gives n bytes that compress to about a half.
func halfRandom(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		if i/64%2 == 0 {
			b[i] = byte(r.Uint32())
		} else {
			b[i] = byte(i / 4096)
		}
	}
	return b
}

func random(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 20261122)) }

func TestCodecRoundTrip(t *testing.T) {
	for name, codec := range codecs() {
		t.Run(name, func(t *testing.T) {
			r := newRand(1)
			enc, dec := coders(t, codec)
			for size := qcow2.MinClusterSize; size <= qcow2.MaxClusterSize; size *= 4 {
				src := halfRandom(r, size)
				dst := bytes.Repeat([]byte{0xaa}, size+16)
				n, err := enc.Encode(dst[:size-1], src)
				if err != nil || n == 0 || n > size*3/4 {
					t.Fatalf("encode %d bytes: %d bytes, %v", size, n, err)
				}
				// What follows in the file is the next cluster, and the beginning of one that is cut off.
				blob := append(append(bytes.Clone(dst[:n]), dst[:n]...), dst[:n/2]...)
				for _, tail := range [][]byte{nil, blob[n:], random(r, 511), make([]byte, 511), []byte("\x28\xb5\x2f\xfd")} {
					got := make([]byte, size)
					used, err := dec.Decode(got, append(bytes.Clone(dst[:n]), tail...))
					if used != n {
						t.Errorf("%d bytes: %d of them used", n, used)
					}
					if err != nil {
						t.Fatalf("decode %d bytes with a tail of %d: %v", size, len(tail), err)
					}
					if !bytes.Equal(got, src) {
						t.Fatalf("decode %d bytes with a tail of %d: other bytes", size, len(tail))
					}
				}
				if _, err := dec.Decode(make([]byte, size), dst[:n/2]); err == nil {
					t.Errorf("decode half of %d bytes: no error", size)
				}
			}
		})
	}
}

// A cluster that does not fit leaves what lies behind the buffer alone, and the coder of use for the next one.
func TestCodecNoRoom(t *testing.T) {
	for name, codec := range codecs() {
		t.Run(name, func(t *testing.T) {
			r := newRand(2)
			enc, dec := coders(t, codec)
			for _, src := range [][]byte{random(r, 512), random(r, 64<<10), halfRandom(r, 64<<10), random(r, 2<<20)} {
				buf := bytes.Repeat([]byte{0xaa}, len(src)+64)
				room := buf[:len(src)/4]
				if n, err := enc.Encode(room, src); n != 0 || err != nil {
					t.Fatalf("encode %d bytes into %d: %d, %v", len(src), len(room), n, err)
				}
				if behind := buf[len(room):]; !bytes.Equal(behind, bytes.Repeat([]byte{0xaa}, len(behind))) {
					t.Fatalf("encode %d bytes into %d: wrote behind them", len(src), len(room))
				}
				zeros := make([]byte, len(src))
				n, err := enc.Encode(room, zeros)
				if n == 0 || err != nil {
					t.Fatalf("encode %d zeroes: %d, %v", len(zeros), n, err)
				}
				got := random(r, len(src))
				if _, err := dec.Decode(got, room[:n]); err != nil || !bytes.Equal(got, zeros) {
					t.Fatalf("decode %d zeroes: %v", len(zeros), err)
				}
			}
		})
	}
}

// What other encoders may write: other windows, several frames, checksums, frames to be skipped.
func TestDecodeForeign(t *testing.T) {
	src := halfRandom(newRand(3), 64<<10)
	var deflate bytes.Buffer
	w, _ := flate.NewWriter(&deflate, 9) // a window of 32 KiB
	_, _ = w.Write(src)
	_ = w.Close()
	plain := zstdFrame(t, src)
	sum := zstdFrame(t, src, zstd.WithEncoderCRC(true))
	const header = 4 + 1 + 2 // magic, descriptor, content size; replaced by one with a window and no content size
	noSize := append([]byte("\x28\xb5\x2f\xfd\x00\x88"), plain[header:]...)
	two := append(zstdFrame(t, src[:1000]), zstdFrame(t, src[1000:], zstd.WithEncoderCRC(true))...)
	skip := append([]byte("\x5a\x2a\x4d\x18\x03\x00\x00\x00abc"), plain...)

	for _, test := range []struct {
		name  string
		codec qcow2.Codec
		blob  []byte
		ok    bool
	}{
		{"deflate 32 KiB", qcow2.ZlibCodec(), deflate.Bytes(), true},
		{"no checksum", qcow2.ZstdCodec(1), plain, true},
		{"checksum", qcow2.ZstdCodec(1), sum, true},
		{"window 128 MiB", qcow2.ZstdCodec(1), noSize, true},
		{"two frames", qcow2.ZstdCodec(1), two, true},
		{"skippable frame", qcow2.ZstdCodec(1), skip, true},
		{"empty", qcow2.ZstdCodec(1), nil, false},
		{"too short", qcow2.ZstdCodec(1), zstdFrame(t, src[1:]), false},
		{"too long", qcow2.ZstdCodec(1), zstdFrame(t, append(src, 0)), false},
		{"first of two cut", qcow2.ZstdCodec(1), two[:500], false},
		{"wrong checksum", qcow2.ZstdCodec(1), flip(sum, len(sum)-1), false},
		{"skippable frame too long", qcow2.ZstdCodec(1), []byte("\x5a\x2a\x4d\x18\xff\xff\xff\xffabc"), false},
		{"zlib header", qcow2.ZlibCodec(), append([]byte{0x78, 0x9c}, deflate.Bytes()...), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, dec := coders(t, test.codec)
			got := make([]byte, len(src))
			_, err := dec.Decode(got, append(bytes.Clone(test.blob), "foreign bytes"...))
			if (err == nil) != test.ok {
				t.Fatalf("decode: %v", err)
			}
			if test.ok && !bytes.Equal(got, src) {
				t.Fatal("decode: other bytes")
			}
		})
	}
}

func TestDefaultCodec(t *testing.T) {
	for _, kind := range []qcow2.CompressionType{qcow2.Zlib, qcow2.Zstd} {
		if c := qcow2.DefaultCodec(kind); c.Type() != kind {
			t.Errorf("codec for %s is of type %s", kind, c.Type())
		}
	}
	if c := qcow2.DefaultCodec(2); c != nil {
		t.Errorf("codec for an unknown type: %v", c)
	}
}

func FuzzZlibDecode(f *testing.F) { fuzzDecode(f, qcow2.ZlibCodec()) }
func FuzzZstdDecode(f *testing.F) { fuzzDecode(f, qcow2.ZstdCodec(3)) }

func fuzzDecode(f *testing.F, codec qcow2.Codec) {
	enc, dec := coders(f, codec)
	r := newRand(4)
	for _, src := range [][]byte{make([]byte, 4096), halfRandom(r, 4096), bytes.Repeat([]byte("qcow2"), 819)} {
		dst := make([]byte, 4096)
		n, err := enc.Encode(dst, src)
		if err != nil || n == 0 {
			f.Fatalf("make seed: %d, %v", n, err)
		}
		f.Add(dst[:n])
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		buf := bytes.Repeat([]byte{0xaa}, 4096+64)
		before := bytes.Clone(src)
		_, _ = dec.Decode(buf[:4096], src) // an error or not
		if !bytes.Equal(buf[4096:], bytes.Repeat([]byte{0xaa}, 64)) {
			t.Fatal("decode wrote behind its buffer")
		}
		if !bytes.Equal(src, before) {
			t.Fatal("decode changed its source")
		}
	})
}

func coders(t testing.TB, codec qcow2.Codec) (qcow2.Encoder, qcow2.Decoder) {
	t.Helper()
	enc, err := codec.NewEncoder()
	if err != nil {
		t.Fatal(err)
	}
	dec, err := codec.NewDecoder()
	if err != nil {
		t.Fatal(err)
	}
	return enc, dec
}

func zstdFrame(t testing.TB, src []byte, o ...zstd.EOption) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, append([]zstd.EOption{zstd.WithEncoderCRC(false)}, o...)...)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(src, nil)
}

// flip gives a copy of b with the lowest bit of one byte changed.
func flip(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}

func BenchmarkEncode(b *testing.B) {
	for name, codec := range codecs() {
		b.Run(name, func(b *testing.B) {
			enc, _ := coders(b, codec)
			src, dst := halfRandom(newRand(5), 64<<10), make([]byte, 64<<10)
			b.SetBytes(int64(len(src)))
			for b.Loop() {
				if _, err := enc.Encode(dst, src); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
