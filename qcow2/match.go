package qcow2

import "bytes"

// MatchExtent compares p with what e has from off on; all of it lies inside e, which Extents or Extent of this image gave. It gives where
// in p they differ first, to the cluster, -1 where nowhere. Whole clusters of a file that is Proved are compared by their digests, and not
// read. Errors are those of ReadAt.
func (im *Image) MatchExtent(p []byte, off int64, e Extent) (int64, error) {
	file := im
	for range e.Depth {
		file = file.backing
	}
	size, begin := file.header.ClusterSize(), off
	for len(p) > 0 {
		n := min(int64(len(p)), size-off%size)
		match := func(p []byte, off int64) (int64, error) { return im.matchBytes(p, off, e) }
		if e.Kind == Data && n == size && file.proof != nil {
			match = file.matchCluster
		}
		if differs, err := match(p[:n], off); err != nil || differs >= 0 {
			return off - begin + differs, err
		}
		p, off = p[n:], off+n
	}
	return -1, nil
}

// matchCluster compares a cluster with its digest.
func (im *Image) matchCluster(p []byte, guest int64) (int64, error) {
	h := im.header
	block, err := im.proof.block(guest / h.l2Span())
	if err != nil {
		return 0, err
	}
	if want, ok := block.digest(guest % h.l2Span() / h.ClusterSize()); !ok || im.key.digest(p) != want {
		return 0, nil
	}
	return -1, nil
}

func (im *Image) matchBytes(p []byte, off int64, e Extent) (int64, error) {
	stored := make([]byte, len(p))
	if err := im.ReadExtent(stored, off, e); err != nil {
		return 0, err
	}
	if bytes.Equal(p, stored) {
		return -1, nil
	}
	i := 0
	for p[i] == stored[i] {
		i++
	}
	return int64(i), nil
}
