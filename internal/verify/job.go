package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// job is the verification of one point.
type job struct {
	*work
	selection *selection
	image     int // in the report
	index     int // in the image's report
	point     *repo.Point
	noted     repo.Verified
}

func (j *job) report() *PointReport { return &j.work.report.Images[j.image].Points[j.index] }

// last is when the point was last looked at. A time that is still to come, by a clock that was wrong, is none.
func (j *job) last() (last time.Time) {
	for _, t := range []time.Time{j.noted.Time, j.noted.Sampled} {
		if t.After(last) && !t.After(time.Now()) {
			last = t
		}
	}
	return last
}

// run verifies the point and notes what it has found.
func (j *job) run(ctx context.Context) {
	start := time.Now()
	r := j.report()
	r.Status = Whole
	verify := j.verify
	if j.Source != nil {
		verify = j.compare
	}
	err := verify(ctx, r)
	r.Seconds = time.Since(start).Seconds()
	if err != nil {
		r.Status, r.Verdict, r.Error = Failed, "", err.Error()
		return
	}
	j.follow(ctx, r)
	if err := j.note(ctx, r, start); err != nil {
		j.Logger.Warn("can't note what was verified", "image", j.selection.image.Image, "point", r.Point, "error", err)
	}
}

// verify looks at the point's file.
func (j *job) verify(ctx context.Context, r *PointReport) error {
	chain, err := j.selection.image.OpenAlone(ctx, r.Point)
	if err != nil {
		return j.unopened(r, err)
	}
	defer chain.Close()
	p := chain.Points[0]
	j.point = p
	if err := j.check(ctx, chain.Image, r); err != nil {
		if !IsUnreadable(err) {
			return err
		}
		r.add(Damage{What: "file", Message: "can't be read: " + err.Error()})
	}
	r.Verdict = j.verdict(chain, p, r)
	keyErr := p.CheckKey(j.selection.points)
	if r.Verdict == repo.Unproved && keyErr == nil {
		// With a key that proves nothing: whoever could write to the repository may have made the file.
		if err := chain.CheckKey(); err != nil {
			return err
		}
	}
	if r.Status == Partly && !r.Verdict.Bad() {
		r.Verdict = "" // the rest may be anything
	}
	if keyErr != nil {
		r.add(Damage{What: "digests", Message: keyErr.Error()})
		r.Verdict = repo.FoundDamaged
	}
	if err := p.CheckParent(); err != nil {
		r.add(Damage{What: "parent", Message: err.Error()})
		r.Verdict = repo.FoundDamaged
	}
	return nil
}

// compare compares the point with what it was made from.
func (j *job) compare(ctx context.Context, r *PointReport) error {
	chain, err := j.selection.image.OpenProvedChain(ctx, r.Point)
	if err != nil {
		return j.unopened(r, err)
	}
	defer chain.Close()
	j.point = chain.Points[0]
	src, err := j.Source(ctx, j.point)
	if err != nil {
		return err
	}
	defer src.Close()
	task := j.task(j.image)
	var compared atomic.Int64
	damages, err := Compare(ctx, chain.Image, src, j.Parallel, func(done int64) {
		task.Add(done)
		compared.Add(done)
	})
	r.Verified = compared.Load()
	if err != nil {
		if !IsUnreadable(err) {
			return err
		}
		r.add(Damage{What: "file", Message: err.Error()})
	}
	if len(damages) > 0 { // a snapshot that is removed meanwhile reads as zeroes
		again, err := j.Source(ctx, j.point)
		if err != nil {
			return fmt.Errorf("confirm what was read: %w", err)
		}
		if err := again.Close(); err != nil {
			return err
		}
	}
	for _, d := range damages {
		r.add(d)
	}
	r.Verdict = repo.Proved
	if len(r.Damages) > 0 {
		r.Verdict = repo.FoundDamaged
	}
	return nil
}

// unopened says what is wrong with a file that can't be opened as a point.
func (j *job) unopened(r *PointReport, err error) error {
	p := j.selection.image.Point(r.Point)
	if p.State != repo.Damaged && !IsUnreadable(err) {
		return err
	}
	if j.point = p; p.Err != nil {
		err = p.Err
	}
	r.add(Damage{What: "file", Message: err.Error()})
	r.Verdict = j.verdict(nil, p, r)
	return nil
}

// verdict tells damage from what another program has done: that leaves its mark on the mtime.
func (j *job) verdict(chain *repo.Chain, p *repo.Point, r *PointReport) repo.Verdict {
	switch {
	case len(r.Damages) > 0 && p.Touched():
		return repo.FoundChanged
	case len(r.Damages) > 0:
		return repo.FoundDamaged
	case len(chain.Unproved()) > 0:
		return repo.Unproved
	}
	return repo.Proved
}

// IsUnreadable says whether an error is that of a broken disk.
func IsUnreadable(err error) bool {
	return errors.Is(err, syscall.EIO) || errors.As(err, new(*qcow2.CorruptError)) || errors.As(err, new(*qcow2.UnsupportedError))
}

// follow finds out which later points show each damage.
func (j *job) follow(ctx context.Context, r *PointReport) {
	for i := range r.Damages {
		d := &r.Damages[i]
		var ranges []qcow2.Range
		if d.Length > 0 {
			ranges = []qcow2.Range{{Offset: d.Start, Length: d.Length}}
		}
		d.Reaches = reach(ctx, j.selection.points, r.Point, ranges)
	}
}

// hiding are the points that show no damage of this one.
func (j *job) hiding(r *PointReport) (points []repo.PointName) {
	if r.More > 0 {
		return nil // what they reach is not known
	}
	for _, p := range j.selection.points {
		reached := slices.ContainsFunc(r.Damages, func(d Damage) bool { return slices.Contains(d.Reaches, p.Name) })
		if !reached && r.Point.Time().Before(p.Name.Time()) {
			points = append(points, p.Name)
		}
	}
	return points
}

// note keeps the result beside the point. That of a sample is no news where it found nothing.
func (j *job) note(ctx context.Context, r *PointReport, now time.Time) error {
	v := j.noted
	v.Point, v.File = r.Point, j.point.Fingerprint()
	now = now.UTC().Truncate(time.Second)
	switch {
	case r.Verdict.Bad():
		v.Time, v.Verdict, v.Next, v.Since, v.Reason = now, r.Verdict, 0, nil, r.Damages[0].Message
		if v.Hidden = nil; r.Status == Whole && j.Source == nil { // otherwise there may be more
			v.Hidden = &repo.Hidden{Time: now, By: j.hiding(r)}
		}
	case j.Source != nil: // says nothing of what is in the file
		return nil
	case r.Status == Whole:
		if v.Since == nil { // otherwise a part was looked at that early
			v.Since = &now
		}
		v.Time, v.Verdict, v.Next, v.Since, v.Reason, v.Hidden = *v.Since, r.Verdict, 0, nil, "", nil
	case r.Status == Partly:
		if v.Next = r.next; v.Since == nil {
			v.Since = &now
		}
	case r.Status == Sampled:
		v.Sampled = now
	}
	return j.selection.image.NoteVerified(ctx, v)
}

// String names a damage for people: what, and which bytes of the disk.
func (d *Damage) String() string {
	if d.Length == 0 {
		return d.Message
	}
	return fmt.Sprintf("guest bytes %d to %d: %s", d.Start, d.Start+d.Length, d.Message)
}
