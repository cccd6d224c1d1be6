package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// DefaultCodec is the codec in pure Go for a compression type, at its default level.
// It is nil for a type that the specification does not know.
func DefaultCodec(t CompressionType) Codec {
	switch t {
	case Zlib:
		return ZlibCodec()
	case Zstd:
		return ZstdCodec(3)
	}
	return nil
}

// deflateWindow is what QEMU gives to inflateInit2: 12 bits (qcow2 specification, "compression_type").
const deflateWindow = 4096

// ZlibCodec is raw deflate with a window of 4 KiB; it decodes any window.
func ZlibCodec() Codec { return zlibCodec{} }

type zlibCodec struct{}

func (zlibCodec) Type() CompressionType { return Zlib }

func (zlibCodec) NewEncoder() (Encoder, error) {
	w, err := flate.NewWriterWindow(io.Discard, deflateWindow)
	if err != nil {
		return nil, fmt.Errorf("make deflate encoder: %w", err)
	}
	return &zlibEncoder{w: w}, nil
}

func (zlibCodec) NewDecoder() (Decoder, error) { return new(zlibDecoder), nil }

type zlibEncoder struct {
	w   *flate.Writer
	out boundedBuffer
}

func (e *zlibEncoder) Encode(dst, src []byte) (int, error) {
	e.out = boundedBuffer{buf: dst}
	e.w.Reset(&e.out)
	_, err := e.w.Write(src)
	if err == nil {
		err = e.w.Close()
	}
	switch {
	case errors.Is(err, errNoRoom):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("deflate cluster: %w", err)
	}
	return e.out.n, nil
}

var errNoRoom = errors.New("no room")

// boundedBuffer is a writer into a fixed buffer, so that compression of what does not shrink ends early.
type boundedBuffer struct {
	buf []byte
	n   int
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	if len(p) > len(b.buf)-b.n {
		return 0, errNoRoom
	}
	b.n += copy(b.buf[b.n:], p)
	return len(p), nil
}

type zlibDecoder struct {
	src  bytes.Reader
	more [1]byte
}

// Decode has a new reader for each cluster: one that is reset keeps the Huffman tables of the last stream where a block's own is empty,
// so that what becomes of damaged bytes would depend on what was decoded before.
func (d *zlibDecoder) Decode(dst, src []byte) (int, error) {
	d.src.Reset(src)
	r := flate.NewReader(&d.src)
	if _, err := io.ReadFull(r, dst); err != nil {
		return 0, fmt.Errorf("inflate cluster: %w", err)
	}
	// The last block's end need not have been looked at yet.
	if _, err := r.Read(d.more[:]); !errors.Is(err, io.EOF) {
		return len(src), nil
	}
	return len(src) - d.src.Len(), nil
}

// ZstdCodec is zstd in pure Go. Levels are those of the zstd tool; several of them are one here.
func ZstdCodec(level int) Codec { return zstdCodec{zstd.EncoderLevelFromZstd(level)} }

type zstdCodec struct{ level zstd.EncoderLevel }

func (zstdCodec) Type() CompressionType { return Zstd }

func (c zstdCodec) NewEncoder() (Encoder, error) {
	w, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(c.level),
		zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(MaxClusterSize)) // no cluster needs a larger one
	if err != nil {
		return nil, fmt.Errorf("make zstd encoder: %w", err)
	}
	return &zstdEncoder{w: w}, nil
}

func (zstdCodec) NewDecoder() (Decoder, error) {
	r, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecodeAllCapLimit(true)) // bounds the memory, whatever window a frame asks for
	if err != nil {
		return nil, fmt.Errorf("make zstd decoder: %w", err)
	}
	return &zstdDecoder{r: r}, nil
}

type zstdEncoder struct {
	w   *zstd.Encoder
	out []byte // EncodeAll grows what is too small, so it gets a buffer of ours
}

func (e *zstdEncoder) Encode(dst, src []byte) (int, error) {
	e.out = e.w.EncodeAll(src, e.out[:0])
	if len(e.out) > len(dst) {
		return 0, nil
	}
	return copy(dst, e.out), nil
}

type zstdDecoder struct{ r *zstd.Decoder }

// Decode decodes frame by frame: DecodeAll would take the foreign bytes behind the last frame for another one.
func (d *zstdDecoder) Decode(dst, src []byte) (int, error) {
	out, used := dst[:0:len(dst)], 0
	for len(out) < len(dst) {
		n, err := zstdFrameLength(src[used:])
		if err != nil {
			return 0, fmt.Errorf("decompress zstd cluster: %w", err)
		}
		out, err = d.r.DecodeAll(src[used:][:n], out)
		if err != nil {
			return 0, fmt.Errorf("decompress zstd cluster: %w", err)
		}
		used += n
	}
	if &out[0] != &dst[0] { // the decoder is free to move its output
		copy(dst, out)
	}
	return used, nil
}

// zstdFrameLength is the number of bytes of the frame that src starts with, skippable or not (RFC 8878, section 3.1).
func zstdFrameLength(src []byte) (int, error) {
	var h zstd.Header
	if err := h.Decode(src); err != nil {
		return 0, err
	}
	n := uint64(h.HeaderSize)
	if h.Skippable {
		n += uint64(h.SkippableSize)
	}
	for last := h.Skippable; !last; {
		if n+3 > uint64(len(src)) {
			return 0, io.ErrUnexpectedEOF
		}
		block := uint64(binary.LittleEndian.Uint16(src[n:])) | uint64(src[n+2])<<16
		last = block&1 != 0
		n += 3
		if block>>1&3 == zstdBlockRLE {
			n++
		} else {
			n += block >> 3
		}
	}
	if h.HasCheckSum {
		n += 4
	}
	if n > uint64(len(src)) {
		return 0, io.ErrUnexpectedEOF
	}
	return int(n), nil
}

// zstdBlockRLE is the block type whose content is one byte, whatever its size says.
const zstdBlockRLE = 1
