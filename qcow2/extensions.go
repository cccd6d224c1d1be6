package qcow2

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// readExtensions reads the header extensions from off up to end, which is bounded by the cluster size
// (qcow2 specification, "Header extensions").
func (h *Header) readExtensions(r io.ReaderAt, off, end int64) error {
	in := bufio.NewReader(io.NewSectionReader(r, off, end-off))
	var head [8]byte
	for off+8 <= end {
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return fmt.Errorf("read header extension: %w", err)
		}
		kind, n := binary.BigEndian.Uint32(head[:]), int64(binary.BigEndian.Uint32(head[4:]))
		off += 8
		if kind == extensionEnd {
			break
		}
		if n > end-off {
			return corrupt("header extension", off-8, "type %#x, %d bytes: too long", kind, n)
		}
		padded := min((n+7)&^7, end-off)
		switch kind {
		case extensionRecord:
			h.recordOffset = off
		case extensionBitmaps:
			h.bitmaps = true
		}
		if err := h.readExtension(in, kind, n); err != nil {
			return err
		}
		if _, err := in.Discard(int(padded - n)); err != nil {
			return fmt.Errorf("read header extension: %w", err)
		}
		off += padded
	}
	h.headerAndExtensions = int(off)
	return nil
}

func (h *Header) readExtension(in *bufio.Reader, kind uint32, n int64) error {
	known := kind == extensionBackingFmt || kind == extensionRecord
	if kind == extensionBackingFmt && n > maxFormatName {
		return corrupt("header extension", 0, "backing format of %d bytes: more than %d", n, maxFormatName)
	}
	if kind == extensionRecord && n > maxRecordLength {
		h.RecordError = corrupt("record", 0, "%d bytes: more than %d", n, maxRecordLength)
		known = false
	}
	if !known {
		if _, err := in.Discard(int(n)); err != nil {
			return fmt.Errorf("read header extension: %w", err)
		}
		return nil
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(in, data); err != nil {
		return fmt.Errorf("read header extension: %w", err)
	}
	switch {
	case kind == extensionBackingFmt:
		h.BackingFormat = string(data)
	case h.Record != nil || h.RecordError != nil:
		h.Record, h.RecordError = nil, corrupt("record", 0, "more than one")
	default:
		h.Record, h.RecordError = decodeRecord(data)
	}
	return nil
}

// checkHash compares the header with the hash that the record has of it.
func (h *Header) checkHash(r io.ReaderAt) error {
	changed := corrupt("header", 0, "its hash is another: it was damaged, or changed by another program")
	length := int64(recordLength)
	if h.Record.Digests == BLAKE3 {
		length = keyedRecordLength
	}
	if h.recordOffset+length > sectorSize {
		h.RecordError = changed
		return nil
	}
	sector := make([]byte, sectorSize)
	if _, err := readFullAt(r, sector, 0); err != nil {
		return fmt.Errorf("read header: %w", err)
	}
	hash := headerHash(sector, int(h.recordOffset), h.BackingFile)
	if !bytes.Equal(hash[:], sector[h.recordOffset+recordHeaderHash:][:DigestSize]) {
		h.RecordError = changed
	}
	return nil
}
