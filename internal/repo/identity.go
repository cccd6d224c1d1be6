package repo

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"
)

// identityFormat is the version of the identity's format.
const identityFormat = 1

// Identity says what a point is. It stands in the point's own file; its hash is in the identity of the point that lies on
// it, so that no file can take another's place in a chain. It changes only when the point below is folded into its file.
type Identity struct {
	Format     int       `json:"format"`
	Program    string    `json:"program"`          // name and version of the program that made it
	Repository string    `json:"repository"`       // UUID
	Chain      string    `json:"chain"`            // UUID, the same in all points of a chain
	PointID    string    `json:"point_id"`         // UUID
	Point      PointName `json:"point"`            // as in the file name
	Folder     string    `json:"folder,omitempty"` // name of the folder that it was made in; "" where that is not known
	Generation int       `json:"generation"`       // 0: full; otherwise more than the parent's
	Parent     *Parent   `json:"parent"`           // nil: full
	Created    time.Time `json:"created"`          // when the snapshot was asked for; also the file's mtime

	Image    Image    `json:"image"`
	Snapshot Snapshot `json:"snapshot"`
	// SnapSeq is the id of the last snapshot that was made of the image before ours, 0 if there was none.
	SnapSeq uint64 `json:"snap_seq"`
	// OtherSnapshots are all others, made before ours, that the image had when ours was made.
	OtherSnapshots []Snapshot `json:"other_snapshots"`

	Changes     Changes `json:"changes"`
	Compression string  `json:"compression"` // as in --compress: "none", "zlib", "zstd:1"
	ClusterSize int64   `json:"cluster_size"`

	// OriginSHA256 is, in hex, the hash of the identity that the point was made with, where a fold has changed it since.
	// The points above know it by that one.
	OriginSHA256 string `json:"origin_sha256,omitempty"`
	// Folded is the point that was folded into this one last; nil: none.
	Folded *Folded `json:"folded,omitempty"`
}

// Parent is the point that an increment lies on.
type Parent struct {
	Point          PointName `json:"point"`
	PointID        string    `json:"point_id,omitempty"`        // "" for a point of the Python tool
	IdentitySHA256 string    `json:"identity_sha256,omitempty"` // hex, of the identity that it was made with; "" likewise
}

// Folded is a point that there is no more: what it had is in the file of the one above it.
type Folded struct {
	Point        PointName `json:"point"`
	PointID      string    `json:"point_id,omitempty"`      // "" for a point of the Python tool
	OriginSHA256 string    `json:"origin_sha256,omitempty"` // hex, of the identity that it was made with; "" likewise
}

// Image describes the RBD image as it was.
type Image struct {
	FSID        string            `json:"fsid"`
	PoolID      int64             `json:"pool_id"`
	Pool        string            `json:"pool"`
	Namespace   string            `json:"namespace"`
	Name        string            `json:"name"`
	NameBytes   []byte            `json:"name_bytes,omitempty"` // where Name, which is UTF-8, can't hold them
	ID          string            `json:"id"`
	Size        int64             `json:"size"` // true size in bytes; the qcow2 header rounds up to 512
	ObjectSize  int64             `json:"object_size"`
	StripeUnit  int64             `json:"stripe_unit"`
	StripeCount int64             `json:"stripe_count"`
	Features    []string          `json:"features"`
	Flags       string            `json:"flags"`          // of the head's maps, as rbd info prints them; "": none
	SnapFlags   string            `json:"snapshot_flags"` // of our snapshot's
	DataPool    string            `json:"data_pool,omitempty"`
	CloneParent *CloneParent      `json:"clone_parent,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"`
}

// SetName sets the name, which may be any bytes.
func (i *Image) SetName(name string) {
	i.Name, i.NameBytes = name, nil
	if !utf8.ValidString(name) {
		i.NameBytes = []byte(name)
	}
}

// RealName is the name that SetName was given.
func (i *Image) RealName() string {
	if i.NameBytes != nil {
		return string(i.NameBytes)
	}
	return i.Name
}

