package qcow2

import (
	"context"
	"errors"
	"fmt"
	"syscall"
)

// dataJob is a part of an L2 table whose data is to be read.
type dataJob struct {
	guest    int64  // where it maps from
	table    int64  // where its first entry lies in the file
	clusters int    // how many entries
	digests  []byte // of those that are Data; nil: none
	skipped  bool   // nothing is to be read
	done     chan struct{}

	findings  []Finding
	stats     CheckStats
	err       error
	hasBlob   bool
	firstBlob int64 // where the first compressed data begins
	blobEnd   int64 // where the last ends; of either perhaps unknownPlace
}

// unknownPlace stands for where compressed data begins or ends that can't be read.
const unknownPlace = 0

// add adds a finding, or makes the last one longer.
func (j *dataJob) add(f Finding) {
	if n := len(j.findings); n > 0 && j.findings[n-1].joins(f) {
		return
	}
	j.findings = append(j.findings, f)
}

// dataWorker reads the data of one job at a time.
type dataWorker struct {
	*dataCheck
	ctx context.Context
	buf []byte
}

func (w *dataWorker) run(j *dataJob) {
	if w.buf == nil {
		h := w.im.header
		w.buf = make([]byte, min(max(verifyBuffer, h.ClusterSize()), h.l2Span()))
	}
	j.err = w.read(j)
}

// read reads the clusters of a job, neighbours together where they are not compressed.
func (w *dataWorker) read(j *dataJob) error {
	size := w.im.header.ClusterSize()
	for i := 0; i < j.clusters; {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		entries, err := w.im.entries(j.table + int64(i)*8)
		if err != nil {
			return err
		}
		guest := j.guest + int64(i)*size
		m, err := w.im.decodeEntry(entries.at(0), guest)
		n := 1
		switch {
		case m.kind != Data:
			i++
			continue
		case err != nil: // what an entry with digests was is not to be had, and for a Check its error is known
			if !j.hasBlob {
				j.hasBlob, j.firstBlob = true, unknownPlace
			}
			j.blobEnd = unknownPlace
		case m.compressed:
			err = w.readCompressed(j, m, guest)
		default:
			n = w.contiguous(m, guest, entries, j.clusters-i)
			err = w.readPlain(j, j.digests, m.host, guest, n)
		}
		if err != nil {
			f := Finding{Kind: Corruption, Host: Range{j.table + int64(i)*8, 8}, Guest: w.im.guestRange(guest, size)}
			if err = tolerate(w.bad, err, f); err != nil {
				return err
			}
		}
		if j.digests != nil {
			j.digests = j.digests[n*DigestSize:]
		}
		i += n
	}
	return nil
}

// contiguous gives how many clusters from the first of the entries on lie one behind the other, of limit, as far as the
// buffer goes.
func (w *dataWorker) contiguous(m mapping, guest int64, e entries, limit int) int {
	size := w.im.header.ClusterSize()
	limit = min(limit, e.len(), len(w.buf)/int(size))
	n := 1
	for ; n < limit; n++ {
		next, err := w.im.decodeEntry(e.at(n), guest+int64(n)*size)
		if err != nil || !contiguous(m, next, int64(n)*size) {
			break
		}
	}
	return n
}

// readPlain reads n clusters that lie at host. Where the medium fails it goes on cluster by cluster.
func (w *dataWorker) readPlain(j *dataJob, digests []byte, host, guest int64, n int) error {
	size := w.im.header.ClusterSize()
	b := w.buf[:int64(n)*size]
	err := w.im.readHost(b, host)
	switch {
	case err == nil:
	case !errors.Is(err, syscall.EIO):
		return fmt.Errorf("read %d bytes at offset %d of the disk: %w", len(b), guest, err)
	case n == 1:
		j.add(w.damage(Range{host, size}, guest, err.Error()))
		return nil
	default:
		for i := range n {
			at := int64(i) * size
			if err := w.readPlain(j, digests[min(i*DigestSize, len(digests)):], host+at, guest+at, 1); err != nil {
				return err
			}
		}
		return nil
	}
	behind := b[w.im.guestRange(guest, int64(len(b))).Length:]
	if first, length := nonzero(behind); length > 0 && w.pristine {
		var f Finding
		f.widen(Range{host + int64(len(b)-len(behind)) + first, length})
		j.add(f)
	}
	clear(behind)
	for i := range n {
		at := int64(i) * size
		w.compare(j, b[at:at+size], digests[min(i*DigestSize, len(digests)):], Range{host + at, size}, guest+at)
	}
	return nil
}

// damage is a finding about one cluster of the disk.
func (w *dataWorker) damage(host Range, guest int64, message string) Finding {
	f := Finding{Kind: Damage, Structure: "cluster", Host: host, Guest: w.im.guestRange(guest, w.im.header.ClusterSize())}
	f.Message = message
	return f
}

// compare compares a cluster with the first of the digests, if there are any, and says whether it is what it was.
func (w *dataWorker) compare(j *dataJob, b, digests []byte, host Range, guest int64) bool {
	n := w.im.guestRange(guest, int64(len(b))).Length
	switch {
	case j.digests == nil:
		j.stats.ReadBytes += n
	case w.im.key.digest(b) == Digest(digests[:DigestSize]):
		j.stats.VerifiedBytes += n
	default:
		j.add(w.damage(host, guest, "other content than was stored"))
		return false
	}
	return true
}

// readCompressed reads a compressed cluster.
func (w *dataWorker) readCompressed(j *dataJob, m mapping, guest int64) error {
	if !j.hasBlob {
		j.hasBlob, j.firstBlob = true, m.host
	} else if f, err := w.findInGap(j.blobEnd, m.host); err != nil {
		return err
	} else if f.Kind != 0 {
		j.add(f)
	}
	j.blobEnd = unknownPlace
	d, err := w.im.inflater()
	if err != nil {
		return err
	}
	defer w.im.release(d)
	b, host := w.buf[:w.im.header.ClusterSize()], Range{m.host, m.span}
	n, err := w.im.inflateBy(d, b, m, guest)
	if err != nil {
		var e *CorruptError
		switch {
		case errors.As(err, &e):
			j.add(w.damage(host, guest, e.Reason))
		case errors.Is(err, syscall.EIO):
			j.add(w.damage(host, guest, err.Error()))
		default:
			return err
		}
		return nil
	}
	behind := b[w.im.guestRange(guest, int64(len(b))).Length:]
	if _, length := nonzero(behind); length > 0 && w.pristine {
		var f Finding
		f.widen(host)
		j.add(f)
	}
	clear(behind)
	if !w.compare(j, b, j.digests, host, guest) {
		return nil
	}
	j.blobEnd = m.host + int64(n)
	w.checkSectors(j, m, int64(n), guest)
	return nil
}

// checkSectors checks that an entry has its n bytes of compressed data take no more sectors than they need.
func (w *dataWorker) checkSectors(j *dataJob, m mapping, n, guest int64) {
	h := w.im.header
	if !w.exact || compressedEntry(m.host, n, h.ClusterBits) == m.entry {
		return
	}
	at := j.table + (guest-j.guest)/h.ClusterSize()*8
	f := Finding{Kind: Corruption, Structure: "L2 entry", Host: Range{at, 8}}
	f.Message = fmt.Sprintf("%#x: more sectors than %d bytes take", m.entry, n)
	j.add(f)
}
