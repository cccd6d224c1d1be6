package qcow2

import "context"

// CheckStructure walks the L1 and L2 tables of this file, not of those below it, and checks each entry: reserved
// bits, alignment, and that what it points to lies inside the file. Refcounts are not looked at: see Check. It stops at the
// first error, a *CorruptError, ctx's, or one of the file's reader.
func (im *Image) CheckStructure(ctx context.Context) error {
	tables := im.walkTables(nil)
	for {
		index, table, err := tables.next(ctx)
		if err != nil || index == int64(im.header.L1Size) {
			return err
		}
		if err := im.walkEntries(table, index*im.header.l2Span(), nil, func(mapping, int64) error { return nil }); err != nil {
			return err
		}
	}
}

// walkEntries calls visit for each entry of an L2 table, which maps from the guest offset on. What is wrong with an entry
// goes to bad first, and visit gets what of it can be used; without bad it is an error.
func (im *Image) walkEntries(table, guest int64, bad func(Finding) error, visit func(m mapping, guest int64) error) error {
	for at := table; at < table+im.header.ClusterSize(); {
		entries, err := im.entries(at)
		if err != nil {
			return err
		}
		for i := range entries.len() {
			m, err := im.decodeEntry(entries.at(i), guest)
			if err != nil {
				cluster := im.guestRange(guest, im.header.ClusterSize())
				err = tolerate(bad, err, Finding{Kind: Corruption, Host: Range{at + int64(i)*8, 8}, Guest: cluster})
			}
			if err == nil {
				err = visit(m, guest)
			}
			if err != nil {
				return err
			}
			guest += im.header.ClusterSize()
		}
		at += int64(len(entries))
	}
	return nil
}

// guestRange is n bytes of the disk from off on, as far as it goes.
func (im *Image) guestRange(off, n int64) Range {
	return Range{off, max(0, min(n, im.Size()-off))}
}

// tableRange is the part of the disk that an L1 entry is for.
func (im *Image) tableRange(index int64) Range {
	return im.guestRange(index*im.header.l2Span(), im.header.l2Span())
}

// tolerate passes on what an error says to be wrong with the file, as the finding given but for its words. It gives
// back all other errors, and without bad every one.
func tolerate(bad func(Finding) error, err error, f Finding) error {
	if bad == nil {
		return err
	}
	f, err = asFinding(err, f)
	if err != nil {
		return err
	}
	return bad(f)
}

// tableWalk goes through the L2 tables of a file.
type tableWalk struct {
	im    *Image
	bad   func(Finding) error // is told what is wrong with an L1 entry, which is left out then; nil: that is an error
	index int64               // of the next L1 entry
	left  int64               // how many tables there is room for: a file that names one again and again would keep us for years
}

func (im *Image) walkTables(bad func(Finding) error) *tableWalk {
	return &tableWalk{im: im, bad: bad, left: (im.fileLength - 1) / im.header.ClusterSize()}
}

// next gives the next L1 entry that has an L2 table, and where that lies; behind the last one the size of the L1 table.
func (w *tableWalk) next(ctx context.Context) (index, table int64, err error) {
	h := w.im.header
	size := int64(h.L1Size)
	for w.index < size {
		if err := ctx.Err(); err != nil {
			return 0, 0, err
		}
		table, holes, err := w.im.l2Table(w.index)
		if err != nil {
			f := Finding{Kind: Corruption, Host: Range{h.L1Offset + w.index*8, 8}, Guest: w.im.tableRange(w.index)}
			if err := tolerate(w.bad, err, f); err != nil {
				return 0, 0, err
			}
		}
		if table == 0 {
			w.index += max(holes, 1)
			continue
		}
		if w.left == 0 {
			err := corrupt("L1 table", h.L1Offset, "more L2 tables than the file has room for")
			w.index = size
			return size, 0, tolerate(w.bad, err, Finding{Kind: Corruption, Host: Range{h.L1Offset, size * 8}})
		}
		w.left--
		w.index++
		return w.index - 1, table, nil
	}
	return size, 0, nil
}
