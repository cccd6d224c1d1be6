package verify

import (
	"context"
	"math/rand/v2"

	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// check looks at all that is in a file, or at the part of its data that this run is to look at.
func (j *job) check(ctx context.Context, image *qcow2.Image, r *PointReport) error {
	task, part := j.task(j.image), part{from: j.begin(image.Size()), sample: j.Sample, timeIsUp: j.timeIsUp}
	stats, err := image.Check(ctx, qcow2.CheckOptions{
		Data:     true,
		Parallel: j.Parallel,
		Sample: func(guest qcow2.Range) bool {
			task.Advance(guest.Offset, image.Size())
			return part.holds(guest)
		},
		Report: func(f qcow2.Finding) {
			if f.Kind == qcow2.Leak {
				r.Leaks++
				return
			}
			r.add(Damage{
				What: f.Structure, Offset: f.Host.Offset, Start: f.Guest.Offset, Length: f.Guest.Length, Message: f.Message,
			})
		},
	})
	r.Verified, r.Data = stats.VerifiedBytes, stats.VerifiedBytes+stats.ReadBytes+stats.SkippedBytes
	switch {
	case part.next > 0:
		r.Status, r.next = Partly, part.next
	case part.skipped:
		r.Status = Sampled
	}
	return err
}

// begin is where this run begins, as guest offset: where one that ran out of time has ended, if this one may run out of time, too.
func (j *job) begin(size int64) int64 {
	if j.MaxTime > 0 && j.noted.Since != nil && j.noted.Next > 0 && j.noted.Next < size {
		return j.noted.Next
	}
	j.noted.Since = nil
	return 0
}

// part is the part of a file's data that is looked at.
type part struct {
	from     int64   // guest offset; what is before was looked at by an earlier run
	sample   float64 // percent; 0: all
	timeIsUp func() bool

	next    int64 // where the time was up; 0: it was not
	skipped bool  // by the sample
}

// holds says whether a range belongs to it. It is asked in ascending order.
func (p *part) holds(guest qcow2.Range) bool {
	switch {
	case p.next > 0 || guest.End() <= p.from:
		return false
	case guest.Offset > p.from && p.timeIsUp(): // a little is done in any case, so that many runs come to an end
		p.next = guest.Offset
		return false
	case p.sample > 0 && rand.Float64()*100 >= p.sample:
		p.skipped = true
		return false
	}
	return true
}
