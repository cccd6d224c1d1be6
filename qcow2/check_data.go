package qcow2

import (
	"context"
	"sync"
)

// checkPiece is how much of a disk is given to a goroutine at a time, in bytes; a cluster where that is more, a table
// where that is less.
const checkPiece = 8 << 20

// dataCheck compares the data of a file with its digests: one goroutine goes through the tables and cuts them into
// pieces, some read those, one takes what they have found in the order of the disk.
type dataCheck struct {
	im       *Image
	record   *Record // nil: there are no digests, data is only read
	parallel int
	sample   func(Range) bool
	bad      func(Finding) error // takes what is wrong with tables and entries; nil: that is an error
	report   func(Finding) error // takes all else; its error ends the check
	exact    bool                // compressed data takes no more sectors than it needs
	pristine bool                // what is beside the data is zero
	stats    CheckStats

	jobs, order chan *dataJob
	err         error // the first one
	blobEnd     int64 // where the compressed data ends that was read last, or unknownPlace
}

// checkData reads the data of the file, or what is to be read of it.
func (c *checker) checkData(ctx context.Context, r *Record) error {
	if !c.o.Data || r != nil && r.Digests != NoDigest && !c.digested {
		return nil
	}
	d := dataCheck{im: c.im, parallel: c.o.Parallel, sample: c.o.Sample, report: c.report}
	d.bad = func(Finding) error { return nil } // which checkTables has told
	if c.digested {
		d.record, d.exact, d.pristine = r, !c.changed, c.pristine
	}
	err := d.run(ctx)
	c.stats.addData(d.stats)
	return err
}

func (d *dataCheck) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d.jobs, d.order = make(chan *dataJob), make(chan *dataJob, 4*d.parallel)
	var workers, collector sync.WaitGroup
	for range d.parallel {
		workers.Go(func() {
			w := dataWorker{dataCheck: d, ctx: ctx}
			for j := range d.jobs {
				w.run(j)
				close(j.done)
			}
		})
	}
	collector.Go(func() {
		for j := range d.order {
			<-j.done
			if ctx.Err() != nil {
				continue // there is nobody who waits for more
			}
			if d.err = d.collect(j); d.err != nil {
				cancel()
			}
		}
	})
	err := d.cut(ctx)
	close(d.jobs)
	workers.Wait()
	close(d.order)
	collector.Wait()
	switch {
	case d.err != nil:
		return d.err
	case err != nil:
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return d.checkBlobEnd(d.im.fileLength)
}

// addData adds what was read.
func (s *CheckStats) addData(more CheckStats) {
	s.VerifiedBytes += more.VerifiedBytes
	s.ReadBytes += more.ReadBytes
	s.SkippedBytes += more.SkippedBytes
}

// collect takes what a job has found.
func (d *dataCheck) collect(j *dataJob) error {
	if j.err != nil {
		return j.err
	}
	for _, f := range j.findings {
		if err := d.report(f); err != nil {
			return err
		}
	}
	d.stats.addData(j.stats)
	if j.skipped {
		d.blobEnd = unknownPlace
	}
	if j.hasBlob {
		if err := d.checkBlobEnd(j.firstBlob); err != nil {
			return err
		}
		d.blobEnd = j.blobEnd
	}
	return nil
}

// checkBlobEnd checks that the rest of the cluster is zero in which the last compressed data ends, if the next does not
// go on right there: a Writer packs it in the order of the disk. next is the end of the file behind the last one.
func (d *dataCheck) checkBlobEnd(next int64) error {
	f, err := d.findInGap(d.blobEnd, next)
	if err == nil && f.Kind != 0 {
		err = d.report(f)
	}
	return err
}

// findInGap looks at the rest of the cluster in which compressed data ends, if the next does not go on there.
func (d *dataCheck) findInGap(end, next int64) (Finding, error) {
	if !d.pristine || end == unknownPlace || next == unknownPlace || end == next {
		return Finding{}, nil
	}
	return d.im.findNonzero(Range{end, d.im.clusterEnd(end) - end})
}

