package repo

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
)

// folded gives the identity of a point into which the one below it has been folded.
func (s *scene) folded(child int) *Identity {
	s.t.Helper()
	c, x := s.Point(s.points[child]), s.Point(s.points[child-1])
	id := *c.Identity
	id.Parent, id.Generation = x.Identity.Parent, x.Identity.Generation
	id.OriginSHA256 = c.OriginHash()
	id.Folded = &Folded{Point: x.Name, PointID: x.Identity.PointID, OriginSHA256: x.OriginHash()}
	return &id
}

// cutShort leaves what a fold of the point below a child leaves that was cut short between its switch and its rename.
func (s *scene) cutShort(child int) *Point {
	s.t.Helper()
	id := s.folded(child)
	x := s.points[child-1]
	if err := os.Remove(s.Path(x)); err != nil {
		s.t.Fatal(err)
	}
	s.write(x, id, s.states[s.points[child]])
	p := s.Point(x)
	if p.State != Removing {
		s.t.Fatalf("point %s is %s: %v", x, p.State, p.Err)
	}
	return p
}

func (s *scene) recover() []string {
	s.t.Helper()
	done, err := s.Recover(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return done
}

// TestRecoverRename completes removals that were cut short before the file got its new name.
func TestRecoverRename(t *testing.T) {
	for name, child := range map[string]int{"full": 1, "middle": 2} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, 4)
			x := s.cutShort(child)
			s.forget(child - 1)
			s.checkStates() // all others read right as it is
			if _, err := s.OpenChain(t.Context(), x.Name); err == nil || !strings.Contains(err.Error(), "is being removed") {
				t.Errorf("opened the point that is being removed: %v", err)
			}
			if got := x.Created(); !got.Equal(x.Name.Time()) {
				t.Errorf("it is of %v", got)
			}

			chain, err := s.OpenChain(t.Context(), s.points[len(s.points)-1])
			if err != nil {
				t.Fatal(err)
			}
			if done := s.recover(); len(done) != 1 || !strings.Contains(done[0], "in use") {
				t.Errorf("recovery of what is in use: %q", done)
			}
			_ = chain.Close()
			if done := s.recover(); len(done) != 1 || !strings.Contains(done[0], "completed the removal of point "+string(x.Name)) {
				t.Errorf("recovery: %q", done)
			}
			s.checkPoints()
			s.checkStates()
			s.add() // on points that know their parents by what these were made with
			s.checkStates()
			if done := s.recover(); len(done) > 0 {
				t.Errorf("second recovery: %q", done)
			}
		})
	}
}

// TestRemovingIsForItsChildOnly has another point lie on one whose file is its child's already.
func TestRemovingIsForItsChildOnly(t *testing.T) {
	s := newScene(t, 3)
	branch := *s.Point(s.points[2]).Identity
	branch.Point, branch.PointID = NextPointName(time.Now(), s.points[2]), "another"
	branch.Parent = s.Point(s.points[0]).AsParent()
	s.write(branch.Point, &branch, s.states[s.points[2]])
	s.cutShort(1)
	if _, err := s.OpenChain(t.Context(), branch.Point); err == nil || !strings.Contains(err.Error(), "not the one") {
		t.Errorf("opened a point on another one's data: %v", err)
	}
}

