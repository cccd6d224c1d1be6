package repair

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/verify"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// job mends one image: the chain of its newest point.
type job struct {
	*Options
	folder *repo.Folder
	log    *slog.Logger
	task   progress.Task
	report ImageReport

	files []*file   // the newest point first, as far down as they can be read
	src   *snapshot // of the newest point; nil: there is none
	why   string    // there is none
}

// file is one file of the chain.
type file struct {
	point   *repo.Point
	damages []Damage
	proved  bool // it has digests
	opened  bool // it can be opened as a point
}

// whatParent is what is damaged where a point lies on nothing, or on another point than it was made on.
const whatParent = "parent"

// hasParent says whether the point lies on what it was made on.
func (f *file) hasParent() bool {
	return !slices.ContainsFunc(f.damages, func(d Damage) bool { return d.What == whatParent })
}

func (f *file) isGood() bool {
	return !slices.ContainsFunc(f.damages, func(d Damage) bool { return !d.Mended })
}

func (j *job) run(ctx context.Context) error {
	newest, err := j.folder.Newest()
	if err != nil || newest == nil {
		return err
	}
	j.task.Phase("verify")
	if err := j.look(ctx, newest); err != nil {
		return err
	}
	if err := j.openSource(ctx, newest); err != nil {
		return err
	}
	if j.src != nil {
		defer j.src.Close()
	}
	j.task.Phase("repair")
	err = j.mendAll(ctx)
	for _, f := range j.files {
		j.report.Damages = append(j.report.Damages, f.damages...)
		if ctx.Err() == nil {
			j.note(ctx, f)
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// look finds out what is wrong with each file of the chain.
func (j *job) look(ctx context.Context, p *repo.Point) error {
	points, err := j.folder.Points()
	if err != nil {
		return err
	}
	for {
		f := &file{point: p}
		j.files = append(j.files, f)
		j.report.Points = len(j.files)
		if err := j.check(ctx, f, points); err != nil {
			return err
		}
		if err := p.CheckParent(); err != nil {
			f.add(whatParent, qcow2.Range{}, err.Error())
			f.damages[len(f.damages)-1].Reason = "what it was made on is not there any more"
			return nil
		}
		below := p.Parent()
		if below == "" || !below.Time().Before(p.Name.Time()) {
			return nil
		}
		p = j.folder.Point(below)
	}
}

// check looks for all that is wrong with a file. points are all of the folder.
func (j *job) check(ctx context.Context, f *file, points []*repo.Point) error {
	chain, err := j.folder.OpenAlone(ctx, f.point.Name)
	if err != nil {
		if f.point.State != repo.Damaged && !verify.IsUnreadable(err) {
			return err
		}
		f.add("file", qcow2.Range{}, err.Error())
		return nil
	}
	defer chain.Close()
	f.opened, f.proved = true, len(chain.Unproved()) == 0
	if err := f.point.CheckKey(points); err != nil {
		f.add("digests", qcow2.Range{}, err.Error())
	}
	err = j.checkImage(ctx, chain.Image, func(found qcow2.Finding) { f.add(found.Structure, found.Guest, found.Message) })
	if verify.IsUnreadable(err) {
		f.add("file", qcow2.Range{}, "can't be read: "+err.Error())
		return nil
	}
	return err
}

func (j *job) checkImage(ctx context.Context, image *qcow2.Image, report func(qcow2.Finding)) error {
	_, err := image.Check(ctx, qcow2.CheckOptions{
		Data: true, Parallel: j.Parallel,
		Sample: func(guest qcow2.Range) bool {
			j.task.Advance(guest.Offset, image.Size())
			return true
		},
		Report: func(found qcow2.Finding) {
			if found.Kind != qcow2.Leak {
				report(found)
			}
		},
	})
	return err
}

func (f *file) add(what string, guest qcow2.Range, message string) {
	f.damages = append(f.damages, Damage{
		Point: f.point.Name, What: what, Start: guest.Offset, Length: guest.Length, Message: message,
	})
}

// fail says why what is left of a file's damages is not mended.
func (f *file) fail(reason string) {
	for i := range f.damages {
		if d := &f.damages[i]; !d.Mended && d.Reason == "" {
			d.Reason = reason
		}
	}
}

// openSource opens the snapshot of the newest point, if it is there.
func (j *job) openSource(ctx context.Context, newest *repo.Point) error {
	if j.Source == nil {
		j.why = "no source was given"
		return nil
	}
	if newest.Identity == nil {
		j.why = fmt.Sprintf("newest point %s does not tell what it was made from", newest.Name)
		return nil
	}
	src, err := j.Source(ctx, newest)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		j.why = err.Error()
		j.log.Warn("can't read what the newest point was made from", "reason", j.why)
		return nil
	}
	j.src = &snapshot{Source: src, confirm: func(ctx context.Context) error {
		again, err := j.Source(ctx, newest)
		if err != nil {
			return fmt.Errorf("confirm what was read: %w", err)
		}
		return again.Close()
	}}
	return nil
}

// note keeps beside a point what is known of it now.
func (j *job) note(ctx context.Context, f *file) {
	p := j.folder.Point(f.point.Name)
	v := j.folder.Verified([]*repo.Point{p})[p.Name]
	v.Point, v.File, v.Time, v.Next = p.Name, p.Fingerprint(), time.Now().UTC().Truncate(time.Second), 0
	was := v.Verdict
	v.Verdict, v.Reason, v.Hidden, v.Since = repo.Proved, "", nil, nil
	left := slices.IndexFunc(f.damages, func(d Damage) bool { return !d.Mended })
	switch {
	case left >= 0 && p.Touched():
		v.Verdict, v.Reason = repo.FoundChanged, f.damages[left].Message
	case left >= 0:
		v.Verdict, v.Reason = repo.FoundDamaged, f.damages[left].Message
	case !f.proved && was.Bad():
		return // nothing here has refuted that
	case !f.proved:
		v.Verdict = repo.Unproved
	}
	if left >= 0 && f.damages[left].Hidden {
		v.Hidden = &repo.Hidden{Time: v.Time, By: []repo.PointName{j.files[0].point.Name}}
	}
	if err := j.folder.NoteVerified(ctx, v); err != nil {
		j.log.Warn("can't note what was verified", "point", p.Name, "error", err)
	}
}

// snapshot is the source, read through a window: clusters are asked for one after the other.
type snapshot struct {
	verify.Source
	confirm func(ctx context.Context) error
	window  []byte
	at      int64 // where the window begins
}

// windowSize is how much of a source is read at once, in bytes.
const windowSize = 4 << 20

// cluster fills p with what the disk has from off on, and with zeroes behind its end.
func (s *snapshot) cluster(ctx context.Context, p []byte, off int64) error {
	clear(p)
	for end := min(off+int64(len(p)), s.Size()); off < end; {
		start := off / windowSize * windowSize
		if len(s.window) == 0 || s.at != start {
			n := min(windowSize, s.Size()-start)
			s.window = slices.Grow(s.window[:0], int(n))[:n]
			if err := s.Read(ctx, s.window, start); err != nil {
				s.window = nil // a read that was given up may go on writing to it
				return err
			}
			s.at = start
		}
		n := copy(p[:min(int64(len(p)), end-off)], s.window[off-start:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}
