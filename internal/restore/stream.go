package restore

import (
	"context"
	"io"
)

// Stream is a disk as a sequence of bytes: what a pipe takes.
type Stream struct {
	w    io.Writer
	size int64
	at   int64
}

// NewStream writes a disk of size bytes to w, which stays the caller's.
func NewStream(w io.Writer, size int64) *Stream { return &Stream{w: w, size: size} }

// Layout implements Target.
func (s *Stream) Layout() Layout { return Layout{Blank: true, Ordered: true} }

// Write implements Target.
func (s *Stream) Write(ctx context.Context, p []byte, off int64) error {
	if err := s.zeroes(ctx, off); err != nil {
		return err
	}
	return s.put(ctx, p)
}

// put writes p, unless ctx ends before the reader takes it: then the write goes on behind, until the program ends.
func (s *Stream) put(ctx context.Context, p []byte) error {
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	go func() {
		n, err := s.w.Write(p)
		done <- result{n, err}
	}()
	select {
	case r := <-done:
		s.at += int64(r.n)
		return r.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// zeroes writes zeroes up to an offset.
func (s *Stream) zeroes(ctx context.Context, off int64) error {
	zeros := make([]byte, min(1<<20, max(0, off-s.at)))
	for s.at < off {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := s.put(ctx, zeros[:min(int64(len(zeros)), off-s.at)]); err != nil {
			return err
		}
	}
	return nil
}

// Zero implements Target; a stream is blank.
func (s *Stream) Zero(context.Context, int64, int64) error { return nil }

// Finish implements Target.
func (s *Stream) Finish(ctx context.Context) error { return s.zeroes(ctx, s.size) }

// Abort implements Target. A stream that ends early is short: what reads it has to be told by our exit status.
func (s *Stream) Abort() error { return nil }
