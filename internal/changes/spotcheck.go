package changes

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
)

// defaultSpotChecks is so few that nobody notices; but a map that is wrong, whatever the cause, comes to light in the long
// run of backups.
const defaultSpotChecks = 64

// errLie ends a spot check that has found something.
var errLie = errors.New("object map lied")

// spotCheck asks the precise diff about some of the existing objects that the maps do not name. It tells what is wrong
// with the maps, "" if nothing was found.
func (f *finder) spotCheck(ctx context.Context, objects *objectSet) (lie string, err error) {
	existing := newObjectSet(objects.objects)
	existing.addExisting(f.maps[f.newer.ID])
	limit := f.o.SpotChecks
	if limit == 0 {
		limit = defaultSpotChecks
	}
	named := f.ranges(objects)
	var sample []int64
	seen := 0
	for n := range existing.all {
		if f.inside(n, named) {
			continue
		}
		// Reservoir sampling.
		if seen++; len(sample) < limit {
			sample = append(sample, n)
		} else if i := rand.IntN(seen); i < limit {
			sample[i] = n
		}
	}
	picked := newObjectSet(objects.objects)
	for _, n := range sample {
		picked.addRange(n, n+1)
	}
	err = f.diff(ctx, f.o.Base.Snapshot.Name, f.ranges(picked), nil, func(e rbd.Extent) error {
		lie = fmt.Sprintf("the object map lied: it has no change at offset %d, where one was found", e.Offset)
		return errLie
	})
	if errors.Is(err, errLie) {
		err = nil
	}
	return lie, err
}

// inside says whether an object lies in one of the ranges, which ascend.
func (f *finder) inside(object int64, ranges []span) bool {
	off := object / f.img.StripeCount() * f.img.Period()
	_, found := slices.BinarySearchFunc(ranges, off, func(s span, off int64) int {
		switch {
		case s.end <= off:
			return -1
		case s.off > off:
			return 1
		}
		return 0
	})
	return found
}
