package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/rbd2qcow2/rbd2qcow2/internal/crashpoint"
	"github.com/rbd2qcow2/rbd2qcow2/internal/extent"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// readSize is how much is read at once at most: an object of the usual size. Smaller reads cost the cluster and us more
// processor time for the same data.
const readSize = 4 << 20

// bufferBudget bounds the buffers of a run, in bytes of data. Compressed data needs as much again.
const bufferBudget = 96 << 20

// step is how much is read at once by an engine with so many chunks: a power of two.
func step(chunks int) int64 {
	n := int64(readSize)
	for n > 64<<10 && n*int64(chunks) > bufferBudget {
		n /= 2
	}
	return n
}

// source is what an engine reads from. A read that fails with rbd.ErrAbandoned goes on writing to p.
type source interface {
	Read(ctx context.Context, p []byte, off int64) error
}

// engine moves data of all images of a run:
//
//	extents ──> readers ──> encoders ──> one ordered writer per image
//
// Its fixed set of chunks is both the bound of its memory and the back-pressure. A chunk is handed out in guest order
// and comes back when it is written, so the oldest one of every image can always go on: there is no deadlock.
type engine struct {
	toRead   chan *task
	toEncode chan *task
	step     int64 // bytes of a read, at most
	free     chan *qcow2.Chunk
	workers  sync.WaitGroup
	readers  sync.WaitGroup
}

// task is a part of an image on its way.
type task struct {
	part
	ctx         context.Context
	src         source
	chunk       *qcow2.Chunk // nil for zeroes
	clusterSize int64
	err         error
	done        chan struct{} // closed when chunk is encoded, or err set
}

// newEngine starts the goroutines; close ends them.
func newEngine(o *Options, key *qcow2.DigestKey) (*engine, error) {
	chunks := o.Parallel + o.encoders() + 2
	e := &engine{
		toRead:   make(chan *task),
		toEncode: make(chan *task),
		step:     step(chunks),
		free:     make(chan *qcow2.Chunk, chunks),
	}
	var encoders []*qcow2.ChunkEncoder
	for range o.encoders() {
		enc, err := qcow2.NewChunkEncoder(o.Compression.Codec)
		if err != nil {
			return nil, fmt.Errorf("prepare compression: %w", err)
		}
		enc.UseKey(key)
		encoders = append(encoders, enc)
	}
	for range chunks {
		e.free <- new(qcow2.Chunk)
	}
	for range o.Parallel {
		e.readers.Go(e.read)
	}
	for _, enc := range encoders {
		e.workers.Go(func() { e.encode(enc) })
	}
	return e, nil
}

// close waits for the goroutines. No copy may be under way.
func (e *engine) close() {
	close(e.toRead)
	e.readers.Wait()
	close(e.toEncode)
	e.workers.Wait()
}

func (e *engine) read() {
	for t := range e.toRead {
		if t.err = t.src.Read(t.ctx, t.chunk.Data[:t.length], t.offset); t.err != nil {
			close(t.done)
			continue
		}
		clear(t.chunk.Data[t.length:])
		e.toEncode <- t
	}
}

func (e *engine) encode(enc *qcow2.ChunkEncoder) {
	for t := range e.toEncode {
		t.err = enc.Encode(t.chunk, t.clusterSize)
		close(t.done)
	}
}

// release gives a finished task's chunk back, or a new one in its place where librbd still writes into it.
func (e *engine) release(t *task) {
	if t.chunk == nil {
		return
	}
	if errors.Is(t.err, rbd.ErrAbandoned) {
		t.chunk = new(qcow2.Chunk)
	}
	e.free <- t.chunk
}

// copyJob is one image's way through the engine.
type copyJob struct {
	engine  *engine
	src     source
	dst     *qcow2.Writer
	written func(bytes int64) // told after each write, without what was read along
}

// run copies extents, whole clusters of the file, and returns the number of bytes read.
func (j *copyJob) run(ctx context.Context, extents []extent.Extent) (read int64, err error) {
	// An error of this image ends the planning alone: the reads under way must bring their chunks back whole.
	planning, stop := context.WithCancel(ctx)
	defer stop()
	// With room for every chunk, so that the planner is never ahead of the readers for want of it.
	order := make(chan *task, cap(j.engine.free))
	var g errgroup.Group
	g.Go(func() error {
		defer close(order)
		j.plan(planning, ctx, extents, order)
		return nil
	})
	g.Go(func() error {
		var failed error
		for t := range order {
			<-t.done
			if failed == nil {
				if failed = j.write(t); failed != nil {
					stop()
				}
				if t.chunk != nil {
					read += t.length
				}
			}
			j.engine.release(t)
		}
		return failed
	})
	err = g.Wait()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return read, err
}

// plan makes tasks of the extents and hands them to the readers, then, in order, to the writer.
func (j *copyJob) plan(planning, reading context.Context, extents []extent.Extent, order chan<- *task) {
	clusterSize := j.dst.ClusterSize()
	for p := range parts(extents, max(j.engine.step, clusterSize)) {
		t := &task{part: p, ctx: reading, src: j.src, done: make(chan struct{}), clusterSize: clusterSize}
		if !p.data {
			close(t.done)
		} else if !j.engine.start(planning, t) {
			return
		}
		order <- t // the writer takes all there is, also after an error
	}
}

// start gives a task a chunk and to the readers. It fails when ctx ends.
func (e *engine) start(ctx context.Context, t *task) bool {
	select {
	case t.chunk = <-e.free:
	case <-ctx.Done():
		return false
	}
	t.chunk.Offset = t.offset
	t.chunk.Gaps = append(t.chunk.Gaps[:0], t.gaps...)
	size := int(roundUp(t.length, t.clusterSize))
	t.chunk.Data = slices.Grow(t.chunk.Data[:0], size)[:size]
	select {
	case e.toRead <- t:
		return true
	case <-ctx.Done():
		e.free <- t.chunk
		return false
	}
}

func (j *copyJob) write(t *task) error {
	if t.err != nil {
		return t.err
	}
	var err error
	if t.chunk == nil {
		err = j.dst.Zero(t.offset, roundUp(t.length, t.clusterSize))
	} else {
		err = j.dst.Append(t.chunk)
		crashpoint.Reach(crashpoint.FirstData)
	}
	j.written(t.wanted)
	return err
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