// TestRecoverUnlink completes removals that were cut short before the point was unlinked.
func TestRecoverUnlink(t *testing.T) {
	s := newScene(t, 4)
	id := s.folded(2)
	x, c := s.points[1], s.points[2]
	if err := os.Remove(s.Path(c)); err != nil {
		t.Fatal(err)
	}
	s.write(c, id, s.states[c])
	if done := s.recover(); len(done) > 0 {
		t.Errorf("recovery removed a point without a note: %q", done)
	}
	note := foldNote{Point: x, Child: c, Inode: s.Point(c).inode}
	if err := s.writeNote(note); err != nil {
		t.Fatal(err)
	}
	if _, err := s.changePins(t.Context(), x, &Pin{Point: x}); err != nil {
		t.Fatal(err)
	}
	if done := s.recover(); len(done) > 0 {
		t.Errorf("recovery removed a pinned point: %q", done)
	}
	if _, err := s.Unpin(t.Context(), x); err != nil {
		t.Fatal(err)
	}
	if err := s.writeNote(note); err != nil {
		t.Fatal(err)
	}

	// Put back from a copy, it is a point like any other.
	content, err := os.ReadFile(s.Path(x))
	if err != nil {
		t.Fatal(err)
	}
	if done := s.recover(); len(done) != 1 || !strings.Contains(done[0], "completed the removal of point "+string(x)) {
		t.Errorf("recovery: %q", done)
	}
	s.forget(1)
	s.checkPoints()
	s.checkStates()
	made := s.Point(s.points[0]).Identity.Created.Add(time.Second)
	if err := errors.Join(os.WriteFile(s.Path(x), content, pointMode), os.Chtimes(s.Path(x), made, made)); err != nil {
		t.Fatal(err)
	}
	if done := s.recover(); len(done) > 0 || !s.has(x) {
		t.Errorf("recovery removed a point that was put back: %q", done)
	}
	if _, err := s.RemoveLeaf(x); err != nil {
		t.Error(err)
	}
	s.checkStates()
}

// TestRecoverTarget takes back folds that were cut short while they wrote into a file.
func TestRecoverTarget(t *testing.T) {
	for _, noted := range []bool{true, false} {
		s := newScene(t, 3)
		x := s.points[1]
		p := s.Point(x)
		if noted {
			if err := s.writeNote(foldNote{Point: x, Child: s.points[2], Inode: p.inode, Before: p.identityHash()}); err != nil {
				t.Fatal(err)
			}
		}
		grow(t, s.Path(x))
		longer := s.Point(x)
		if longer.State != Copied || longer.excess() == 0 {
			t.Fatalf("a longer file is %s: %v", longer.State, longer.Err)
		}
		qemutest.Check(t, s.Path(x))
		done := s.recover()
		if !noted {
			if after := s.Point(x); len(done) > 0 || after.FileSize != longer.FileSize {
				t.Errorf("a longer file was changed though nothing tells why it is longer: %q", done)
			}
			if err := longer.Confirm(); err != nil {
				t.Fatal(err)
			}
		} else if len(done) != 1 || !strings.Contains(done[0], "took back") {
			t.Errorf("recovery: %q", done)
		}
		s.checkPoints()
		s.checkStates()
	}
}

// grow appends to a point's file, and leaves it writable.
func grow(t *testing.T, path string) {
	t.Helper()
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.Write(slices.Repeat([]byte("rest"), 1000)); err != nil {
		t.Fatal(err)
	}
}

// TestRecoverCopy has a repository copied in the middle of a fold: what the note says is not of the copy's files.
func TestRecoverCopy(t *testing.T) {
	s := newScene(t, 3)
	x := s.points[1]
	if err := s.writeNote(foldNote{Point: x, Child: s.points[2], Inode: s.Point(x).inode}); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(s.Path(x))
	if err != nil {
		t.Fatal(err)
	}
	copied := s.Path(x) + ".copy"
	if err := errors.Join(os.WriteFile(copied, content, pointMode), os.Rename(copied, s.Path(x))); err != nil {
		t.Fatal(err)
	}
	if done := s.recover(); len(done) > 0 {
		t.Errorf("recovery: %q", done)
	}
	if p := s.Point(x); p.State != Copied {
		t.Errorf("a copy is %s", p.State)
	}
}

func TestLengthOfFile(t *testing.T) {
	s := newScene(t, 1)
	if err := os.Truncate(s.Path(s.points[0]), s.Point(s.points[0]).FileSize-1); err != nil {
		t.Fatal(err)
	}
	if p := s.Point(s.points[0]); p.State != Damaged {
		t.Errorf("a file that lost its tail is %s", p.State)
	}
}