// CloneParent is the snapshot that the image is a clone of.
type CloneParent struct {
	PoolID     int64  `json:"pool_id,omitempty"`
	Pool       string `json:"pool"`
	Namespace  string `json:"namespace"`
	Image      string `json:"image"`
	ImageID    string `json:"image_id,omitempty"`
	Snapshot   string `json:"snapshot"`
	SnapshotID uint64 `json:"snapshot_id,omitempty"`
	Overlap    int64  `json:"overlap"` // bytes, at our snapshot
}

// Snapshot is one RBD snapshot.
type Snapshot struct {
	Name      string `json:"name"`
	ID        uint64 `json:"id"`
	Size      int64  `json:"size"`                // of the image when it was made, in bytes
	Namespace string `json:"namespace,omitempty"` // kind of snapshot: user, group, trash, mirror
}

// Changes says how the content of a point was found, and how much it was.
type Changes struct {
	Method      string `json:"method"`       // "full", "precise" or "narrowed"
	Reason      string `json:"reason"`       // why this method
	DiffBytes   int64  `json:"diff_bytes"`   // reported by the cluster as changed
	ReadBytes   int64  `json:"read_bytes"`   // read from the cluster
	StoredBytes int64  `json:"stored_bytes"` // of data in the file, after compression
	// Marks let the next search for changes find out whether the image was rolled back meanwhile.
	Marks []Marks `json:"marks"`
	// Quiet says that neither a rollback nor a shrink of the image was under way when our snapshot was made.
	Quiet bool `json:"quiet"`
	// Existence says what objects our snapshot was read by: "objects" for what there is, otherwise a hash of those
	// that its object map has. "": that is not known.
	Existence string `json:"existence,omitempty"`
}

// Marks are some of the objects that the object map of a snapshot called written since the snapshot before.
type Marks struct {
	Snapshot uint64  `json:"snapshot"` // its id
	Objects  []int64 `json:"objects"`
}

// UnfinishedKey is the key in the metadata of an RBD image whose restore has not been finished. It is no image to back up.
const UnfinishedKey = "rbd2qcow2.unfinished"

// Kind is "full" or "incremental".
func (id *Identity) Kind() string {
	if id.Parent == nil {
		return "full"
	}
	return "incremental"
}

// Encode gives the bytes that go into the file.
func (id *Identity) Encode() ([]byte, error) {
	id.Format = identityFormat
	return json.Marshal(id)
}

// DecodeIdentity reads what Encode gave.
func DecodeIdentity(b []byte) (*Identity, error) {
	id := new(Identity)
	if err := json.Unmarshal(b, id); err != nil {
		return nil, fmt.Errorf("decode identity: %w", err)
	}
	if id.Format != identityFormat {
		return nil, fmt.Errorf("identity of format %d: this program reads format %d", id.Format, identityFormat)
	}
	if _, err := ParsePointName(string(id.Point)); err != nil {
		return nil, fmt.Errorf("decode identity: %w", err)
	}
	if err := id.checkNumbers(); err != nil {
		return nil, fmt.Errorf("decode identity: %w", err)
	}
	return id, nil
}

// maxBytes is more than any image, object or stripe has; twice that is still a number.
const maxBytes = 1 << 61

// checkNumbers refuses what nobody who calculates with it expects.
func (id *Identity) checkNumbers() error {
	numbers := map[string]int64{
		"size": id.Image.Size, "object size": id.Image.ObjectSize, "stripe unit": id.Image.StripeUnit, "stripe count": id.Image.StripeCount,
		"size of the snapshot": id.Snapshot.Size, "cluster size": id.ClusterSize,
	}
	if p := id.Image.CloneParent; p != nil {
		numbers["overlap"] = p.Overlap
	}
	for name, n := range numbers {
		if n < 0 || n > maxBytes {
			return fmt.Errorf("%s %d", name, n)
		}
	}
	for _, m := range id.Changes.Marks {
		if slices.ContainsFunc(m.Objects, func(n int64) bool { return n < 0 }) {
			return errors.New("an object of a negative number")
		}
	}
	return nil
}

// HashIdentity is what a child keeps of its parent's identity.
func HashIdentity(encoded []byte) string {
	sum := sha256.Sum256(encoded)
	return hex.EncodeToString(sum[:])
}
