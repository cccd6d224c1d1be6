package qcow2

import (
	"bytes"
	"fmt"
	"slices"
)

// Chunk is a run of whole guest clusters on its way into a file, with the buffers for it. The one who fills Data
// owns it; the same Chunk can be used again, also for files of other cluster sizes, once Append has returned.
type Chunk struct {
	// Offset is the guest offset of Data in bytes, a multiple of the cluster size.
	Offset int64
	// Data is the guest content: whole clusters, zeroes beyond the end of the disk.
	Data []byte
	// Gaps are the parts of Data that came along with the rest and shall not be in the file: what they hold is not looked
	// at, and their clusters stay unallocated. They are whole clusters inside Data, in ascending order.
	Gaps []Range

	clusters    []encodedCluster
	packed      []byte // the compressed clusters, one behind the other
	clusterSize int64  // that it was encoded for
	codec       Codec  // that it was encoded with
	key         *DigestKey
}

// Range is a run of guest bytes.
type Range struct {
	Offset int64 // in the disk, bytes
	Length int64 // bytes
}

// End is the guest offset behind the range.
func (r Range) End() int64 { return r.Offset + r.Length }

type encodedCluster struct {
	kind   Kind   // Unallocated in a gap
	packed []byte // part of Chunk.packed; nil for a cluster that is stored as it is
	digest Digest
}

// ChunkEncoder does what costs processor time for a Chunk: it finds zeroes, makes digests and compresses.
// It is not safe for concurrent use: every goroutine has its own, for one file or several of the same codec.
type ChunkEncoder struct {
	codec   Codec   // nil: no compression
	encoder Encoder // of codec
	zeros   []byte
	key     *DigestKey // of the digests
}

// NewChunkEncoder makes an encoder for files whose WriterOptions have the same codec; nil stores data as it is.
func NewChunkEncoder(codec Codec) (*ChunkEncoder, error) {
	e := &ChunkEncoder{codec: codec, zeros: make([]byte, 64<<10)}
	if codec == nil {
		return e, nil
	}
	var err error
	e.encoder, err = codec.NewEncoder()
	return e, err
}

// UseKey makes the encoder one for files whose WriterOptions have this key.
func (e *ChunkEncoder) UseKey(key *DigestKey) { e.key = key }

// Encode prepares c for Writer.Append on a file with clusters of clusterSize bytes.
func (e *ChunkEncoder) Encode(c *Chunk, clusterSize int64) error {
	size := int(clusterSize)
	if len(c.Data)%size != 0 || c.Offset%clusterSize != 0 {
		return fmt.Errorf("encode chunk at %d: %d bytes are not whole clusters of %d", c.Offset, len(c.Data), size)
	}
	if err := c.checkGaps(clusterSize); err != nil {
		return fmt.Errorf("encode chunk at %d: %w", c.Offset, err)
	}
	c.clusterSize, c.codec, c.key = clusterSize, e.codec, e.key
	c.clusters = c.clusters[:0]
	c.packed = c.packed[:0]
	if e.codec != nil {
		// Room for all of it, so that it does not move any more.
		c.packed = slices.Grow(c.packed, len(c.Data))
	}
	gaps := c.Gaps
	for at := 0; at < len(c.Data); at += size {
		guest := c.Offset + int64(at)
		for len(gaps) > 0 && gaps[0].End() <= guest {
			gaps = gaps[1:]
		}
		if len(gaps) > 0 && gaps[0].Offset <= guest {
			c.clusters = append(c.clusters, encodedCluster{kind: Unallocated})
			continue
		}
		cluster, err := e.encodeCluster(c, c.Data[at:at+size])
		if err != nil {
			return fmt.Errorf("compress cluster at %d: %w", guest, err)
		}
		c.clusters = append(c.clusters, cluster)
	}
	return nil
}

// checkGaps refuses gaps that are not what Chunk.Gaps has to be.
func (c *Chunk) checkGaps(clusterSize int64) error {
	from, end := c.Offset, c.Offset+int64(len(c.Data))
	for _, g := range c.Gaps {
		if g.Offset < from || g.Offset > end || g.Length < 0 || g.Length > end-g.Offset || (g.Offset|g.Length)%clusterSize != 0 {
			return fmt.Errorf("gap of %d bytes at %d: not whole clusters of %d in ascending order within %d to %d",
				g.Length, g.Offset, clusterSize, from, end)
		}
		from = g.End()
	}
	return nil
}

func (e *ChunkEncoder) isZero(data []byte) bool {
	for part := range slices.Chunk(data, len(e.zeros)) {
		if !bytes.Equal(part, e.zeros[:len(part)]) {
			return false
		}
	}
	return true
}

func (e *ChunkEncoder) encodeCluster(c *Chunk, data []byte) (encodedCluster, error) {
	if e.isZero(data) {
		return encodedCluster{kind: Zero}, nil
	}
	cluster := encodedCluster{kind: Data, digest: e.key.digest(data)}
	if e.codec == nil {
		return cluster, nil
	}
	// One byte less than a cluster: data that does not shrink is stored as it is.
	room := c.packed[len(c.packed) : len(c.packed)+len(data)-1]
	n, err := e.encoder.Encode(room, data)
	c.packed = c.packed[:len(c.packed)+n]
	cluster.packed = room[:n]
	return cluster, err
}
