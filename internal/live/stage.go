package live

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
)

// stage is how far an image is.
type stage int

const (
	absent    stage = iota // no image has the name
	stuck                  // only good for removal
	copying                // in use, maybe, and its users need the server
	copied                 // needs the server no more
	committed              // a plain image, whole
)

var errNotOurs = errors.New("there is an image of that name that is not being imported: nobody knows whether it is ours")

// find finds the image. Another one than that of the journal is an error.
func (r *Request) find(ctx context.Context, j *journal) (rbd.ImageRef, error) {
	ref, err := r.Pool.FindImage(ctx, r.Image)
	if err != nil {
		return ref, err
	}
	if known := j.entry.ImageID; known != "" && ref.ID != known {
		return ref, r.fail(fmt.Errorf("there is another image of that name now (id %s, not %s)", ref.ID, known))
	}
	return ref, nil
}

// findStage asks the cluster, which can't tell without the server while the image is copied. That an image is ours it takes from
// the journal, or makes sure that it is there the next time.
func (r *Request) findStage(ctx context.Context, j *journal) (stage, error) {
	ref, err := r.find(ctx, j)
	if errors.Is(err, rbd.ErrNotFound) {
		return absent, nil
	}
	if err != nil {
		return stuck, err
	}
	state, _, err := r.Pool.MigrationStatus(ctx, r.Image)
	known := j.entry.ImageID != ""
	switch {
	case errors.Is(err, rbd.ErrNotMigrating) && known:
		return committed, nil
	case errors.Is(err, rbd.ErrNotMigrating):
		return stuck, r.fail(errNotOurs)
	case err != nil:
		return stuck, err
	}
	if !known {
		if err := j.write(entry{ImageID: ref.ID}); err != nil {
			return stuck, r.fail(err)
		}
	}
	switch state {
	case "prepared", "executing":
		return copying, nil
	case "executed":
		return copied, nil
	}
	return stuck, nil
}

// refuseExisting says why an image is not restored to.
func (r *Request) refuseExisting(ctx context.Context) error {
	_, err := r.Pool.FindImage(ctx, r.Image)
	if errors.Is(err, rbd.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if e, err := readJournal(r.journalPath()); err == nil {
		return r.fail(fmt.Errorf("it is unfinished, from a live restore of %s that began at %s: --resume goes on, --abort removes it",
			e.Point, e.Started.Local().Format(time.DateTime)))
	}
	return r.fail(fmt.Errorf("it %w: a live restore needs a new image", rbd.ErrExists))
}
