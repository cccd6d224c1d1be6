package changes

import (
	"context"
	"sync"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
)

// Unseen looks for objects with data that the object map of the image's head lacks, as after some rollbacks. librbd reads
// them as zeroes until it writes to them, or the map is rebuilt: then what is in them is seen. It gives the first one, or -1.
// The image is open at its head, nobody writes to it, and the caller's exclusive lock sees to that. All objects that the map
// lacks are asked about, as many calls of librbd at once as parallel says, 0 for 8. Errors are those of the cluster.
func Unseen(ctx context.Context, img *rbd.Image, parallel int, progress func(done, total int64)) (object int64, err error) {
	f := &finder{img: img, o: Options{Parallel: parallel}, size: img.Size(), maps: map[uint64]*rbd.ObjectMap{}}
	if f.size == 0 {
		return -1, nil
	}
	if err := f.lookAtNewer(ctx); err != nil {
		return -1, err
	}
	m := f.maps[0]
	if m == nil {
		return -1, nil // librbd goes by the objects
	}
	seen := newObjectSet(img.Objects(f.size))
	seen.addExisting(m)
	u := &unseen{finder: f, seen: seen, first: -1}
	err = f.each(ctx, f.ranges(allObjects(seen.objects).without(seen)), progress, u.ask, func(*piece) error { return nil })
	return u.first, err
}

type unseen struct {
	*finder
	seen  *objectSet
	mu    sync.Mutex
	first int64
}

// ask finds what the objects of a piece have, which may be others than those that the map lacks: they come in sets.
func (u *unseen) ask(ctx context.Context, p *piece) error {
	var own []rbd.Extent
	err := u.img.OwnData(ctx, p.off, p.end-p.off, func(e rbd.Extent) error {
		own = append(own, e)
		return nil
	})
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, e := range u.split(own) {
		n, _ := u.objectAt(e.Offset)
		if e.Exists && !u.seen.has(n) && (u.first < 0 || n < u.first) {
			u.first = n
		}
	}
	return err
}
