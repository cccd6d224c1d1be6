package backup

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/extent"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// memory is an image.
type memory struct {
	content []byte
	broken  int64 // a read that touches this offset fails; -1: none does
}

func (m memory) Read(ctx context.Context, p []byte, off int64) error {
	if m.broken >= off && m.broken < off+int64(len(p)) {
		return rbd.ErrTimeout
	}
	copy(p, m.content[off:off+int64(len(p))])
	return ctx.Err()
}

// noise is a disk with data, holes, and much that is alike.
func noise(rng *rand.Rand, size int64) []byte {
	b := make([]byte, size)
	for off := int64(0); off < size; off += 64 << 10 {
		if rng.IntN(3) > 0 {
			for i := off; i < min(off+64<<10, size); i += 1 + off%3 {
				b[i] = byte(off>>16) + 1
			}
		}
	}
	return b
}

// writeChain writes the states of a disk, the oldest first, to a chain of qcow2 files and opens it.
func writeChain(t *testing.T, states ...[]byte) *qcow2.Image {
	t.Helper()
	var chain *qcow2.Image
	for _, state := range states {
		chain, _ = writeFile(t, chain, state)
	}
	return chain
}

// writeFile writes a state of a disk to a qcow2 file on top of others, or of none.
func writeFile(t *testing.T, below *qcow2.Image, state []byte) (*qcow2.Image, *os.File) {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "point.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	const cluster = 64 << 10
	options := qcow2.WriterOptions{Size: int64(len(state)), ClusterSize: cluster}
	if below != nil {
		options.BackingFile = "below"
	}
	w, err := qcow2.NewWriter(file, options)
	if err != nil {
		t.Fatal(err)
	}
	encoder, err := qcow2.NewChunkEncoder(nil)
	if err != nil {
		t.Fatal(err)
	}
	is, was := make([]byte, cluster), make([]byte, cluster)
	for off := 0; off < len(state); off += cluster {
		clear(is[copy(is, state[off:]):])
		if below != nil {
			if err := readBase(below, was, int64(off)); err != nil {
				t.Fatal(err)
			}
		}
		if bytes.Equal(is, was) {
			continue
		}
		chunk := &qcow2.Chunk{Offset: int64(off), Data: is}
		if err := errors.Join(encoder.Encode(chunk, cluster), w.Append(chunk)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish([]byte("{}")); err != nil {
		t.Fatal(err)
	}
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	image, err := qcow2.Open(file, info.Size(), qcow2.OpenOptions{
		Backing: func(string, string) (*qcow2.Image, error) { return below, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return image, file
}

// check compares everything outside of the extents.
func check(e *engine, base *qcow2.Image, is []byte, extents []extent.Extent) (compared int64, err error) {
	var sum atomic.Int64
	u := unchangedCheck{
		src: memory{is, -1}, size: int64(len(is)), base: base, percent: 100, parallel: 2, engine: e,
		compared: func(bytes int64) { sum.Add(bytes) },
	}
	err = u.run(context.Background(), extents)
	return sum.Load(), err
}

func testEngine(t *testing.T) *engine {
	e, err := newEngine(&Options{Parallel: 2}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.close)
	e.step = 1 << 20
	return e
}

// TestUnchanged changes bytes in and outside of what is reported, on disks of any size that grow and shrink.
func TestUnchanged(t *testing.T) {
	e, rng := testEngine(t), rand.New(rand.NewPCG(1, 2))
	sizes := []int64{0, 1, 511, 512, 1000, 64 << 10, unchangedPiece + 1, 1<<20 + 77}
	for _, was := range sizes {
		for _, is := range sizes {
			before := noise(rng, was)
			older := noise(rng, was/2+1)
			base := writeChain(t, older, before)
			after := make([]byte, is)
			copy(after, before)
			if _, err := check(e, base, after, nil); err != nil {
				t.Fatalf("%d -> %d bytes, nothing changed: %v", was, is, err)
			}
			for range 2 {
				checkChanged(t, e, rng, base, after)
			}
		}
	}
}

// checkChanged reports some ranges as changed and changes bytes in them, which must be found nowhere, then a byte
// outside, which must be found.
func checkChanged(t *testing.T, e *engine, rng *rand.Rand, base *qcow2.Image, same []byte) {
	t.Helper()
	size := int64(len(same))
	is := slices.Clone(same)
	var extents []extent.Extent
	outside := []int64{} // first and last bytes of what lies between
	at := int64(0)
	for off := rng.Int64N(size/2 + 1); off < size; off += 1 + rng.Int64N(size/2+1) {
		e := extent.Extent{Offset: off, Length: 1 + rng.Int64N(size-off), Data: rng.IntN(2) == 0}
		if off > at {
			outside = append(outside, at, off-1)
		}
		extents = append(extents, e)
		is[e.Offset] ^= 1
		is[e.End()-1] ^= 2
		at = e.End()
		off = at
	}
	if at < size {
		outside = append(outside, at, size-1)
	}
	var changed int64
	for _, e := range extents {
		changed += e.Length
	}
	compared, err := check(e, base, is, extents)
	if err != nil || compared != size-changed {
		t.Fatalf("size %d, extents %v: compared %d, %v", size, extents, compared, err)
	}
	for _, off := range slices.Backward(slices.Compact(outside)) { // each of them before all others that are wrong
		is[off] ^= 0x80
		var lie *lieError
		if _, err := check(e, base, is, extents); !errors.As(err, &lie) || lie.offset != off {
			t.Fatalf("size %d, extents %v, changed at %d: %v", size, extents, off, err)
		}
	}
}

// TestUnchangedShare compares about the share that was asked for.
func TestUnchangedShare(t *testing.T) {
	const size = 1 << 40
	extents := []extent.Extent{{Offset: 0, Length: size / 4, Data: true}, {Offset: size / 2, Length: size / 4}}
	for i, percent := range []float64{0.1, 10, 50, 100} {
		u := unchangedCheck{size: size, percent: percent, engine: &engine{step: 128 << 10 << (2 * i)}}
		var sum, end int64
		for span := range u.pick(extents) {
			if span.Offset < end || span.Length <= 0 || span.Length > u.limit() {
				t.Fatalf("%v behind %d", span, end)
			}
			sum, end = sum+span.Length, span.End()
		}
		if want := u.expected(extents); sum < want*9/10 || sum > want*11/10 {
			t.Errorf("%v %%: %d bytes, want about %d", percent, sum, want)
		}
	}
}

func TestUnchangedErrors(t *testing.T) {
	was := noise(rand.New(rand.NewPCG(3, 4)), 8<<20)
	base := writeChain(t, was)
	u := unchangedCheck{
		src: memory{was, 5 << 20}, size: 8 << 20, base: base, percent: 100, parallel: 4, engine: testEngine(t),
		compared: func(int64) {},
	}
	if err := u.run(t.Context(), nil); !errors.Is(err, rbd.ErrTimeout) {
		t.Errorf("read error: %v", err)
	}
	interrupted := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(interrupted)
	u.src = memory{was, -1}
	if err := u.run(ctx, nil); !errors.Is(err, interrupted) {
		t.Errorf("cancelled: %v", err)
	}
	var file *os.File
	u.base, file = writeFile(t, nil, was)
	file.Close()
	if err := u.run(t.Context(), nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("chain that can't be read: %v", err)
	}
	if free := u.engine.free; len(free) != cap(free) {
		t.Errorf("%d of %d chunks came back", len(free), cap(free))
	}
}
