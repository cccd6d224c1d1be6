package prune

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/retention"
)

// stopper ends a run when two points have been dealt with.
type stopper struct {
	progress.Task
	stop context.CancelFunc
}

func (s stopper) Images(int)                 {}
func (s stopper) Start(string) progress.Task { return s }
func (s stopper) Phase(string)               {}
func (s stopper) End()                       {}
func (s stopper) Advance(done, _ int64) {
	if done == 2 {
		s.stop()
	}
}

func TestInterrupted(t *testing.T) {
	s := newScene(t)
	p := s.days("vm", 6)
	s.days("web", 2)
	ctx, cancel := context.WithCancel(t.Context())
	o := s.options(retention.Policy{Last: 1}, day(7))
	o.Progress = stopper{stop: cancel}
	report, err := Run(ctx, s.repo, o)
	if !errors.Is(err, context.Canceled) || len(report.Images) != 1 || report.Images[0].Status != Failed || report.Removed() != 2 {
		t.Fatalf("%+v, %v", report, err)
	}
	s.forget("vm", p[:2]...)
	s.check()
	if r := s.run(s.options(retention.Policy{Last: 1}, day(7))); r.Removed() != 3+1 || r.Count(Done) != 2 {
		t.Errorf("%+v", r)
	}
}

// TestDamagedData has a flipped bit in a point that is to go: it stays, the others go.
func TestDamagedData(t *testing.T) {
	s := newScene(t)
	p := s.days("vm", 5)
	path := s.repo.Folder("vm").Path(p[1])
	flip(t, path)
	r := s.run(s.options(retention.Policy{Last: 1}, day(7))).Images[0]
	if r.Status != Failed || r.Removed == 0 || !strings.Contains(r.Points[1].Error, "other content than was stored") {
		t.Errorf("%+v", r)
	}
	if !strings.Contains(s.log.String(), "point can't be removed") {
		t.Errorf("log:\n%s", s.log.String())
	}
	flip(t, path)
	s.forget("vm", p[:4]...)
	s.run(s.options(retention.Policy{Last: 1}, day(7)))
	s.check()
}

// flip flips a bit of the first data in a file, and leaves its mtime.
func flip(t *testing.T, path string) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range qemutest.Map(t, path) {
		if e.Depth == 0 && e.Data && e.Offset != nil {
			b[*e.Offset] ^= 1
			break
		}
	}
	for _, step := range []func() error{
		func() error { return os.Chmod(path, 0o600) },
		func() error { return os.WriteFile(path, b, 0o600) },
		func() error { return os.Chmod(path, info.Mode()) },
		func() error { return os.Chtimes(path, time.Time{}, info.ModTime()) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFork has two points that lie on one: it comes about where the newest file was away for a while.
func TestFork(t *testing.T) {
	s := newScene(t)
	p := s.days("vm", 2)
	first, away := s.repo.Folder("vm").Path(p[1]), s.repo.Dir+"/away"
	if err := os.Rename(first, away); err != nil {
		t.Fatal(err)
	}
	s.add("vm", day(2), false)
	s.add("vm", day(3), false)
	if err := os.Rename(away, first); err != nil {
		t.Fatal(err)
	}
	s.check()
	if err := s.repo.Folder("vm").Pin(t.Context(), p[1], ""); err != nil {
		t.Fatal(err)
	}
	r := s.run(s.options(retention.Policy{Last: 2}, day(7))).Images[0]
	if r.Status != Failed || !strings.Contains(r.Error, "2 points lie on it") {
		t.Errorf("%+v", r)
	}
	s.check()
	if _, err := s.repo.Folder("vm").Unpin(t.Context(), p[1]); err != nil {
		t.Fatal(err)
	}
	wantRemoved(t, s.run(s.options(retention.Policy{Last: 2}, day(7))).Images[0], p...)
	s.forget("vm", p...)
	s.check()
}

// TestCutShort has a removal that was cut short, which a dry run leaves alone and the next run completes.
func TestCutShort(t *testing.T) {
	s := newScene(t)
	p := s.days("vm", 3)
	f := s.repo.Folder("vm")
	child := f.Path(p[1])
	before, err := os.ReadFile(child)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.FoldPoint(t.Context(), p[0], repo.FoldOptions{Program: "test"}); err != nil {
		t.Fatal(err)
	}
	s.forget("vm", p[0])
	s.check()
	// As if the file had not been renamed yet.
	if err := errors.Join(os.Rename(child, f.Path(p[0])), os.WriteFile(child, before, 0o440)); err != nil {
		t.Fatal(err)
	}
	if state := f.Point(p[0]).State; state != repo.Removing {
		t.Fatalf("state %s", state)
	}
	o := s.options(retention.Policy{Last: 3}, day(7))
	o.DryRun = true
	r := s.run(o).Images[0]
	if r.Status != Planned || r.Removed != 0 || !strings.Contains(strings.Join(r.Points[0].Reasons, " "), "being removed") {
		t.Errorf("%+v", r)
	}
	o.DryRun = false
	if r := s.run(o).Images[0]; r.Status != Done || r.Removed != 0 || len(r.Points) != 2 {
		t.Errorf("%+v", r)
	}
	s.check()
}
