package repair

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/verify"
)

// repairFrom mends what it can, with that source.
func (s *scene) repairFrom(source func(context.Context, *repo.Point) (verify.Source, error)) ImageReport {
	s.t.Helper()
	log := slog.New(slog.DiscardHandler)
	r, err := Run(s.t.Context(), s.r, Options{Parallel: 2, Logger: log, Progress: progress.Log{Logger: log}, Source: source})
	s.must(err)
	return r.Images[0]
}

// newestSource opens what the newest point was made from.
func (s *scene) newestSource(_ context.Context, p *repo.Point) (verify.Source, error) {
	if p.Name != s.points[len(s.points)-1] {
		return nil, errors.New("the snapshot is gone")
	}
	return ram(s.states[len(s.states)-1]), nil
}

// refused says whether a point is not to be relied on, by what is noted.
func (s *scene) refused(i int) bool {
	s.t.Helper()
	chain, err := s.OpenChain(s.t.Context(), s.points[i])
	s.must(err)
	defer chain.Close()
	return chain.Refuse() != nil
}

// A file that can't be mended while somebody reads it stays damaged; the newest point gets what it shows of that.
func TestRepairInUse(t *testing.T) {
	s := newScene(t, "none", nil)
	s.edit(0, rot(place(0, 5)))
	reader, err := s.OpenAlone(t.Context(), s.points[0])
	s.must(err)
	r := s.repairFrom(s.newestSource)
	s.must(reader.Close())
	if r.Left() != 1 || !r.Damages[0].Hidden || s.refused(2) || !s.refused(1) {
		t.Errorf("report %+v, newest point refused: %t", r, s.refused(2))
	}
	if got, err := s.read(2); err != nil || string(got) != string(s.states[2]) {
		t.Errorf("the newest point reads as something else: %v", err)
	}
}

// A point whose parent is missing is not mended by a new file.
func TestRepairParent(t *testing.T) {
	for lost := range 2 {
		s := newScene(t, "none", nil)
		s.must(os.Remove(s.Path(s.points[lost])))
		r := s.repairFrom(nil)
		if r.Left() == 0 || len(r.Replaced) > 0 {
			t.Errorf("without point %d: %+v", lost, r)
		}
	}
}

// vanished is a snapshot that is removed while it is read.
type vanished struct{ ram }

func (vanished) Read(_ context.Context, p []byte, _ int64) error {
	clear(p)
	return nil
}

// A snapshot that goes away meanwhile says nothing of the point.
func TestRepairSnapshotGone(t *testing.T) {
	s, opened := newScene(t, "none", nil), 0
	r := s.repairFrom(func(context.Context, *repo.Point) (verify.Source, error) {
		if opened++; opened > 1 {
			return nil, errors.New("the snapshot is gone")
		}
		return vanished{ram(s.states[2])}, nil
	})
	if r.Error == "" || len(r.Damages) > 0 || s.refused(2) {
		t.Errorf("report %+v, newest point refused: %t", r, s.refused(2))
	}
}

// A verification of a part does not know what another part has: it lifts no refusal.
func TestHiddenBySample(t *testing.T) {
	s := newScene(t, "none", nil)
	s.edit(0, rot(place(0, 0)))  // the next point has changed it
	s.edit(0, rot(place(0, 19))) // all show it
	log := slog.New(slog.DiscardHandler)
	for n := range 40 {
		o := verify.Options{Parallel: 2, Logger: log, Progress: progress.Log{Logger: log}}
		if n > 0 {
			o.Sample = 30
		}
		_, err := verify.Run(t.Context(), s.r, o)
		s.must(err)
		if !s.refused(2) {
			t.Fatalf("after %d samples the newest point is not refused any more", n)
		}
	}
}
