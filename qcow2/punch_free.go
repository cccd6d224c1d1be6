package qcow2

import (
	"context"
	"errors"
	"fmt"
)

// PunchFree gives back the room of the host clusters of a file that nothing refers to: what a fold that was cut short
// has filled, or has left unpunched. The refcounts are compared with the references before; a file that does not pass, or that
// a fold would refuse, stays as it is. p is a hole puncher for the same file, which nobody changes meanwhile; it ends with
// p's first error. It takes as long as reading all tables.
func (im *Image) PunchFree(ctx context.Context, p Puncher) error {
	if err := im.punchFree(ctx, p); err != nil {
		return fmt.Errorf("give back free clusters: %w", err)
	}
	return nil
}

func (im *Image) punchFree(ctx context.Context, p Puncher) error {
	if err := errors.Join(im.checkFoldable(im.Size()), im.checkProves()); err != nil {
		return err
	}
	length := im.fileLength
	if r := im.header.Record; r != nil {
		length = r.FileLength
	}
	s, err := newSpace(im, length)
	if err != nil {
		return err
	}
	if err := im.checkRefcounts(ctx, s, refcountWindow); err != nil {
		return err
	}
	var run Range
	for {
		cluster, err := s.take()
		if err != nil {
			return err
		}
		free := Range{cluster << im.header.ClusterBits, im.header.ClusterSize()}
		if !s.isNew(cluster) && free.Offset == run.End() {
			run.Length += free.Length
			continue
		}
		if pages := wholePages(run); pages.Length > 0 {
			if err := p.Punch(pages.Offset, pages.Length); err != nil {
				return err
			}
		}
		if s.isNew(cluster) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		run = free
	}
}
