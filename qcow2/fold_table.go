package qcow2

import (
	"context"
	"fmt"
)

// foldTable is an L2 table of the target while it changes.
type foldTable struct {
	*fold
	index   int64
	guest   int64 // where it maps from
	entries []uint64
	digests []Digest // by entry, of Data
	runs    []Extent // what the other file has from guest on, without gaps
	parts   []foldPart
	changed bool
}

// foldPart is a piece of a cluster of the result: what the two layers together have there. Unallocated is what shows the
// files below.
type foldPart struct {
	Range
	kind  Kind
	other bool // it comes from the other file
}

func (f *fold) foldTable(ctx context.Context, index int64) error {
	if err := f.keepDigests(index); err != nil {
		return err
	}
	n := f.header.l2Entries()
	t := foldTable{fold: f, index: index, guest: index * f.header.l2Span(), entries: make([]uint64, n), digests: make([]Digest, n)}
	table, err := t.read()
	if err != nil {
		return err
	}
	if err := t.readRuns(); err != nil {
		return err
	}
	for i := range t.entries {
		if err := t.foldCluster(ctx, i); err != nil {
			return err
		}
	}
	if err := t.runJobs(ctx); err != nil {
		return err
	}
	return t.finish(table)
}

// read reads what the target has, and its digests.
func (t *foldTable) read() (table int64, err error) {
	if t.index >= t.keep || t.l1[t.index] == 0 {
		return 0, nil
	}
	table = int64(t.l1[t.index] & entryOffset)
	if err := t.target.readEntries(t.entries, t.index, table); err != nil || !t.proved {
		return table, err
	}
	block, err := t.target.proof.block(t.index)
	if err != nil {
		return 0, err
	}
	for i := range t.entries {
		t.digests[i], _ = block.digest(int64(i))
	}
	return table, nil
}

// readRuns reads what the other file has. Behind the end of a smaller disk that is zeroes.
func (t *foldTable) readRuns() error {
	end := min(t.guest+t.header.l2Span(), t.size)
	at := t.guest
	for at < min(end, t.other.Size()) {
		e, err := t.other.FileExtent(at)
		if err != nil {
			return err
		}
		e.Length = min(e.Length, end-at)
		t.runs = join(t.runs, 0, e)
		at += e.Length
	}
	if at < end {
		t.runs = append(t.runs, Extent{Offset: at, Length: end - at, Kind: Zero})
	}
	return nil
}

// foldCluster finds out what becomes of a cluster.
func (t *foldTable) foldCluster(ctx context.Context, i int) error {
	size := t.header.ClusterSize()
	guest := t.guest + int64(i)*size
	if guest >= t.size {
		return t.set(i, 0)
	}
	for t.runs[0].Offset+t.runs[0].Length <= guest {
		t.runs = t.runs[1:]
	}
	if t.staysAsItIs(i, guest) {
		return nil
	}
	t.findParts(i, Range{guest, min(size, t.size-guest)})
	kind, err := t.combine(ctx)
	if err != nil {
		return err
	}
	if kind != Data {
		return t.setEmpty(i, kind)
	}
	if err := t.checkProof(ctx); err != nil {
		return err
	}
	p := t.parts[0]
	sameClusters := t.other.header.ClusterBits == t.header.ClusterBits
	return t.addJob(ctx, i, len(t.parts) == 1 && p.other && sameClusters && p.End() <= t.other.Size() && p.Length == size)
}

// staysAsItIs says whether the target's own cluster is what the result has there.
func (t *foldTable) staysAsItIs(i int, guest int64) bool {
	own := entryKind(t.entries[i])
	if !t.intoBacking {
		return own != Unallocated // it hides what is below
	}
	size := t.header.ClusterSize()
	run := t.runs[0]
	if run.Kind != Unallocated || run.Offset+run.Length < min(guest+size, t.size) {
		return false
	}
	// A disk that ends inside the cluster leaves there what must not come to light in a larger one.
	return guest+size <= min(t.size, t.backingSize) || t.size == t.backingSize
}

