package prune

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/retention"
)

// day gives a time on the nth day.
func day(n int) time.Time { return time.Date(2026, 1, 1+n, 3, 0, 0, 0, time.UTC) }

// days makes a chain with a point for each of n days.
func (s *scene) days(folder string, n int) (points []repo.PointName) {
	s.t.Helper()
	for i := range n {
		points = append(points, s.add(folder, day(i), false))
	}
	return points
}

// wantRemoved fails the test unless these points, and no others, were removed from an image.
func wantRemoved(t *testing.T, r ImageReport, want ...repo.PointName) {
	t.Helper()
	var got []repo.PointName
	for _, p := range r.Points {
		if p.Action == Remove && p.Error == "" {
			got = append(got, p.Point)
		}
	}
	if !slices.Equal(got, want) || r.Removed != len(want) {
		t.Errorf("removed %v, counted %d, want %v\n%+v", got, r.Removed, want, r)
	}
}

func TestPruneFolds(t *testing.T) {
	s := newScene(t)
	p := s.days("vm", 9)
	o := s.options(retention.Policy{Last: 1, Weekly: 2}, day(9)) // 2026-01-04 is a Sunday
	o.DryRun = true
	planned := s.run(o).Images[0]
	if planned.Status != Planned {
		t.Errorf("status %s: %s", planned.Status, planned.Error)
	}
	s.check()
	o.DryRun = false
	done := s.run(o).Images[0]
	if done.Status != Done || done.Kept != 2 {
		t.Errorf("report: %+v", done)
	}
	removed := slices.Concat(p[:3], p[4:8])
	wantRemoved(t, planned, removed...)
	wantRemoved(t, done, removed...)
	s.forget("vm", removed...)
	s.check()
	if planned.Written < done.Written/2 || planned.Written > 2*done.Written {
		t.Errorf("estimated %d bytes to be written, it was %d", planned.Written, done.Written)
	}
	if done.Freed <= 0 || planned.Freed <= 0 {
		t.Errorf("freed %d, estimated %d", done.Freed, planned.Freed)
	}
	if again := s.run(o).Images[0]; again.Status != Done || again.Removed != 0 {
		t.Errorf("done again: %+v", again)
	}
	s.add("vm", day(9), false)
	s.check()
}

// TestPruneLeaves removes a chain that a newer full point has superseded: nothing is written for that.
func TestPruneLeaves(t *testing.T) {
	s := newScene(t)
	old := s.days("vm", 3)
	s.add("vm", day(3), true)
	s.add("vm", day(4), false)
	r := s.run(s.options(retention.Policy{Last: 2}, day(5))).Images[0]
	wantRemoved(t, r, old...)
	s.forget("vm", old...)
	s.check()
	for _, p := range r.Points[:3] {
		if p.Method != Unlink || p.Freed == 0 || p.Written != 0 {
			t.Errorf("%+v", p)
		}
	}
}

func TestPins(t *testing.T) {
	s := newScene(t)
	p := s.days("vm", 4)
	if err := s.repo.Folder("vm").Pin(t.Context(), p[1], "why"); err != nil {
		t.Fatal(err)
	}
	r := s.run(s.options(retention.Policy{Last: 1}, day(5))).Images[0]
	wantRemoved(t, r, p[0], p[2])
	s.forget("vm", p[0], p[2])
	s.check()
	if !slices.Contains(r.Points[1].Reasons, "pinned") {
		t.Errorf("%+v", r.Points[1])
	}
	if _, err := s.repo.Folder("vm").Unpin(t.Context(), p[1]); err != nil {
		t.Fatal(err)
	}
	s.run(s.options(retention.Policy{Last: 1}, day(5)))
	s.forget("vm", p[1])
	s.check()
}

// TestInUse reads a point meanwhile: it stays, the others go.
func TestInUse(t *testing.T) {
	s := newScene(t)
	old := s.days("old", 3) // a chain that somebody reads all of
	s.add("old", day(3), true)
	vm := s.days("vm", 3)
	chain, err := s.repo.Folder("old").OpenChain(s.t.Context(), old[1])
	if err != nil {
		t.Fatal(err)
	}
	defer chain.Close()
	report := s.run(s.options(retention.Policy{Last: 1}, day(5)))
	wantRemoved(t, report.Images[0], old[2])
	wantRemoved(t, report.Images[1], vm[:2]...)
	if r := report.Images[0]; r.Status != Partly || !slices.Equal(r.InUse(), old[:2]) || report.Images[1].Status != Done {
		t.Errorf("%+v", report)
	}
	s.forget("old", old[2])
	s.forget("vm", vm[:2]...)
	s.check()
	if err := chain.Close(); err != nil {
		t.Fatal(err)
	}
	s.run(s.options(retention.Policy{Last: 1}, day(5)))
	s.forget("old", old[:2]...)
	s.check()
}

