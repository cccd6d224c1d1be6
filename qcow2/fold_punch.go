package qcow2

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// punchPage is what a file system gives back at least.
const punchPage = 4096

// Puncher makes a hole in a file: n bytes from off read as zeroes afterwards and take no room. Its length stays.
type Puncher interface {
	Punch(off, n int64) error
}

// Punch gives back, once, the room of what the fold has superseded, in whole pages of 4 KiB: host clusters without
// references, and inside others the compressed data that has none and is proved to be what it was. Nothing of it is read
// any more, so that it can be cut short anywhere; Image.PunchFree does most of what is left then. It ends with the first
// error of p.
func (f *Folded) Punch(p Puncher) error {
	err := f.dead.spans.each(p.Punch)
	if err != nil {
		err = fmt.Errorf("punch: %w", err)
	}
	return errors.Join(err, f.Close())
}

// Close gives up what Punch needs. It is not needed after Punch.
func (f *Folded) Close() error { return f.dead.close() }

// deadSpans lists the parts of a file that the new state does not need.
type deadSpans struct {
	spans   spanSpool // to be punched
	blobs   spanSpool // guest offset and L2 entry of each compressed cluster that was superseded
	pending Range     // joins neighbours
	freed   int64     // bytes of spans
}

func newDeadSpans(scratch func() (Scratch, error)) *deadSpans {
	return &deadSpans{spans: spanSpool{newSpool(scratch)}, blobs: spanSpool{newSpool(scratch)}}
}

// add adds n bytes at off.
func (d *deadSpans) add(off, n int64) error {
	if off == d.pending.End() {
		d.pending.Length += n
		return nil
	}
	err := d.flush()
	d.pending = Range{off, n}
	return err
}

// flush makes whole pages of what is pending.
func (d *deadSpans) flush() error {
	pages := wholePages(d.pending)
	d.pending = Range{}
	if pages.Length == 0 {
		return nil
	}
	d.freed += pages.Length
	return d.spans.add(pages.Offset, pages.Length)
}

// wholePages is what can be punched of a range.
func wholePages(r Range) Range {
	off := (r.Offset + punchPage - 1) / punchPage * punchPage
	return Range{off, max(0, r.End()/punchPage*punchPage-off)}
}

func (d *deadSpans) close() error { return errors.Join(d.spans.close(), d.blobs.close()) }

// spanSpool is a queue of spans of a file.
type spanSpool struct{ *spool }

func (s spanSpool) add(off, n int64) error {
	b := binary.BigEndian.AppendUint64(nil, uint64(off))
	_, err := s.Write(binary.BigEndian.AppendUint64(b, uint64(n)))
	if err != nil {
		return fmt.Errorf("write superseded spans aside: %w", err)
	}
	return nil
}

func (s spanSpool) each(do func(off, n int64) error) error {
	in := bufio.NewReader(s.reader())
	for b := make([]byte, 16); ; {
		if _, err := io.ReadFull(in, b); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read superseded spans: %w", err)
		}
		if err := do(int64(binary.BigEndian.Uint64(b)), int64(binary.BigEndian.Uint64(b[8:]))); err != nil {
			return err
		}
	}
}
