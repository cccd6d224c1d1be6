package prune

import (
	"context"
	"errors"
	"math"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// estimate says of a removal about what it would write, and at most free. Of several in a row the later ones are reckoned as if
// those before had moved all that they could: what came into a point from below may have to move again.
func (w *work) estimate(ctx context.Context, p *PointReport, child repo.PointName) (gone bool, err error) {
	size := w.point(p.Point).DiskSize
	if child == "" {
		p.Method, p.Freed = Unlink, size
		w.removed(p)
		return true, nil
	}
	lacked, held, err := w.image(child).FoldCost(ctx)
	if err != nil {
		w.fail(p, err)
		return false, nil
	}
	if min(lacked, held) == math.MaxInt64 {
		w.fail(p, errors.New("its file and that of the point above can't be merged"))
		return false, nil
	}
	p.Freed = max(0, size-lacked)
	if lacked < math.MaxInt64-w.moved[p.Point] {
		lacked += w.moved[p.Point]
	}
	if lacked <= held {
		p.Method, p.Written = IntoChild, lacked
		w.moved[child] = lacked
	} else {
		p.Method, p.Written = IntoBacking, held
		p.Freed = min(size, w.point(child).DiskSize) // lacked was not counted to its end
		w.moved[child] = size + w.moved[p.Point]
	}
	w.removed(p)
	return true, nil
}

// point gives one of the points.
func (w *work) point(name repo.PointName) *repo.Point {
	for _, p := range w.points {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// image gives the layer of a point, in a chain that can be read: only there anything is removed that others lie on.
func (w *work) image(name repo.PointName) *qcow2.Image {
	for _, c := range w.chains {
		for image, i := c.Image, 0; image != nil && i < len(c.Points); image, i = image.Backing(), i+1 {
			if c.Points[i].Name == name {
				return image
			}
		}
	}
	return nil
}
