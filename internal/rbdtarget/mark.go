package rbdtarget

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/restore"
)

// Mark is the value of repo.UnfinishedKey in the metadata of an image whose restore is not finished.
type Mark struct {
	Point   string    `json:"point"` // FOLDER@POINT
	PointID string    `json:"point_id,omitempty"`
	New     bool      `json:"new"` // the image was made by the restore
	Started time.Time `json:"started"`
}

func (t *Target) mark(ctx context.Context, src *restore.Source, fresh bool) error {
	m := Mark{Point: src.Describe(), New: fresh, Started: time.Now().UTC().Truncate(time.Second)}
	if id := src.Chain.Points[0].Identity; id != nil {
		m.PointID = id.PointID
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return t.writer.SetMetadata(ctx, repo.UnfinishedKey, string(b))
}

// Unfinished gives the mark of an image, nil where it has none.
func Unfinished(ctx context.Context, pool *rbd.Pool, imageID string) (*Mark, error) {
	img, err := pool.OpenAt(ctx, imageID, "")
	if err != nil {
		return nil, err
	}
	metadata, err := img.Metadata(ctx)
	if err = errors.Join(err, img.Close()); err != nil {
		return nil, err
	}
	value, ok := metadata[repo.UnfinishedKey]
	if !ok {
		return nil, nil
	}
	m := new(Mark)
	if err := json.Unmarshal([]byte(value), m); err != nil {
		m.Point = "an unknown point" // the mark counts, whatever it says
	}
	return m, nil
}
