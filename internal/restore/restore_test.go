package restore

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
)

// sparse is a blank target that notes down what was written.
type sparse struct {
	layout  Layout
	mu      sync.Mutex
	content []byte
	written []bool
}

func (s *sparse) Layout() Layout { return s.layout }

func (s *sparse) Write(_ context.Context, p []byte, off int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range p {
		if s.written[off+int64(i)] {
			return errors.New("written twice")
		}
		s.written[off+int64(i)] = true
	}
	copy(s.content[off:], p)
	return nil
}

func (s *sparse) Zero(_ context.Context, off, length int64) error {
	if s.layout.Blank {
		return errors.New("zeroed though blank")
	}
	clear(s.content[off : off+length])
	return nil
}

func (s *sparse) Finish(context.Context) error { return nil }
func (s *sparse) Abort() error                 { return nil }

// Whatever is written, and wherever it is cut: the target has it, and as few zeroes as it asks for.
func TestWriteLeavesHolesOut(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	const size = 64 << 10
	for range 2000 {
		want := make([]byte, size)
		for range rng.IntN(6) {
			off := rng.IntN(size)
			want[off] = 1
			for i := range rng.IntN(min(8<<10, size-off)) {
				want[off+i] = 7
			}
		}
		l := Layout{Blank: rng.IntN(2) == 0, Hole: []int64{512, 4096, 16 << 10}[rng.IntN(3)]}
		if l.Blank {
			l.Object = []int64{0, 4096, 16 << 10}[rng.IntN(3)]
		}
		s := &sparse{layout: l, content: make([]byte, size), written: make([]bool, size)}
		if !l.Blank {
			for i := range s.content {
				s.content[i] = 9
			}
		}
		r := &run{dst: s, layout: l}
		at := rng.IntN(size)
		if err := errors.Join(r.write(t.Context(), want[:at], 0), r.write(t.Context(), want[at:], int64(at))); err != nil {
			t.Fatalf("%+v: %v", l, err)
		}
		if !bytes.Equal(s.content, want) {
			t.Fatalf("%+v: other content", l)
		}
		checkThin(t, s, want)
	}
}

// checkThin looks for the last written byte of each object, which is in the last sector with data.
func checkThin(t *testing.T, s *sparse, want []byte) {
	t.Helper()
	o := int(s.layout.Object)
	if o == 0 {
		return
	}
	for from := 0; from < len(want); from += o {
		data, written := bytes.LastIndexFunc(want[from:from+o], func(r rune) bool { return r != 0 }), -1
		for i := range o {
			if s.written[from+i] {
				written = i
			}
		}
		if written > (data/grain+1)*grain+grain || data < 0 && written > grain {
			t.Fatalf("object at %d: data up to %d, written up to %d", from, data, written)
		}
	}
}

func TestDifference(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	const size = 64<<10 + 100
	for range 500 {
		a, b := make([]byte, size), make([]byte, size)
		differ := 0
		for range rng.IntN(20) {
			b[rng.IntN(size)] = 1
		}
		covered := make([]bool, size)
		for at := 0; at < size; {
			from, to := difference(a, b, at)
			for i := from; i < to; i++ {
				covered[i] = true
			}
			differ += to - from
			at = to
		}
		for i := range b {
			if b[i] != 0 && !covered[i] {
				t.Fatalf("byte %d differs and is not found", i)
			}
		}
		if bytes.Equal(a, b) != (differ == 0) {
			t.Fatalf("%d bytes found in equal slices", differ)
		}
	}
}
