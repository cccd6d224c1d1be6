package repo

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/crashpoint"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
)

// foreignScene makes a chain of three points as the Python tool did, and one of ours on it.
func foreignScene(t *testing.T) *scene {
	t.Helper()
	qemutest.Require(t, "qemu-img", "qemu-io")
	s := newScene(t, 0)
	size := fmt.Sprint(sceneSize)
	backing := filepath.Join(s.Dir, foreignBase)
	qemutest.Create(t, "-f", "qcow2", backing, size)
	for i, name := range []PointName{"1600000000", "1600086400", "1600172800"} {
		qemutest.Create(t, "-f", "qcow2", "-b", filepath.Base(backing), "-F", "qcow2", s.Path(name))
		qemutest.IO(t, s.Path(name), fmt.Sprintf("write -P %d %dk 16k", i+1, 20*i), fmt.Sprintf("write -P %d 200k 8k", i+100))
		if err := os.Chmod(s.Path(name), 0o400); err != nil {
			t.Fatal(err)
		}
		state, err := s.read(name)
		if err != nil {
			t.Fatal(err)
		}
		s.points, s.states[name], backing = append(s.points, name), state, s.Path(name)
	}
	s.add()
	return s
}

// TestFoldForeign removes points of the Python tool from below each other and from below one of ours.
func TestFoldForeign(t *testing.T) {
	for _, order := range [][]int{{0, 0, 0}, {2, 1, 0}, {1, 0, 0}, {1, 1, 0}} {
		s := foreignScene(t)
		for step, i := range order {
			newest := s.Point(s.points[len(s.points)-1])
			r := s.fold(i)
			s.checkPoints()
			s.checkStates()
			p := s.Point(r.Child)
			if p.Identity == nil || p.Identity.Folded == nil || p.Identity.Folded.Point != r.Point {
				t.Fatalf("order %v, step %d: identity %+v", order, step, p.Identity)
			}
			if foreign := p.State == Foreign; foreign != r.Child.Foreign() || foreign && p.Identity.Repository != "" {
				t.Errorf("order %v, step %d: point %s is %s, of repository %q", order, step, p.Name, p.State, p.Identity.Repository)
			}
			if after := s.Point(newest.Name); after.OriginHash() != newest.OriginHash() {
				t.Errorf("order %v, step %d: the newest point is another one", order, step)
			}
		}
		chain, err := s.OpenProvedChain(t.Context(), s.points[0])
		if err != nil {
			t.Fatal(err)
		}
		if len(chain.Points) != 1 || len(chain.Unproved()) != 1 {
			t.Errorf("order %v: %d points, %d unproved", order, len(chain.Points), len(chain.Unproved()))
		}
		_ = chain.Close()
		s.add()
		s.checkStates()
	}
}

// TestFoldForeignCutShort completes the removal of a point of the Python tool.
func TestFoldForeignCutShort(t *testing.T) {
	for _, step := range []string{crashpoint.FoldFilled, crashpoint.FoldNamed, crashpoint.FoldPunched} {
		for i := range 3 {
			s := foreignScene(t)
			j, err := s.newFold(s.points[i], FoldOptions{})
			if err != nil {
				t.Fatal(err)
			}
			j.step = func(reached string) error {
				if reached == step {
					return os.ErrClosed
				}
				return nil
			}
			_ = j.run(t.Context())
			x := s.forget(i)
			s.checkReads()
			s.recover()
			if step == crashpoint.FoldFilled && j.pending != nil { // it was still without a name
				s.points = slices.Insert(s.points, i, x)
			}
			s.checkPoints()
			s.checkStates()
		}
	}
}
