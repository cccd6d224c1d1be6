package repo

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/google/uuid"

	"github.com/rbd2qcow2/rbd2qcow2/internal/compress"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// fill puts the data of both points into the file that is changed.
func (j *fold) fill(ctx context.Context) (folded *qcow2.Folded, err error) {
	o := qcow2.FoldOptions{Parallel: j.o.Parallel, Scratch: j.Scratch, Confirm: j.confirmAlone}
	if o.Identity, err = j.identity(); err != nil {
		return nil, err
	}
	if _, o.Codec, err = compress.Parse(j.target.compression()); err != nil {
		return nil, err
	}
	o.Compress = o.Codec != nil
	if parent := j.chain.Points[1].Parent(); parent != "" {
		o.BackingFile = j.BackingName(parent)
	}
	file := switchedFile{j.file, j}
	if j.result.IntoChild {
		return qcow2.FoldIntoChild(ctx, file, j.chain.Image, o)
	}
	return qcow2.FoldIntoBacking(ctx, file, j.chain.Image, o)
}

// identity is the child's, encoded, with what the fold changes of it. What a later version of this program has written
// beside that stays.
func (j *fold) identity() ([]byte, error) {
	c, x := j.chain.Points[0], j.chain.Points[1]
	raw := c.IdentityRaw
	if c.Identity == nil {
		var err error
		if raw, err = c.foreignIdentity(j.o.Program).Encode(); err != nil {
			return nil, err
		}
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, fmt.Errorf("decode identity: %w", err)
	}
	changed := map[string]any{
		"parent":       x.parent(),
		"generation":   x.generation(len(j.chain.Points) - 2),
		"compression":  j.target.compression(),
		"cluster_size": j.target.Header.ClusterSize(),
		"folded":       x.asFolded(),
	}
	if hash := c.OriginHash(); hash != "" {
		changed["origin_sha256"] = hash
	}
	for field, value := range changed {
		b, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		fields[field] = b
	}
	return json.Marshal(fields)
}

// foreignIdentity is what can be told of a point that the Python tool has made. It is not the identity of any RBD image: for
// that its snapshot is still asked.
func (p *Point) foreignIdentity(program string) *Identity {
	id := &Identity{
		Program: program, Chain: uuid.NewString(), PointID: uuid.NewString(), Point: p.Name, Folder: p.Folder.Name, Created: p.Name.Time(),
		Snapshot: Snapshot{Name: string(p.Name), Size: p.Header.Size}, OtherSnapshots: []Snapshot{},
		Changes: Changes{Method: "foreign", Reason: "made by the Python tool"},
	}
	id.Image.SetName(p.Folder.Name)
	id.Image.Size = p.Header.Size
	return id
}

// parent refers to the point below; nil: there is none.
func (p *Point) parent() *Parent {
	if p.Identity != nil {
		return p.Identity.Parent
	}
	if name := p.Parent(); name != "" {
		return &Parent{Point: name}
	}
	return nil
}

// generation is the point's own, or where it has none the number of points below it.
func (p *Point) generation(below int) int {
	if p.Identity != nil {
		return p.Identity.Generation
	}
	return below
}

// compression is how new data of the file are compressed: as the identity says. The Python tool did not compress.
func (p *Point) compression() string {
	if p.Identity != nil {
		return p.Identity.Compression
	}
	return "none"
}

func (p *Point) asFolded() *Folded {
	folded := &Folded{Point: p.Name, OriginSHA256: p.OriginHash()}
	if p.Identity != nil {
		folded.PointID = p.Identity.PointID
	}
	return folded
}
