package qcow2

import "context"

// CheckStructure walks the L1 and L2 tables of this file, not of those below it, and checks each entry: reserved
// bits, alignment, and that what it points to lies inside the file. Refcounts are not looked at. It stops at the
// first error, a *CorruptError, ctx's, or one of the file's reader.
func (im *Image) CheckStructure(ctx context.Context) error {
	tables := im.walkTables()
	for {
		index, table, err := tables.next(ctx)
		if err != nil || index == int64(im.header.L1Size) {
			return err
		}
		if err := im.walkEntries(table, index*im.header.l2Span(), func(mapping) error { return nil }); err != nil {
			return err
		}
	}
}

// walkEntries calls visit for each entry of an L2 table, which maps from the guest offset on.
func (im *Image) walkEntries(table, guest int64, visit func(mapping) error) error {
	for at := table; at < table+im.header.ClusterSize(); {
		entries, err := im.entries(at)
		if err != nil {
			return err
		}
		for i := range entries.len() {
			m, err := im.decodeEntry(entries.at(i), guest)
			if err == nil {
				err = visit(m)
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

// tableWalk goes through the L2 tables of a file.
type tableWalk struct {
	im    *Image
	index int64 // of the next L1 entry
	left  int64 // how many tables there is room for: a file that names one again and again would keep us for years
}

func (im *Image) walkTables() *tableWalk {
	return &tableWalk{im: im, left: (im.fileLength - 1) / im.header.ClusterSize()}
}

// next gives the next L1 entry that has an L2 table, and where that lies; behind the last one the size of the L1 table.
func (w *tableWalk) next(ctx context.Context) (index, table int64, err error) {
	size := int64(w.im.header.L1Size)
	for w.index < size {
		if err := ctx.Err(); err != nil {
			return 0, 0, err
		}
		table, holes, err := w.im.l2Table(w.index)
		if err != nil {
			return 0, 0, err
		}
		if holes > 0 {
			w.index += holes
			continue
		}
		if w.left == 0 {
			return 0, 0, corrupt("L1 table", w.im.header.L1Offset, "more L2 tables than the file has room for")
		}
		w.left--
		w.index++
		return w.index - 1, table, nil
	}
	return size, 0, nil
}
