package repo

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/crashpoint"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
)

// TestFoldAboveUnfinishedRemoval folds the point above one whose removal was cut short and could not be completed, because
// somebody read it at that time.
func TestFoldAboveUnfinishedRemoval(t *testing.T) {
	s := newScene(t, 4)
	s.cutShort(2)
	s.forget(1)
	reader, err := s.OpenChain(s.t.Context(), s.points[2])
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%q", s.recover()) // in use
	_ = reader.Close()
	if _, err := s.FoldPoint(t.Context(), s.points[1], FoldOptions{Program: "test"}); err == nil {
		s.forget(1)
	} else {
		t.Log(err) // to decline is right, too
	}
	s.checkReads()
	t.Logf("%q", s.recover())
	s.checkPoints()
	s.checkStates()
}

// TestRecoverPutBackAndCopied puts a removed point back from an archive, and then copies the repository or changes its owner.
func TestRecoverPutBackAndCopied(t *testing.T) {
	for name, script := range map[string]string{
		"chmod":      `chmod g-w "$1"/vm/*`,
		"hard links": `cp -al "$1" "$1.snapshot"`,
		"copy":       `cp -a "$1" "$1.new" && rm -r "$1" && mv "$1.new" "$1"`,
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, 4)
			x := s.points[1]
			archive := t.TempDir() + "/x"
			if out, err := exec.Command("cp", "-a", s.Path(x), archive).CombinedOutput(); err != nil {
				t.Fatalf("%s %v", out, err)
			}
			s.fold(1)
			s.checkPoints()
			time.Sleep(50 * time.Millisecond)
			if out, err := exec.Command("cp", "-a", archive, s.Path(x)).CombinedOutput(); err != nil {
				t.Fatalf("%s %v", out, err)
			}
			if done := s.recover(); len(done) > 0 {
				t.Fatalf("%q", done)
			}
			dir := s.Dir[:len(s.Dir)-len("/vm")]
			time.Sleep(50 * time.Millisecond)
			if out, err := exec.Command("sh", "-c", script, "sh", dir).CombinedOutput(); err != nil {
				t.Fatalf("%s %v", out, err)
			}
			if done := s.recover(); len(done) > 0 || !s.has(x) {
				t.Errorf("recovery removed a point that was put back: %q", done)
			}
		})
	}
}

// TestFoldKeepsMarkOfUnproved has somebody write to a point that has no digests, since data of the Python tool came into it: the
// next backup compares a sample of it with its snapshot. A fold that knows no more must not call it good.
func TestFoldKeepsMarkOfUnproved(t *testing.T) {
	s := foreignScene(t)
	s.fold(2)
	ours := s.points[2]
	if err := os.Chmod(s.Path(ours), 0o640); err != nil {
		t.Fatal(err)
	}
	qemutest.IO(t, s.Path(ours), "write -P 200 200k 4k")
	if err := os.Chmod(s.Path(ours), pointMode); err != nil {
		t.Fatal(err)
	}
	if p := s.Point(ours); p.State != Copied {
		t.Fatalf("%s %v", p.State, p.Err)
	}
	if _, err := s.FoldPoint(t.Context(), s.points[1], FoldOptions{Program: "test"}); err != nil {
		t.Log(err) // to decline is right, too
	}
	if p := s.Point(ours); p.State == Good {
		t.Errorf("point %s is %s, and its content was changed", p.Name, p.State)
	}
}

// killAt ends the fold of a point into the one above it at a step, as a kill does.
func (s *scene) killAt(step string, i int) *fold {
	s.t.Helper()
	j, err := s.newFold(s.points[i], FoldOptions{Program: "test"})
	if err != nil {
		s.t.Fatal(err)
	}
	killed := errors.New("killed")
	j.step = func(reached string) error {
		if reached == step {
			return killed
		}
		return nil
	}
	if err := j.run(s.t.Context()); !errors.Is(err, killed) {
		s.t.Fatal(err)
	}
	return j
}

// TestFoldKilledBeforePunch leaves superseded bytes in a file that is as it should be otherwise: recovery gives them back.
func TestFoldKilledBeforePunch(t *testing.T) {
	for _, intoChild := range []bool{true, false} {
		s, i := foldScene(t, intoChild)
		j := s.killAt(crashpoint.FoldUnlinked, i)
		s.forget(i)
		before := s.Point(j.child).DiskSize
		s.recover()
		if after := s.Point(j.child).DiskSize; j.pending == nil && after >= before {
			t.Errorf("into child: %v: %d bytes on disk, before recovery %d", intoChild, after, before)
		}
		s.checkPoints()
		s.checkStates()
	}
}

// TestFoldBesidePending folds nothing more in a folder where a removal that was cut short waits for a reader: its note would be lost.
func TestFoldBesidePending(t *testing.T) {
	s, i := foldScene(t, true)
	j := s.killAt(crashpoint.FoldFilled, i)
	if j.pending != nil {
		return // in a copy that shares extents: there is nothing to be completed
	}
	chain, err := s.OpenChain(t.Context(), j.name)
	if err != nil {
		t.Fatal(err)
	}
	s.recover()
	var inUse *InUseError
	if _, err := s.FoldPoint(t.Context(), j.child, FoldOptions{}); !errors.As(err, &inUse) {
		t.Errorf("folded another one: %v", err)
	}
	_ = chain.Close()
	s.forget(i)
	if done := s.recover(); len(done) != 1 {
		t.Errorf("recovery: %q", done)
	}
	s.checkPoints()
	s.checkStates()
}

// TestFoldInterrupted ends a fold at each look at its context: all space comes back that it had taken.
func TestFoldInterrupted(t *testing.T) {
	for n := 1; ; n += 9 {
		s := newScene(t, 0)
		for _, s.writes = range []int{8, 12, 3, 8, 3, 8} {
			s.add()
		}
		s.fold(1) // so that there are holes to be filled
		before := map[PointName]int64{}
		for _, p := range s.points {
			before[p] = s.Point(p).DiskSize
		}
		if _, err := s.FoldPoint(&endingContext{t.Context(), n}, s.points[1], FoldOptions{}); err == nil {
			return
		}
		for _, p := range s.points {
			if after := s.Point(p).DiskSize; after > before[p] {
				t.Errorf("interrupted at look %d: point %s takes %d bytes, %d before", n, p, after, before[p])
			}
		}
		s.checkPoints()
	}
}

// endingContext ends when it has been looked at so many times.
type endingContext struct {
	context.Context
	left int
}

func (c *endingContext) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

// TestFoldCopiedWithoutDigests folds points of which nothing but the mtime vouches, in a copy that has other mtimes.
func TestFoldCopiedWithoutDigests(t *testing.T) {
	s := foreignScene(t)
	s.add()
	s.fold(2) // one of the Python tool into one of ours
	for _, p := range s.points {
		if err := os.Chtimes(s.Path(p), time.Time{}, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	s.fold(2)
	if p := s.Point(s.points[2]); p.State != Copied {
		t.Errorf("nothing has proved the result, but it is %s", p.State)
	}
	s.checkReads()
}