func TestGone(t *testing.T) {
	s := newScene(t)
	p := s.days("vm", 3)
	f := s.repo.Folder("vm")
	if news, err := f.NoteGone(true, day(4)); err != nil || !news {
		t.Fatal(news, err)
	}
	if news, err := f.NoteGone(true, day(5)); err != nil || news {
		t.Fatal(news, err)
	}
	o := s.options(retention.Policy{Last: 1}, day(5))
	if r := s.run(o).Images[0]; r.Status != Skipped || r.Reason == "" || r.Removed != 0 {
		t.Errorf("%+v", r)
	}
	s.check()
	o.Gone = true
	wantRemoved(t, s.run(o).Images[0], p[:2]...)
	s.forget("vm", p[:2]...)
	s.check()
	if news, err := f.NoteGone(false, day(6)); err != nil || !news {
		t.Fatal(news, err)
	}
	if _, gone, err := f.Gone(); err != nil || gone {
		t.Fatal(gone, err)
	}
}

// TestDamaged has a point that can't be read, and so the one above it: both stay, and the rules do without them.
func TestDamaged(t *testing.T) {
	s := newScene(t)
	p := s.days("vm", 3)
	s.days("other", 2)
	full := s.add("vm", day(3), true)
	newest := s.add("vm", day(4), false)
	path := s.repo.Folder("vm").Path(p[1])
	if err := errors.Join(os.Chmod(path, 0o600), os.Truncate(path, 5000)); err != nil {
		t.Fatal(err)
	}
	report := s.run(s.options(retention.Policy{Last: 3}, day(5)))
	for i, want := range map[int]string{0: "last 3", 1: "not counted", 2: "not counted", 3: "last 2", 4: "newest"} {
		if got := strings.Join(report.Images[1].Points[i].Reasons, ", "); !strings.Contains(got, want) {
			t.Errorf("point %d: %q, want %q", i, got, want)
		}
	}
	wantRemoved(t, report.Images[1])
	s.run(s.options(retention.Policy{Last: 1}, day(5)))
	// The full point can't go: who knows what lies on it. The one of the other chain can be folded as ever.
	points, err := s.repo.Folder("vm").Points()
	if err != nil {
		t.Fatal(err)
	}
	var names []repo.PointName
	for _, p := range points {
		names = append(names, p.Name)
	}
	if !slices.Contains(names, p[0]) || !slices.Contains(names, p[1]) || !slices.Contains(names, newest) {
		t.Errorf("points %v are left, full point was %v", names, full)
	}
}

func TestSelect(t *testing.T) {
	s := newScene(t)
	for _, name := range []string{"db-1", "db-2", "web"} {
		s.days(name, 2)
	}
	o := s.options(retention.Policy{Last: 1}, day(5))
	o.Images = []string{"db-*", "mail"}
	report := s.run(o)
	if len(report.Images) != 3 || report.Images[0].Status != Failed || report.Removed() != 2 || report.Count(Done) != 2 {
		t.Errorf("%+v", report)
	}
	o.Images = []string{"nothing*"}
	if _, err := Run(t.Context(), s.repo, o); !errors.Is(err, repo.ErrNothingMatched) {
		t.Error(err)
	}
	o.Policy = retention.Policy{}
	if _, err := Run(t.Context(), s.repo, o); err == nil {
		t.Error("no rules are no error")
	}
}

// TestLocked meets another run in one folder.
func TestLocked(t *testing.T) {
	s := newScene(t)
	s.days("a", 2)
	s.days("b", 2)
	lock, err := s.repo.Folder("a").Lock()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Unlock() }()
	report := s.run(s.options(retention.Policy{Last: 1}, day(5)))
	if a, b := report.Images[0], report.Images[1]; a.Status != Failed || !strings.Contains(a.Error, "is locked by process") || b.Status != Done {
		t.Errorf("%+v", report)
	}
}
