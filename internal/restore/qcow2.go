package restore

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// QCOW2 is a qcow2 file that needs no other one.
type QCOW2 struct {
	file     *newFile
	writer   *qcow2.Writer
	encoders chan *qcow2.ChunkEncoder
	chunks   sync.Pool
}

// CreateQCOW2 begins a file for a disk of size bytes. codec nil stores data as it is. With a file of that name, and with
// links, it does as CreateRaw.
func CreateQCOW2(path string, size int64, codec qcow2.Codec, overwrite bool) (*QCOW2, error) {
	file, err := createFile(path, overwrite)
	if err != nil {
		return nil, err
	}
	t := &QCOW2{file: file, encoders: make(chan *qcow2.ChunkEncoder, runtime.GOMAXPROCS(0))}
	t.chunks.New = func() any { return new(qcow2.Chunk) }
	t.writer, err = qcow2.NewWriter(file.Pending, qcow2.WriterOptions{
		Size: size, Codec: codec,
		Scratch: func() (qcow2.Scratch, error) { return repo.Scratch(filepath.Dir(path)) },
	})
	if err != nil {
		file.Discard()
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	for range cap(t.encoders) {
		e, err := qcow2.NewChunkEncoder(codec)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("write %s: prepare compression: %w", path, err), t.Abort())
		}
		t.encoders <- e
	}
	return t, nil
}

// Layout implements Target.
func (t *QCOW2) Layout() Layout {
	return Layout{Blank: true, Ordered: true, Unit: t.writer.ClusterSize()}
}

// Prepare compresses p, as many pieces at once as there are processors.
func (t *QCOW2) Prepare(p []byte, off int64) (func(context.Context) error, error) {
	c, ok := t.chunks.Get().(*qcow2.Chunk)
	if !ok {
		c = new(qcow2.Chunk)
	}
	unit := t.writer.ClusterSize()
	whole := p[:(int64(len(p))+unit-1)/unit*unit]
	clear(whole[len(p):])
	c.Offset, c.Data = off, whole
	e := <-t.encoders
	err := e.Encode(c, unit)
	t.encoders <- e
	return func(context.Context) error {
		err := t.writer.Append(c)
		c.Data = nil
		t.chunks.Put(c)
		return err
	}, err
}

// Write implements Target.
func (t *QCOW2) Write(ctx context.Context, p []byte, off int64) error {
	write, err := t.Prepare(p, off)
	if err != nil {
		return err
	}
	return write(ctx)
}

// Zero implements Target; a new file is blank.
func (t *QCOW2) Zero(context.Context, int64, int64) error { return nil }

// Finish implements Target. The file gets its name.
func (t *QCOW2) Finish(context.Context) error {
	if err := t.writer.Finish(nil); err != nil {
		return err
	}
	if err := t.file.commit(); err != nil {
		return err
	}
	return t.writer.Close()
}

// Abort implements Target. Nothing is left.
func (t *QCOW2) Abort() error {
	t.file.Discard()
	return t.writer.Close()
}
