package qcow2

import (
	"context"
	"sync"
)

// blobBatch is how many superseded compressed clusters are looked at together, per goroutine.
const blobBatch = 16

// deadBlob is superseded compressed data.
type deadBlob struct {
	guest  int64
	entry  uint64
	length int64 // bytes; 0: not known
	err    error
}

// settleBlobs adds to the dead spans what superseded compressed data has in host clusters that stay, for others' data in
// them. An entry that is wrong by a bit would have that data punched: so each blob is decoded once more and compared with
// its digest, which also tells how long it is. What is not proved stays where it is, until the whole cluster goes.
func (f *fold) settleBlobs(ctx context.Context) error {
	if !f.target.Proved() {
		return nil
	}
	var batch []*deadBlob
	err := f.dead.blobs.each(func(guest, entry int64) error {
		shared, err := f.isShared(uint64(entry))
		if err != nil || !shared {
			return err
		}
		batch = append(batch, &deadBlob{guest: guest, entry: uint64(entry)})
		if len(batch) < blobBatch*len(f.encoders) {
			return nil
		}
		err = f.settleBatch(ctx, batch)
		batch = batch[:0]
		return err
	})
	if err != nil {
		return err
	}
	return f.settleBatch(ctx, batch)
}

// isShared says whether a host cluster that compressed data lies in stays.
func (f *fold) isShared(entry uint64) (bool, error) {
	off, n := compressedSpan(entry, f.header.ClusterBits)
	for c := off >> f.header.ClusterBits; c <= (off+n-1)>>f.header.ClusterBits; c++ {
		if count, err := f.refs.count(c); err != nil || count > 0 {
			return true, err
		}
	}
	return false, nil
}

func (f *fold) settleBatch(ctx context.Context, batch []*deadBlob) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var group sync.WaitGroup
	for worker := range min(len(f.encoders), len(batch)) {
		group.Go(func() {
			buf := make([]byte, f.header.ClusterSize())
			for i := worker; i < len(batch); i += len(f.encoders) {
				b := batch[i]
				b.length, b.err = f.target.blobLength(buf, b.entry, b.guest)
			}
		})
	}
	group.Wait()
	for _, b := range batch {
		if b.err != nil {
			continue // damaged or unreadable: nobody needs it any more, and its room may wait for the whole cluster's
		}
		if err := f.addDeadBlob(b); err != nil {
			return err
		}
	}
	return nil
}

// addDeadBlob adds the bytes of a blob but for those in clusters that go as a whole, which have been added.
func (f *fold) addDeadBlob(b *deadBlob) error {
	off, _ := compressedSpan(b.entry, f.header.ClusterBits)
	for end := off + b.length; off < end; {
		cluster := off >> f.header.ClusterBits
		next := min(end, (cluster+1)<<f.header.ClusterBits)
		count, err := f.refs.count(cluster)
		if err == nil && count > 0 {
			err = f.dead.add(off, next-off)
		}
		if err != nil {
			return err
		}
		off = next
	}
	return nil
}

// blobLength gives how many bytes the compressed data takes that an L2 entry has for a guest offset, after comparing it
// with its digest, by way of buf, a cluster.
func (im *Image) blobLength(buf []byte, entry uint64, guest int64) (int64, error) {
	m, err := im.decodeCompressed(entry, guest)
	if err != nil {
		return 0, err
	}
	d, err := im.inflater()
	if err != nil {
		return 0, err
	}
	defer im.release(d)
	n, err := im.inflateBy(d, buf, m, guest)
	if int64(n) == m.span { // perhaps because its end was not found, and then other data may begin in the last sector
		n -= sectorSize
	}
	return int64(n), err
}
