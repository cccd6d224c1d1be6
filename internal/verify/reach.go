package verify

import (
	"context"
	"slices"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// reach finds the later points that show a damage of a point: all that lie on it, unless they or those between hold other data
// there. What can't be read shows it, for all that is known.
func reach(ctx context.Context, points []*repo.Point, damaged repo.PointName, damage []qcow2.Range) (reached []repo.PointName) {
	for _, p := range points {
		// A file in another's place may name a parent that is younger: it would reach itself.
		if p.Parent() != damaged || !damaged.Time().Before(p.Name.Time()) {
			continue
		}
		left, known := shown(ctx, p, damage)
		if known && len(left) == 0 {
			continue
		}
		reached = append(reached, p.Name)
		reached = append(reached, reach(ctx, points, p.Name, left)...)
	}
	slices.Sort(reached)
	return reached
}

// shown is what a point shows of ranges of the point below it; none at all are everything.
func shown(ctx context.Context, p *repo.Point, ranges []qcow2.Range) (left []qcow2.Range, known bool) {
	if len(ranges) == 0 {
		return nil, false
	}
	chain, err := p.Folder.OpenAlone(ctx, p.Name)
	if err != nil {
		return ranges, false
	}
	defer chain.Close()
	for _, r := range ranges {
		for off := r.Offset; off < min(r.End(), chain.Size()); {
			e, err := chain.FileExtent(off)
			if err != nil {
				return ranges, false
			}
			e.Length = min(e.Length, r.End()-off)
			if e.Kind == qcow2.Unallocated {
				left = append(left, qcow2.Range{Offset: off, Length: e.Length})
			}
			off += e.Length
		}
	}
	return left, true
}
