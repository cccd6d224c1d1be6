package repair

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/rbd2qcow2/rbd2qcow2/internal/compress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// errNoBetter says that a new file would be as damaged as the old one.
var errNoBetter = errors.New("what was stored is not in the snapshot any more")

// mendAll mends the files that are damaged, the newest point last: it lies on the others.
func (j *job) mendAll(ctx context.Context) error {
	below := true // all others can be opened
	for _, f := range j.files[1:] {
		below = below && f.opened && f.hasParent()
		if err := j.mend(ctx, f); err != nil {
			return err
		}
	}
	newest := j.files[0]
	if j.src == nil || !newest.opened || !below || !newest.hasParent() {
		return j.mend(ctx, newest)
	}
	if newest.proved {
		return j.mendNewest(ctx, newest)
	}
	if newest.isGood() {
		differences, err := j.differences(ctx, newest)
		if err != nil {
			return err
		}
		j.differs(newest, nil, differences)
	}
	return j.mend(ctx, newest)
}

// mend mends a file by its digests: what the snapshot has counts if it is what was stored. Why it can't is kept in the
// damages; an error ends the run.
func (j *job) mend(ctx context.Context, f *file) error {
	switch {
	case f.isGood():
		return nil
	case len(f.damages) == 1 && !f.hasParent():
		return nil
	case !f.opened:
		f.fail("the file can't be opened as a point; the next backup makes a full one")
		return nil
	case !f.proved:
		f.fail("it has no digests to tell by what it held")
		return nil
	}
	err := j.rewrite(ctx, f, qcow2.RewriteOptions{Fill: j.stored}, j.verifyAlone)
	return j.failed(ctx, f, err)
}

// failed keeps why a file could not be mended, and gives back what concerns all.
func (j *job) failed(ctx context.Context, f *file, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil || f.isGood() {
		return err
	}
	reason := err.Error()
	if errors.Is(err, errNoBetter) {
		reason = j.gone()
	}
	f.fail(reason)
	j.log.Warn("point can't be mended", "point", f.point.Name, "reason", reason)
	return nil
}

// gone is why data can't be mended.
func (j *job) gone() string {
	if j.src == nil {
		return j.why
	}
	return errNoBetter.Error()
}

// stored gives what the snapshot has in the place of what was stored.
func (j *job) stored(ctx context.Context, p []byte, guest int64, want *qcow2.Digest) (qcow2.Kind, bool, error) {
	if j.src == nil || want == nil {
		return qcow2.Unallocated, false, nil
	}
	err := j.src.cluster(ctx, p, guest)
	return qcow2.Data, err == nil, err
}

// verification says why a new file is not to take the place of a point's.
type verification func(ctx context.Context, f *file, pending *repo.Pending, made qcow2.Rewritten) error

// rewrite writes a new file for a point, has it verified, and puts it in the place of the old one.
func (j *job) rewrite(ctx context.Context, f *file, o qcow2.RewriteOptions, verify verification) error {
	p := f.point
	lock, err := j.folder.LockPoints(p.Name)
	if err != nil {
		return err
	}
	defer lock.Close()
	old, err := j.folder.OpenLockedAlone(ctx, p.Name, lock)
	if err != nil {
		return err
	}
	defer old.Close()
	pending, err := j.folder.CreatePending()
	if err != nil {
		return err
	}
	defer pending.Discard()
	o.Identity, o.Scratch = p.IdentityRaw, j.folder.Scratch
	if _, o.Codec, err = compress.Parse(p.Identity.Compression); err != nil {
		return err
	}
	made, err := old.Rewrite(ctx, pending, o)
	if err != nil {
		return err
	}
	if err := verify(ctx, f, pending, made); err != nil {
		return err
	}
	if j.src != nil {
		if err := j.src.confirm(ctx); err != nil {
			return err
		}
	}
	// From here on there is less to do than to undo: no look at ctx any more.
	if err := p.Mend(pending, lock); err != nil {
		return err
	}
	j.report.Replaced = append(j.report.Replaced, p.Name)
	j.log.Info("point has a new file", "point", p.Name)
	f.settle(made.Left, j.gone())
	return nil
}

// settle says of each damage of a file that has been replaced whether it is left.
func (f *file) settle(left []qcow2.Range, reason string) {
	overlap := func(d *Damage, r qcow2.Range) bool { return r.Offset < d.guest().End() && d.Start < r.End() }
	for _, r := range left {
		if !slices.ContainsFunc(f.damages, func(d Damage) bool { return overlap(&d, r) }) {
			f.add("cluster", r, "can't be proved") // the look at the file had come to an early end
		}
	}
	for i := range f.damages {
		d := &f.damages[i]
		if d.What == whatParent {
			continue
		}
		d.Mended = !slices.ContainsFunc(left, func(r qcow2.Range) bool { return d.Length == 0 || overlap(d, r) })
		if !d.Mended {
			d.Reason = reason
		}
	}
}

// verifyAlone verifies a file by itself: nothing may be wrong with it but what could not be mended.
func (j *job) verifyAlone(ctx context.Context, f *file, pending *repo.Pending, made qcow2.Rewritten) error {
	image, err := f.point.OpenMendedAlone(ctx, pending)
	if err != nil {
		return err
	}
	defer image.Close()
	left, damaged, other := int64(0), int64(0), ""
	for _, r := range made.Left {
		left += r.Length
	}
	err = j.checkImage(ctx, image.Image, func(found qcow2.Finding) {
		if found.Kind != qcow2.Damage || found.Guest.Length == 0 {
			other = found.String()
		}
		damaged += found.Guest.Length
	})
	switch {
	case err != nil:
		return err
	case other != "" || damaged != left:
		return fmt.Errorf("verify the new file: %d bytes are damaged, and %d could not be mended; %s", damaged, left, other)
	}
	before := int64(0)
	for i := range f.damages {
		before += f.damages[i].Length
	}
	onlyData := true
	for i := range f.damages {
		onlyData = onlyData && f.damages[i].What == "cluster"
	}
	if onlyData && left >= before && left > 0 {
		return errNoBetter
	}
	return nil
}