// cut goes through the tables of the file and the entries of the directory side by side.
func (d *dataCheck) cut(ctx context.Context) error {
	tables := d.im.walkTables(d.bad)
	end := int64(d.im.header.L1Size)
	directory := &directoryReader{}
	if d.record != nil {
		var err error
		if directory, err = d.im.readDirectory(d.record); err != nil {
			return err
		}
	}
	for {
		index, table, err := tables.next(ctx)
		if err != nil {
			return err
		}
		for directory.next != nil && int64(directory.next.l1Index) < index {
			f := d.im.tableDamage(int64(directory.next.l1Index), "it has digests but is not there")
			if err := d.tell(ctx, f); err != nil {
				return err
			}
			if err := directory.advance(); err != nil {
				return err
			}
		}
		if index == end {
			return d.leftovers(ctx, directory)
		}
		if err := d.cutTable(ctx, index, table, directory); err != nil {
			return err
		}
	}
}

// leftovers reports what the directory has behind the last table.
func (d *dataCheck) leftovers(ctx context.Context, directory *directoryReader) error {
	if directory.next == nil {
		return nil
	}
	return d.tell(ctx, d.im.tableDamage(int64(directory.next.l1Index), "it has digests but is not there"))
}

// tableDamage is a finding about a whole L2 table.
func (im *Image) tableDamage(index int64, message string) Finding {
	return Finding{Kind: Damage, Structure: "L2 table", Guest: im.tableRange(index), Message: message}
}

// cutTable verifies the digest block of a table and hands out the data that it maps.
func (d *dataCheck) cutTable(ctx context.Context, index, table int64, directory *directoryReader) error {
	guest := index * d.im.header.l2Span()
	var digests, kinds []byte
	var err error
	switch {
	case d.record == nil:
		kinds, _, err = d.im.tableKinds(table, guest, d.bad)
	case directory.next == nil || int64(directory.next.l1Index) > index:
		return d.tell(ctx, d.im.tableDamage(index, "it has no digests"))
	default:
		entry := directory.next
		if err := directory.advance(); err != nil {
			return err
		}
		digests, kinds, err = d.im.verifyBlock(entry, table, d.bad)
		if err != nil {
			f := Finding{Kind: Damage, Host: d.im.hostRange(entry.offset, entry.blockLength()), Guest: d.im.tableRange(index)}
			if f, err = asFinding(err, f); err != nil {
				return err
			}
			return d.tell(ctx, f)
		}
	}
	if err != nil {
		return err
	}
	return d.cutPieces(ctx, guest, table, kinds, digests)
}

// cutPieces hands out the data of a table.
func (d *dataCheck) cutPieces(ctx context.Context, guest, table int64, kinds, digests []byte) error {
	size := d.im.header.ClusterSize()
	step := int(max(1, checkPiece/size))
	for i := 0; i < len(kinds); i += step {
		part := kinds[i:min(i+step, len(kinds))]
		data := int64(0)
		for _, kind := range part {
			if Kind(kind) == Data {
				data++
			}
		}
		if data == 0 {
			continue
		}
		j := &dataJob{guest: guest + int64(i)*size, table: table + int64(i)*8, clusters: len(part), done: make(chan struct{})}
		if d.record != nil {
			j.digests = digests[:data*DigestSize]
			digests = digests[data*DigestSize:]
		}
		if d.sample != nil && !d.sample(d.im.guestRange(j.guest, int64(len(part))*size)) {
			j.skipped, j.stats.SkippedBytes = true, data*size
			close(j.done)
		}
		if err := d.hand(ctx, j); err != nil {
			return err
		}
	}
	return nil
}

// tell puts a finding in its place among those of the jobs.
func (d *dataCheck) tell(ctx context.Context, f Finding) error {
	j := &dataJob{findings: []Finding{f}, skipped: true, done: make(chan struct{})}
	close(j.done)
	return d.hand(ctx, j)
}

// hand gives a job to whoever is free.
func (d *dataCheck) hand(ctx context.Context, j *dataJob) error {
	select {
	case d.order <- j:
	case <-ctx.Done():
		return ctx.Err()
	}
	if j.skipped {
		return nil
	}
	select {
	case d.jobs <- j:
		return nil
	case <-ctx.Done():
		close(j.done)
		return ctx.Err()
	}
}
