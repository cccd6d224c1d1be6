package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// sector is what the length of compressed data is counted in, in bytes (qcow2 specification, "Compressed Clusters Descriptor").
const sector = 512

// The bits of table entries (qcow2 specification, "Cluster mapping").
const (
	compressedBit = 1 << 62
	zeroBit       = 1
	offsetMask    = 0x00fffffffffffe00
)

// liveData is how many bytes of a point's file are data that its tables lead to, in sectors, each counted once.
func liveData(p *repo.Point) (int64, error) {
	if p.Header == nil {
		return 0, p.Err
	}
	file, err := os.Open(p.Path())
	if err != nil {
		return 0, err
	}
	defer file.Close()
	used := make(sectors, (p.FileSize+sector-1)/sector)
	l1, err := readTable(file, p.Header.L1Offset, int64(p.Header.L1Size))
	if err != nil {
		return 0, fmt.Errorf("read L1 table of %s: %w", p.Path(), err)
	}
	for _, e := range l1 {
		if e&offsetMask == 0 {
			continue
		}
		l2, err := readTable(file, int64(e&offsetMask), p.Header.ClusterSize()/8)
		if err != nil {
			return 0, fmt.Errorf("read L2 table of %s: %w", p.Path(), err)
		}
		for _, e := range l2 {
			used.mark(e, p.Header)
		}
	}
	return used.count(), nil
}

// readTable reads n entries. What is behind the end of the file counts as zeroes.
func readTable(r io.ReaderAt, off, n int64) ([]uint64, error) {
	b := make([]byte, n*8)
	if _, err := r.ReadAt(b, off); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	table := make([]uint64, n)
	for i := range table {
		table[i] = binary.BigEndian.Uint64(b[i*8:])
	}
	return table, nil
}

// sectors says which of a file's sectors hold data.
type sectors []bool

// mark marks those that an L2 entry leads to.
func (s sectors) mark(e uint64, h *qcow2.Header) {
	first := int64(e&offsetMask) / sector
	n := h.ClusterSize() / sector
	switch {
	case e&compressedBit != 0:
		bits := 62 - (h.ClusterBits - 8)
		first = int64(e&(1<<bits-1)) / sector
		n = int64(e&^(3<<62)>>bits) + 1
	case e&zeroBit != 0 || e&offsetMask == 0:
		return
	}
	for i := first; i < min(first+n, int64(len(s))); i++ {
		s[i] = true
	}
}

func (s sectors) count() (n int64) {
	for _, used := range s {
		if used {
			n += sector
		}
	}
	return n
}
