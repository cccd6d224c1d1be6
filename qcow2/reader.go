package qcow2

import (
	"fmt"
	"io"
)

// ReadAt reads what a guest would, through the whole chain. Clusters that no file holds, and what lies behind the
// end of a smaller backing file, read as zeroes. Errors are *CorruptError or those of the files' readers, and
// io.EOF at the end of the disk; the bytes before an error are good.
func (im *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read image: negative offset %d", off)
	}
	n := max(0, min(int64(len(p)), im.Size()-off))
	done, err := im.read(p[:n], off)
	if err == nil && done < len(p) {
		err = io.EOF
	}
	return done, err
}

// read fills p from off; all of it is inside the disk.
func (im *Image) read(p []byte, off int64) (done int, err error) {
	for done < len(p) {
		n, err := im.readRun(p[done:], off+int64(done))
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// readRun reads the first run of p.
func (im *Image) readRun(p []byte, off int64) (int, error) {
	r, err := im.lookup(off, int64(len(p)), contiguous)
	if err != nil {
		return 0, err
	}
	if r.kind == Data && !r.compressed && im.proof != nil {
		return im.readProved(p[:r.length], r.host, off)
	}
	p = p[:r.length]
	switch {
	case r.kind == Zero:
		clear(p)
	case r.kind == Unallocated:
		return im.readBacking(p, off)
	case r.compressed:
		err = im.readCompressed(p, r.mapping, off)
	default:
		if err = im.readHost(p, r.host); err != nil {
			err = fmt.Errorf("read %d bytes at offset %d of the disk: %w", len(p), off, err)
		}
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (im *Image) readBacking(p []byte, off int64) (int, error) {
	n := int64(0)
	if im.backing != nil {
		n = max(0, min(int64(len(p)), im.backing.Size()-off))
		if done, err := im.backing.read(p[:n], off); err != nil {
			return done, err
		}
	}
	clear(p[n:])
	return len(p), nil
}

// readCompressed reads the part of a compressed cluster that starts at off. A whole cluster goes straight to the
// caller; of parts there may come more, so that the cluster is kept.
func (im *Image) readCompressed(p []byte, m mapping, off int64) error {
	size := im.header.ClusterSize()
	inside := off % size
	if int64(len(p)) == size {
		return im.inflate(p, m, off)
	}
	b, err := im.shared.clusters.get(clusterKey{im, m.entry}, size, func() ([]byte, error) {
		b := make([]byte, size)
		return b, im.inflate(b, m, off-inside)
	})
	if err != nil {
		return err
	}
	copy(p, b[inside:])
	return nil
}

// readProved reads data that is not compressed, some clusters of it or a part of one, and gives how much it has read.
// host is where off lies in the file.
func (im *Image) readProved(p []byte, host, off int64) (int, error) {
	size := im.header.ClusterSize()
	inside := off % size
	if whole := int64(len(p)) / size * size; inside == 0 && whole > 0 {
		if err := im.readHost(p[:whole], host); err != nil {
			return 0, fmt.Errorf("read %d bytes at offset %d of the disk: %w", whole, off, err)
		}
		if err := im.proof.clusters(p[:whole], off); err != nil {
			return 0, err
		}
		return int(whole), nil
	}
	b, err := im.shared.clusters.get(clusterKey{im, uint64(host - inside)}, size, func() ([]byte, error) {
		b := make([]byte, size)
		if err := im.readHost(b, host-inside); err != nil {
			return nil, fmt.Errorf("read %d bytes at offset %d of the disk: %w", size, off-inside, err)
		}
		im.clearBehindEnd(b, off-inside)
		return b, im.proof.clusters(b, off-inside)
	})
	if err != nil {
		return 0, err
	}
	return copy(p, b[inside:]), nil
}

// clearBehindEnd clears what a cluster at the guest offset has behind the end of the disk: nobody reads it, and digests
// count it as zeroes.
func (im *Image) clearBehindEnd(b []byte, guest int64) {
	clear(b[max(0, min(int64(len(b)), im.Size()-guest)):])
}

// inflate decompresses the cluster at the guest offset into dst.
func (im *Image) inflate(dst []byte, m mapping, guest int64) error {
	d, err := im.inflater()
	if err != nil {
		return err
	}
	defer im.release(d)
	_, err = im.inflateBy(d, dst, m, guest)
	return err
}

// inflateBy is inflate with a decoder, in whose buffer the compressed data is afterwards: it gives how many bytes.
func (im *Image) inflateBy(d *inflater, dst []byte, m mapping, guest int64) (int, error) {
	if int64(cap(d.src)) < m.span {
		d.src = make([]byte, max(m.span, im.header.ClusterSize()))
	}
	src := d.src[:m.span]
	if err := im.readHost(src, m.host); err != nil {
		return 0, fmt.Errorf("read compressed cluster at offset %d of the disk: %w", guest, err)
	}
	n, err := d.Decode(dst, src)
	if err != nil {
		return 0, corrupt("compressed cluster", guest, "%v", err)
	}
	if im.proof == nil {
		return n, nil
	}
	im.clearBehindEnd(dst, guest)
	return n, im.proof.clusters(dst, guest)
}

// stored reads the Data cluster at the guest offset as a whole into dst. Where it is compressed it gives the compressed
// data too, in packed, which it may replace.
func (im *Image) stored(dst, packed []byte, guest int64) ([]byte, error) {
	s, err := im.lookup(guest, im.header.ClusterSize(), contiguous)
	if err != nil {
		return nil, err
	}
	if !s.compressed {
		_, err := im.read(dst, guest)
		return nil, err
	}
	d, err := im.inflater()
	if err != nil {
		return nil, err
	}
	defer im.release(d)
	n, err := im.inflateBy(d, dst, s.mapping, guest)
	return append(packed[:0], d.src[:n]...), err
}

func (im *Image) inflater() (*inflater, error) {
	select {
	case d := <-im.idle:
		return d, nil
	default:
	}
	d, err := im.codec.NewDecoder()
	return &inflater{Decoder: d}, err
}

func (im *Image) release(d *inflater) {
	select {
	case im.idle <- d:
	default: // as many are kept as can work at a time
	}
}
