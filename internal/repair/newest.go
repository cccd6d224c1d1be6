package repair

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/verify"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// errUnchanged says that there is nothing to mend in the file of the newest point.
var errUnchanged = errors.New("nothing to be changed")

// mendNewest makes the newest point read as its snapshot, whatever is damaged in its file or below it, and proves that it does.
func (j *job) mendNewest(ctx context.Context, f *file) error {
	cover, readable := j.uncovered(), true
	if f.isGood() {
		differences, err := j.differences(ctx, f)
		if err == nil && len(differences) == 0 {
			if err = j.prove(ctx, f); err == nil {
				j.hide()
				return nil
			}
		}
		switch {
		case err == nil:
			cover = j.differs(f, cover, differences)
		case !verify.IsUnreadable(err):
			return j.failed(ctx, f, err)
		default:
			readable = false
		}
	}
	all := []qcow2.Range{{Length: f.point.Header.Size}}
	for again := true; again; {
		again = false
		err := j.rewriteNewest(ctx, f, cover)
		var differs *differsError
		switch {
		case errors.As(err, &differs) && !differs.known(cover):
			cover, again = j.differs(f, cover, differs.damages), true
		case errors.Is(err, errUnchanged) && readable:
		case (verify.IsUnreadable(err) || errors.Is(err, errUnchanged)) && !slices.Equal(cover, all):
			cover, again = all, true // what can be proved of the files below stays there
		case err != nil:
			return j.failed(ctx, f, err)
		}
	}
	if err := j.prove(ctx, f); err != nil {
		return j.failed(ctx, f, err)
	}
	j.hide()
	return nil
}

// prove reads all that the newest point shows of files below it, if anything is still damaged there. That it agrees with the snapshot
// by its digests does not say that it can be read.
func (j *job) prove(ctx context.Context, f *file) error {
	if !slices.ContainsFunc(j.files[1:], func(f *file) bool { return !f.isGood() }) {
		return nil
	}
	chain, err := j.folder.OpenProvedChain(ctx, f.point.Name)
	if err != nil {
		return err
	}
	defer chain.Close()
	buf := make([]byte, windowSize)
	for off := int64(0); off < chain.Size(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := chain.Extent(off)
		if err != nil {
			return err
		}
		e.Length = min(e.Length, windowSize)
		if e.Kind == qcow2.Data {
			if err := chain.ReadExtent(buf[:e.Length], off, e); err != nil {
				return err
			}
		}
		off += e.Length
	}
	return nil
}

// hide notes that the newest point does not show what is still damaged below it: it was read as a whole.
func (j *job) hide() {
	for _, f := range j.files[1:] {
		for i := range f.damages {
			f.damages[i].Hidden = !f.damages[i].Mended
		}
	}
}

// uncovered are the parts of the disk that are damaged in files below the newest point, where that can be told.
func (j *job) uncovered() (cover []qcow2.Range) {
	for _, f := range j.files[1:] {
		for i := range f.damages {
			if d := &f.damages[i]; !d.Mended && d.Length > 0 {
				cover = append(cover, d.guest())
			}
		}
	}
	return join(cover)
}

// differences compares the newest point with its snapshot, by digests. What differs is believed once the snapshot was found to be there
// still: one that is removed meanwhile reads as zeroes.
func (j *job) differences(ctx context.Context, f *file) ([]verify.Damage, error) {
	differences, err := j.compare(ctx, f)
	if err == nil && len(differences) > 0 {
		err = j.src.confirm(ctx)
	}
	if err != nil {
		return nil, err
	}
	return differences, nil
}

// differs adds what differs from the snapshot to the damages of the newest point, and to what is to be covered.
func (j *job) differs(f *file, cover []qcow2.Range, damages []verify.Damage) []qcow2.Range {
	for _, d := range damages {
		r := qcow2.Range{Offset: d.Start, Length: d.Length}
		f.add(d.What, r, d.Message)
		cover = append(cover, r)
	}
	return join(cover)
}

