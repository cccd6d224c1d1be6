package qcow2

import (
	"context"
	"sync"
)

// foldJob is a cluster that is on its way into the target.
type foldJob struct {
	entry  int   // in its table
	whole  bool  // it is one of the other file's, which can be moved as it is
	chunk  Chunk // of this cluster
	blob   []byte
	result encodedCluster
	err    error
}

// makeEncoders makes one encoder for each goroutine.
func (f *fold) makeEncoders() error {
	var codec Codec
	if f.o.Compress {
		if codec = f.o.Codec; codec == nil {
			codec = f.target.codec
		}
	}
	for range max(1, f.o.Parallel) {
		e, err := NewChunkEncoder(codec)
		if err != nil {
			return err
		}
		e.UseKey(f.target.key)
		f.encoders = append(f.encoders, e)
	}
	return nil
}

// addJob has a cluster of the target replaced by data.
func (t *foldTable) addJob(ctx context.Context, i int, whole bool) error {
	size := t.header.ClusterSize()
	if err := t.drop(t.entries[i], t.guest+int64(i)*size); err != nil {
		return err
	}
	t.entries[i], t.changed = 0, true
	n := len(t.jobs)
	if n < cap(t.jobs) && t.jobs[:n+1][n] != nil {
		t.jobs = t.jobs[:n+1]
	} else {
		t.jobs = append(t.jobs, &foldJob{chunk: Chunk{Data: make([]byte, size)}})
	}
	j := t.jobs[n]
	j.entry, j.whole, j.chunk.Offset = i, whole, t.guest+int64(i)*size
	if int64(n+1)*size < t.o.limits.batch || n+1 < len(t.encoders) {
		return nil
	}
	return t.runJobs(ctx)
}

// runJobs prepares the clusters, several at a time, and then puts them in the file one by one.
func (t *foldTable) runJobs(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var group sync.WaitGroup
	for worker := range min(len(t.encoders), len(t.jobs)) {
		group.Go(func() {
			for i := worker; i < len(t.jobs); i += len(t.encoders) {
				t.jobs[i].err = t.prepare(t.jobs[i], t.encoders[worker])
			}
		})
	}
	group.Wait()
	for _, j := range t.jobs {
		if j.err != nil {
			return j.err
		}
	}
	// Compressed data lies together, as a Writer has it.
	next, err := t.space.next()
	if err != nil {
		return err
	}
	packedFirst := t.packer.goesOn(next)
	for _, packed := range []bool{packedFirst, !packedFirst} {
		for _, j := range t.jobs {
			if packed != (len(j.result.packed) > 0) {
				continue
			}
			if err := t.place(ctx, j); err != nil {
				return err
			}
		}
	}
	t.jobs = t.jobs[:0]
	return nil
}

// prepare reads a cluster, proved, and encodes it where it can't be moved as it is.
func (f *fold) prepare(j *foldJob, e *ChunkEncoder) error {
	size := f.header.ClusterSize()
	data := j.chunk.Data
	if j.whole {
		packed, err := f.other.stored(data, j.blob, j.chunk.Offset)
		if err != nil {
			return err
		}
		if packed != nil {
			j.blob = packed
		}
		if packed == nil || f.other.header.Compression == f.header.Compression && int64(len(packed)) < size {
			j.result = encodedCluster{kind: Data, packed: packed, digest: f.trailer.key.digest(data)}
			return nil
		}
	} else {
		inside := min(size, f.size-j.chunk.Offset)
		clear(data[inside:])
		if _, err := f.child.read(data[:inside], j.chunk.Offset); err != nil {
			return err
		}
	}
	j.whole = false
	if err := e.Encode(&j.chunk, size); err != nil {
		return err
	}
	j.result = j.chunk.clusters[0]
	return nil
}

// place puts a cluster in the file.
func (t *foldTable) place(ctx context.Context, j *foldJob) error {
	if j.result.kind == Zero {
		holds, err := t.belowHolds(ctx, Range{j.chunk.Offset, min(t.header.ClusterSize(), t.size-j.chunk.Offset)})
		if holds {
			t.stats.ZeroClusters++
			t.entries[j.entry] = entryZero
		}
		return err
	}
	if j.whole {
		t.stats.CopiedClusters++
	} else {
		t.stats.EncodedClusters++
	}
	t.digests[j.entry] = j.result.digest
	if len(j.result.packed) > 0 {
		return t.placePacked(j)
	}
	cluster, err := t.space.take()
	if err != nil {
		return err
	}
	off := cluster << t.header.ClusterBits
	t.entries[j.entry] = uint64(off) | entryCopied
	if err := t.refs.change(cluster, 1); err != nil {
		return err
	}
	return t.out.write(j.chunk.Data, off)
}

func (t *foldTable) placePacked(j *foldJob) error {
	next, err := t.space.next()
	if err != nil {
		return err
	}
	n := int64(len(j.result.packed))
	off := t.packer.place(n, next)
	if (off+n-1)>>t.header.ClusterBits == next {
		if _, err := t.space.take(); err != nil {
			return err
		}
	}
	t.entries[j.entry] = compressedEntry(off, n, t.header.ClusterBits)
	if err := t.refs.changeSpan(off, n, 1); err != nil {
		return err
	}
	return t.out.write(j.result.packed, off)
}
