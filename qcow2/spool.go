package qcow2

import (
	"bytes"
	"io"
	"os"
)

// Scratch holds what a Writer can place only at its end: the digests, 16 bytes per stored cluster. *os.File is one.
type Scratch interface {
	io.Writer
	io.ReaderAt
	io.Closer
}

// spoolMemory is the number of bytes that a spool keeps in memory before it asks for a Scratch:
// the digests of 4 GiB in clusters of 64 KiB.
const spoolMemory = 1 << 20

// spool is a byte queue that is written once, then read once, in bounded memory.
type spool struct {
	open   func() (Scratch, error)
	mem    []byte
	file   Scratch
	length int64
}

func newSpool(open func() (Scratch, error)) *spool {
	if open == nil {
		open = openTemporary
	}
	return &spool{open: open}
}

// openTemporary makes a file without a name in the system's folder for temporary files.
func openTemporary() (Scratch, error) {
	f, err := os.CreateTemp("", "qcow2-digests-")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

func (s *spool) Write(p []byte) (int, error) {
	s.length += int64(len(p))
	s.mem = append(s.mem, p...)
	if len(s.mem) < spoolMemory {
		return len(p), nil
	}
	if s.file == nil {
		f, err := s.open()
		if err != nil {
			return 0, err
		}
		s.file = f
	}
	_, err := s.file.Write(s.mem)
	s.mem = s.mem[:0]
	return len(p), err
}

// reader reads everything, in the order in which it came.
func (s *spool) reader() io.Reader {
	mem := bytes.NewReader(s.mem)
	if s.file == nil {
		return mem
	}
	return io.MultiReader(io.NewSectionReader(s.file, 0, s.length-int64(len(s.mem))), mem)
}

// copyTo writes everything to w.
func (s *spool) copyTo(w io.Writer) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, s.reader(), make([]byte, 256<<10))
	return err
}

func (s *spool) close() error {
	if s.file == nil {
		return nil
	}
	f := s.file
	s.file = nil
	return f.Close()
}