// join sorts ranges, and joins those that adjoin or overlap.
func join(ranges []qcow2.Range) (joined []qcow2.Range) {
	ranges = slices.Clone(ranges)
	slices.SortFunc(ranges, func(a, b qcow2.Range) int { return cmp.Compare(a.Offset, b.Offset) })
	for _, r := range ranges {
		if n := len(joined); n > 0 && r.Offset <= joined[n-1].End() {
			joined[n-1].Length = max(joined[n-1].End(), r.End()) - joined[n-1].Offset
			continue
		}
		joined = append(joined, r)
	}
	return joined
}

// compare compares the newest point, as it is, with its snapshot.
func (j *job) compare(ctx context.Context, f *file) ([]verify.Damage, error) {
	chain, err := j.folder.OpenProvedChain(ctx, f.point.Name)
	if err != nil {
		return nil, err
	}
	defer chain.Close()
	if err := chain.CheckKey(); err != nil {
		return nil, err
	}
	return verify.Compare(ctx, chain.Image, j.src, j.Parallel, j.task.Add)
}

// differsError says that a new file, too, differs from the snapshot.
type differsError struct{ damages []verify.Damage }

func (e *differsError) Error() string {
	d := e.damages[0]
	return fmt.Sprintf("the new file differs from the snapshot in %d places, the first: guest bytes %d to %d: %s", len(e.damages),
		d.Start, d.Start+d.Length, d.Message)
}

// known says whether that was to be mended already, or is no place at all.
func (e *differsError) known(cover []qcow2.Range) bool {
	return slices.ContainsFunc(e.damages, func(d verify.Damage) bool {
		return d.Length == 0 || slices.ContainsFunc(cover, func(r qcow2.Range) bool {
			return d.Start < r.End() && r.Offset < d.Start+d.Length
		})
	})
}

// rewriteNewest rewrites the file of the newest point, with what the snapshot has where something is covered or lost.
func (j *job) rewriteNewest(ctx context.Context, f *file, cover []qcow2.Range) error {
	b := below{}
	if parent := f.point.Parent(); parent != "" {
		chain, err := j.folder.OpenProvedChain(ctx, parent)
		if err != nil {
			return err
		}
		defer chain.Close()
		if err := chain.CheckKey(); err != nil {
			return err
		}
		b.chain = chain
	}
	o := qcow2.RewriteOptions{Cover: cover, Trusted: true}
	o.Fill = func(ctx context.Context, p []byte, guest int64, _ *qcow2.Digest) (qcow2.Kind, bool, error) {
		if err := j.src.cluster(ctx, p, guest); err != nil {
			return qcow2.Unallocated, false, err
		}
		same, err := b.has(p, guest)
		switch {
		case err != nil:
			return qcow2.Unallocated, false, err
		case same:
			return qcow2.Unallocated, true, nil
		case len(bytes.Trim(p, "\x00")) == 0:
			return qcow2.Zero, true, nil
		}
		return qcow2.Data, true, nil
	}
	return j.rewrite(ctx, f, o, j.verifyNewest)
}

// verifyNewest verifies a new file of the newest point: by itself, and with all below it against the snapshot.
func (j *job) verifyNewest(ctx context.Context, f *file, pending *repo.Pending, made qcow2.Rewritten) error {
	if len(made.Filled) == 0 && f.isGood() {
		return errUnchanged
	}
	if err := j.verifyAlone(ctx, f, pending, made); err != nil {
		return err
	}
	chain, err := f.point.OpenMended(ctx, pending)
	if err != nil {
		return err
	}
	defer chain.Close()
	damages, err := verify.Compare(ctx, chain.Image, j.src, j.Parallel, j.task.Add)
	if err == nil && len(damages) > 0 {
		if err = j.src.confirm(ctx); err == nil {
			err = &differsError{damages}
		}
	}
	return err
}

// below is what lies below the newest point.
type below struct {
	chain *repo.Chain // nil: nothing
	buf   []byte
}

// has says whether it reads as p from off on, and can prove that.
func (b *below) has(p []byte, off int64) (bool, error) {
	b.buf = slices.Grow(b.buf[:0], len(p))[:len(p)]
	n := 0
	if b.chain != nil && off < b.chain.Size() {
		var err error
		n, err = b.chain.ReadAt(b.buf, off)
		if err != nil && !errors.Is(err, io.EOF) {
			if verify.IsUnreadable(err) {
				err = nil
			}
			return false, err
		}
	}
	clear(b.buf[n:])
	return bytes.Equal(p, b.buf), nil
}
