package repo

import (
	"os"
	"os/exec"
	"testing"
	"time"

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
