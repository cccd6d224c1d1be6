package qcow2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
)

// FindingKind says what a Finding means for those who use the file.
type FindingKind uint8

// The kinds of findings.
const (
	// Corruption is metadata that contradicts the specification, other metadata, or the record: what reads right today
	// may be overwritten tomorrow.
	Corruption FindingKind = iota + 1
	// Leak is room that nobody uses and nobody can take. It harms nothing.
	Leak
	// Damage is bytes that are not what was written. Without a guest range they are of no use to a guest.
	Damage
)

func (k FindingKind) String() string {
	switch k {
	case Corruption:
		return "corruption"
	case Leak:
		return "leak"
	case Damage:
		return "damage"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Finding is one thing that Check has found, or several alike that adjoin.
type Finding struct {
	Kind      FindingKind
	Structure string // what is wrong: "refcount", "L2 entry", "cluster", … as in CorruptError
	Host      Range  // where in the file, bytes; of clusters of the guest, where the first ones lie. Length 0: not known
	Guest     Range  // which part of the disk may read wrongly. Length 0: none
	Message   string // of several alike: what is wrong with the first of them
}

func (f Finding) String() string {
	s := fmt.Sprintf("%s: %s", f.Kind, f.Structure)
	if f.Guest.Length > 0 {
		s += fmt.Sprintf(", disk bytes %d to %d", f.Guest.Offset, f.Guest.End())
	}
	if f.Host.Length > 0 {
		s += fmt.Sprintf(", file bytes %d to %d", f.Host.Offset, f.Host.End())
	}
	return s + ": " + f.Message
}

// err is the finding for those who stop at the first one.
func (f Finding) err() error {
	at := f.Host.Offset
	if f.Guest.Length > 0 {
		at = f.Guest.Offset
	}
	return &CorruptError{f.Structure, at, f.Message}
}

// joins says whether next goes on where f ends, and appends it then.
func (f *Finding) joins(next Finding) bool {
	if f.Kind != next.Kind || f.Structure != next.Structure || (f.Guest.Length > 0) != (next.Guest.Length > 0) {
		return false
	}
	adjoins := f.Host.Length > 0 && f.Host.End() == next.Host.Offset
	if f.Guest.Length == 0 {
		if adjoins {
			f.Host.Length += next.Host.Length
		}
		return adjoins
	}
	if f.Guest.End() != next.Guest.Offset {
		return false
	}
	if adjoins && f.Host.Length == f.Guest.Length {
		f.Host.Length += next.Host.Length
	}
	f.Guest.Length += next.Guest.Length
	return true
}

// CheckOptions says what Check looks at.
type CheckOptions struct {
	// Data has the content of clusters compared with their digests; where a file has none, they are read and decompressed.
	Data bool
	// Sample says for parts of the disk, of some MiB, whether their data is looked at; nil: all is. It is asked from one
	// goroutine, in ascending order.
	Sample func(guest Range) bool
	// Parallel is how many goroutines read data; 0: as many as there are processors.
	Parallel int
	// Report hears of each finding, one at a time: those of structures first, then those of data in ascending order.
	Report func(Finding)

	window int64 // host clusters whose references are counted at a time; 0: refcountWindow
}

// CheckStats counts what Check has looked at.
type CheckStats struct {
	Corruptions        int64 // findings by their kind
	Leaks              int64
	Damages            int64
	Tables             int64 // L2 tables
	DataClusters       int64 // of the guest, compressed or not
	CompressedClusters int64
	ZeroClusters       int64
	VerifiedBytes      int64 // of the guest, equal to their digests
	ReadBytes          int64 // of the guest, read without digests to compare them with
	SkippedBytes       int64 // of the guest, stored but left out by Sample
}

// Good says that nothing was found.
func (s *CheckStats) Good() bool { return s.Corruptions+s.Leaks+s.Damages == 0 }

// Check looks for all that is wrong with this file, not with those below it, and goes on after each finding: header and
// record, tables and their entries, references to host clusters against refcounts, COPIED flags, what overlaps, identity,
// digests, and, in a file that a Writer made and no fold has changed, that what is unused is zero. Whatever qemu-img check
// finds, it finds. An Image of a whole chain will do, or one opened with OpenOptions.Alone; OpenOptions.Prove adds nothing.
//
// Errors say that the check is not complete: those of the file's reader (but where it can't read the data of a guest for
// EIO, that is a finding), ctx's, or, after all else was looked at, *UnsupportedError for what can't be counted (internal
// snapshots, bitmaps) or compared (a digest algorithm or a record of a later version). Memory is bounded: beside the caches
// of the chain some 40 MiB, the refcount table, and 1 MiB or a cluster per goroutine.
func (im *Image) Check(ctx context.Context, o CheckOptions) (CheckStats, error) {
	if o.window == 0 {
		o.window = refcountWindow
	}
	if o.Parallel <= 0 {
		o.Parallel = runtime.GOMAXPROCS(0)
	}
	c := checker{im: im, o: o}
	err := c.run(ctx)
	c.flush()
	if err != nil {
		return c.stats, fmt.Errorf("check: %w", err)
	}
	return c.stats, nil
}

// checker is a check at work.
type checker struct {
	im       *Image
	o        CheckOptions
	stats    CheckStats
	pending  Finding // joins what adjoins
	changed  bool    // its header is not as the record has it
	digested bool    // it has digests, and their directory is right
	pristine bool    // a Writer made the file, and no fold has changed it
	unknown  []error // what can't be checked
}

func (c *checker) run(ctx context.Context) error {
	r, err := c.checkRecord()
	if err != nil {
		return err
	}
	if err := c.checkTables(ctx, r); err != nil {
		return err
	}
	if r != nil && !c.changed {
		if err := c.checkUnused(r); err != nil {
			return err
		}
	}
	if err := c.checkData(ctx, r); err != nil {
		return err
	}
	return errors.Join(c.unknown...)
}

// report takes a finding. It gives no error: a check goes on.
func (c *checker) report(f Finding) error {
	if c.pending.joins(f) {
		return nil
	}
	c.flush()
	c.pending = f
	return nil
}

// flush passes on what waited for its neighbours.
func (c *checker) flush() {
	switch c.pending.Kind {
	case 0:
		return
	case Corruption:
		c.stats.Corruptions++
	case Leak:
		c.stats.Leaks++
	case Damage:
		c.stats.Damages++
	}
	if c.o.Report != nil {
		c.o.Report(c.pending)
	}
	c.pending = Finding{}
}

// asFinding makes a finding of an error that says what is wrong with the file. Others are given back.
func asFinding(err error, f Finding) (Finding, error) {
	var e *CorruptError
	if !errors.As(err, &e) {
		return f, err
	}
	f.Structure, f.Message = e.Structure, e.Reason
	return f, nil
}

// hostRange is n bytes at off if they lie inside the file.
func (im *Image) hostRange(off, n int64) Range {
	if _, err := im.area("", off, n); err != nil {
		return Range{}
	}
	return Range{off, n}
}

// checkRecord checks what the record has of header and file, and the identity. It gives the record if it is of use: of a
// header that was changed it still leads to the digests.
func (c *checker) checkRecord() (*Record, error) {
	im, r := c.im, c.im.header.Record
	var unsupported *UnsupportedError
	switch _, err := im.record(); {
	case errors.Is(err, ErrNoRecord):
		return nil, c.checkLostRecord()
	case errors.As(err, &unsupported):
		c.unknown = append(c.unknown, err)
		return nil, nil
	case err != nil:
		c.changed = true
		if err := c.reportError(err, Finding{Kind: Corruption, Host: Range{0, sectorSize}}); err != nil || r == nil {
			return nil, err
		}
	}
	f := Finding{Kind: Damage, Structure: "file", Host: Range{im.fileLength, r.FileLength - im.fileLength}}
	if f.Message = fmt.Sprintf("ends here instead of at %d", r.FileLength); r.FileLength < im.fileLength {
		f.Kind, f.Host = Leak, Range{r.FileLength, im.fileLength - r.FileLength}
		f.Message = fmt.Sprintf("goes on here: it ended at %d", r.FileLength)
	}
	if r.FileLength != im.fileLength {
		_ = c.report(f)
	}
	if _, err := r.ReadIdentity(im.r, im.fileLength); err != nil {
		return r, c.reportError(err, Finding{Kind: Damage, Host: im.hostRange(r.IdentityOffset, r.IdentityLength)})
	}
	return r, nil
}

// checkLostRecord looks for a record that the header does not lead to.
func (c *checker) checkLostRecord() error {
	n := int64(sectorSize)
	if h := c.im.header; h.backingOffset != 0 {
		n = min(n, h.backingOffset) // the name may be anything
	}
	b := make([]byte, n)
	if err := c.im.readHost(b, 0); err != nil {
		return fmt.Errorf("read header: %w", err)
	}
	at := bytes.Index(b, []byte(recordMagic))
	if at < 0 {
		return nil
	}
	f := Finding{Kind: Corruption, Structure: "record", Host: Range{int64(at), int64(len(recordMagic))}}
	f.Message = "it is no header extension any more"
	return c.report(f)
}

// reportError reports what an error says to be wrong with the file, by the finding given but for its words. Other errors are
// given back.
func (c *checker) reportError(err error, f Finding) error {
	f, err = asFinding(err, f)
	if err != nil {
		return err
	}
	return c.report(f)
}