// findParts lists what a cluster of the result consists of.
func (t *foldTable) findParts(i int, cluster Range) {
	t.parts = t.parts[:0]
	for _, run := range t.runs {
		if run.Offset >= cluster.End() {
			break
		}
		off, end := max(run.Offset, cluster.Offset), min(run.Offset+run.Length, cluster.End())
		if run.Kind != Unallocated || !t.intoBacking {
			t.parts = append(t.parts, foldPart{Range{off, end - off}, run.Kind, true})
			continue
		}
		if inside := min(end, t.backingSize); off < inside {
			t.parts = append(t.parts, foldPart{Range{off, inside - off}, entryKind(t.entries[i]), false})
			off = inside
		}
		if off < end { // the smaller disk hides what is below
			t.parts = append(t.parts, foldPart{Range{off, end - off}, Zero, false})
		}
	}
}

// combine gives what the cluster becomes that consists of the parts; Data also where it only has to be read to know.
func (t *foldTable) combine(ctx context.Context) (Kind, error) {
	hides := false
	for _, p := range t.parts {
		if p.kind == Data {
			return Data, nil
		}
		if p.kind == Zero && !hides {
			var err error
			if hides, err = t.belowHolds(ctx, p.Range); err != nil {
				return 0, err
			}
		}
	}
	if !hides {
		return Unallocated, nil
	}
	for _, p := range t.parts {
		if p.kind != Unallocated {
			continue
		}
		if shows, err := t.belowHolds(ctx, p.Range); err != nil || shows {
			return Data, err
		}
	}
	return Zero, nil
}

// checkProof gives up the digests of the result once data comes into it that has none.
func (t *foldTable) checkProof(ctx context.Context) error {
	for _, p := range t.parts {
		if !t.proved || t.below == nil || t.below.allProved() || p.kind != Unallocated {
			continue
		}
		shows, err := t.belowHolds(ctx, p.Range)
		if err != nil {
			return err
		}
		t.proved = !shows
	}
	return nil
}

func (f *fold) belowHolds(ctx context.Context, r Range) (bool, error) {
	if f.below == nil {
		return false, nil
	}
	return f.below.holdsData(ctx, r.Offset, min(r.End(), f.below.Size()))
}

// setEmpty makes an entry one without data. One that is so already stays as it is, with what is allocated for it.
func (t *foldTable) setEmpty(i int, kind Kind) error {
	if kind == entryKind(t.entries[i]) {
		return nil
	}
	if kind == Unallocated {
		return t.set(i, 0)
	}
	t.stats.ZeroClusters++
	return t.set(i, entryZero)
}

// set changes an entry.
func (t *foldTable) set(i int, e uint64) error {
	old := t.entries[i]
	if old == e {
		return nil
	}
	t.entries[i], t.changed = e, true
	return t.drop(old, t.guest+int64(i)*t.header.ClusterSize())
}

// finish puts the table in the queue if it has changed. A table without entries leaves no trace.
func (t *foldTable) finish(table int64) error {
	if !t.changed {
		return t.keepDigests(t.index + 1)
	}
	if err := t.dropDigests(t.index + 1); err != nil {
		return err
	}
	if table != 0 {
		if err := t.refs.changeSpan(table, t.header.ClusterSize(), -1); err != nil {
			return err
		}
	}
	kinds, block, used := make([]byte, len(t.entries)), make([]byte, DigestSize), false
	for i, e := range t.entries {
		kinds[i] = byte(entryKind(e))
		used = used || e != 0
		if Kind(kinds[i]) == Data {
			block = append(block, t.digests[i][:]...)
		}
	}
	t.l1[t.index] = 0
	if !used {
		return nil
	}
	if t.proved {
		if err := t.trailer.add(t.index, kinds, block); err != nil {
			return err
		}
	}
	t.queue = append(t.queue, queuedTable{t.index, t.entries})
	if int64(len(t.queue))*t.header.ClusterSize() < t.o.limits.queue {
		return nil
	}
	return t.writeQueue()
}

// writeQueue writes the tables in the queue.
func (f *fold) writeQueue() error {
	for _, t := range f.queue {
		cluster, err := f.space.take()
		if err != nil {
			return err
		}
		if err := f.refs.change(cluster, 1); err != nil {
			return err
		}
		off := cluster << f.header.ClusterBits
		if err := f.writeTable(t.entries, off); err != nil {
			return fmt.Errorf("write L2 table: %w", err)
		}
		f.l1[t.index] = uint64(off) | entryCopied
	}
	f.queue = f.queue[:0]
	return nil
}
