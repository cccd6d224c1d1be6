package verify

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// ramSource is an image in memory, of objects of 1 MiB.
type ramSource []byte

func (s ramSource) Size() int64       { return int64(len(s)) }
func (s ramSource) ObjectSize() int64 { return 1 << 20 }
func (s ramSource) Close() error      { return nil }

func (s ramSource) Read(_ context.Context, p []byte, off int64) error {
	_, err := bytes.NewReader(s).ReadAt(p, off)
	return err
}

// Data lists every 4 KiB that hold something.
func (s ramSource) Data(_ context.Context, add func(off, n int64) error) error {
	for off := int64(0); off < s.Size(); off += 4096 {
		part := s[off:min(off+4096, s.Size())]
		if len(bytes.Trim(part, "\x00")) == 0 {
			continue
		}
		if err := add(off, int64(len(part))); err != nil {
			return err
		}
	}
	return nil
}

// sourceChain writes a chain of files, each with random changes and clusters of its own size, and gives what its top reads as.
func sourceChain(t *testing.T, rng *rand.Rand, size int64) (*qcow2.Image, ramSource) {
	t.Helper()
	var top *qcow2.Image
	rounded := (size + 511) / 512 * 512
	state := make(ramSource, rounded)
	for i, clusterSize := range []int64{64 << 10, 4 << 10, 16 << 10} {
		file, err := os.Create(filepath.Join(t.TempDir(), fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() })
		o := qcow2.WriterOptions{Size: rounded, ClusterSize: clusterSize, Codec: []qcow2.Codec{nil, qcow2.ZstdCodec(1)}[rng.IntN(2)]}
		if below := top; below != nil {
			o.BackingFile = fmt.Sprint(i - 1)
		}
		w, err := qcow2.NewWriter(file, o)
		if err != nil {
			t.Fatal(err)
		}
		encoder, err := qcow2.NewChunkEncoder(o.Codec)
		if err != nil {
			t.Fatal(err)
		}
		for off := int64(0); off < rounded; off += clusterSize {
			if rng.IntN(8) > 0 {
				continue
			}
			data := state[off:min(off+clusterSize, rounded)]
			for j := range data {
				data[j] = byte(rng.Uint32()) | 1
			}
			if n := off + int64(len(data)); n > size {
				clear(data[size-off:])
			}
			chunk := &qcow2.Chunk{Offset: off, Data: make([]byte, clusterSize)}
			copy(chunk.Data, data)
			if err := encoder.Encode(chunk, clusterSize); err != nil {
				t.Fatal(err)
			}
			if err := w.Append(chunk); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Finish([]byte("{}")); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		length, err := file.Seek(0, io.SeekEnd)
		if err != nil {
			t.Fatal(err)
		}
		below := top
		backing := func(string, string) (*qcow2.Image, error) { return below, nil }
		if top, err = qcow2.Open(file, length, qcow2.OpenOptions{Prove: true, Backing: backing}); err != nil {
			t.Fatal(err)
		}
	}
	return top, state[:size]
}

// TestCompare finds each bit that differs between a chain and what it was made from, and no other place.
func TestCompare(t *testing.T) {
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 1))
		chain, src := sourceChain(t, rng, 5<<20+rng.Int64N(4096))
		compare := func() []Damage {
			damages, err := Compare(t.Context(), chain, src, 3, func(int64) {})
			if err != nil {
				t.Fatal(err)
			}
			return damages
		}
		if damages := compare(); len(damages) > 0 {
			t.Fatalf("seed %d: %v", seed, damages)
		}
		for range 40 {
			at := rng.Int64N(src.Size())
			was := src[at]
			src[at] ^= 1 << rng.IntN(8)
			damages := compare()
			if len(damages) != 1 || damages[0].Length > differenceUnit || at < damages[0].Start || at >= damages[0].Start+damages[0].Length {
				t.Fatalf("seed %d: byte %d differs, found %v", seed, at, damages)
			}
			src[at] = was
		}
	}
}

// TestPart has runs that are short of time come to an end, each where the last one has stopped.
func TestPart(t *testing.T) {
	ranges := []qcow2.Range{{Offset: 0, Length: 10}, {Offset: 10, Length: 10}, {Offset: 20, Length: 10}, {Offset: 30, Length: 5}}
	var held []int64
	next := int64(0)
	for runs := 0; ; runs++ {
		if runs > len(ranges) {
			t.Fatal("no end")
		}
		p := part{from: next, timeIsUp: func() bool { return true }}
		for _, r := range ranges {
			if p.holds(r) {
				held = append(held, r.Offset)
			}
		}
		if next = p.next; next == 0 {
			break
		}
	}
	if fmt.Sprint(held) != "[0 10 20 30]" {
		t.Errorf("looked at %v", held)
	}
}
