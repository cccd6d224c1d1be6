package repo

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/crashpoint"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// foldScene makes a chain of four points, and names one whose fold changes the child's file or its own.
func foldScene(t *testing.T, intoChild bool) (s *scene, i int) {
	s = newScene(t, 0)
	writes := []int{8, 12, 3, 8}
	i = 1
	if intoChild {
		writes = []int{8, 3, 12, 8}
	}
	for _, s.writes = range writes {
		s.add()
	}
	return s, i
}

func (s *scene) fold(i int) *FoldResult {
	s.t.Helper()
	result, err := s.FoldPoint(s.t.Context(), s.points[i], FoldOptions{Program: "test"})
	if err != nil {
		s.t.Fatal(err)
	}
	s.forget(i)
	return result
}

// TestFoldPoint removes points in a random order, and makes new ones meanwhile.
func TestFoldPoint(t *testing.T) {
	for name, codec := range map[string]qcow2.Codec{"none": nil, "zstd:1": qcow2.ZstdCodec(1)} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, 0)
			s.codec, s.compression = codec, name
			for range 6 {
				s.add()
			}
			methods := map[string]int{}
			for round := 0; len(s.points) > 1; round++ {
				s.writes = 1 + s.rng.IntN(12)
				if round%3 == 0 {
					s.add()
				}
				r := s.fold(s.rng.IntN(len(s.points) - 1))
				methods[r.Method]++
				s.checkPoints()
				s.checkStates()
			}
			t.Log(methods)
			if p := s.Point(s.points[0]); p.Kind() != "full" || p.Identity.Generation != 0 {
				t.Errorf("the last point is %s, of generation %d", p.Kind(), p.Identity.Generation)
			}
		})
	}
}

func TestFoldDirections(t *testing.T) {
	for _, intoChild := range []bool{true, false} {
		s, i := foldScene(t, intoChild)
		c := s.Point(s.points[i+1])
		r := s.fold(i)
		if r.IntoChild != intoChild || r.Child != c.Name || r.Written <= 0 || r.Method == "in place" && r.Freed <= 0 {
			t.Errorf("result %+v", r)
		}
		p := s.Point(c.Name)
		if p.OriginHash() != HashIdentity(c.IdentityRaw) || p.Identity.PointID != c.Identity.PointID {
			t.Error("its children don't know it any more")
		}
		if info, err := os.Stat(p.Path()); err != nil || info.Mode().Perm() != pointMode {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
		s.checkPoints()
		s.checkStates()
	}
}

// TestFoldOtherNames folds files that have a second name, under which they must not change.
func TestFoldOtherNames(t *testing.T) {
	for i := range 3 {
		s := newScene(t, 4)
		dir := s.link()
		before := contents(t, dir)
		if r := s.fold(i); r.Method == "in place" {
			t.Errorf("result %+v", r)
		}
		if !maps.Equal(contents(t, dir), before) {
			t.Error("a file that has another name has changed")
		}
		s.checkPoints()
		s.checkStates()
	}
}

// contents reads the files in a directory.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	for _, name := range names(t, dir) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(b)
	}
	return files
}

// link gives every point's file a second name, in another directory.
func (s *scene) link() (dir string) {
	s.t.Helper()
	dir = s.t.TempDir()
	for _, name := range s.points {
		if err := os.Link(s.Path(name), filepath.Join(dir, s.FileName(name))); err != nil {
			s.t.Fatal(err)
		}
	}
	return dir
}

// TestFoldCutShort ends a fold at each of its steps, as a kill does, with and without the note that it has left.
func TestFoldCutShort(t *testing.T) {
	for _, intoChild := range []bool{true, false} {
		for _, linked := range []bool{true, false} {
			for _, noted := range []bool{true, false} {
				for _, step := range crashpoint.FoldSteps() {
					cutFoldShort(t, step, intoChild, linked, noted)
				}
			}
		}
	}
}

func cutFoldShort(t *testing.T, step string, intoChild, linked, noted bool) {
	s, i := foldScene(t, intoChild)
	if linked {
		s.link()
	}
	j, err := s.newFold(s.points[i], FoldOptions{})
	if err != nil {
		t.Fatal(err)
	}
	killed := errors.New("killed at " + step)
	j.step = func(reached string) error {
		if reached == step {
			return killed
		}
		return nil
	}
	err = j.run(t.Context())
	// One that changes the child in place does not come to a name.
	if inPlace := err == nil && step == crashpoint.FoldNamed && j.pending == nil && intoChild; !inPlace && !errors.Is(err, killed) {
		t.Fatalf("%s: %v", step, err)
	}
	if !noted {
		if err := os.Remove(s.StatePath("fold")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	x := s.forget(i)
	s.checkReads()
	s.recover()
	installed := step != crashpoint.FoldBegun && step != crashpoint.FoldSwitched && step != crashpoint.FoldFilled
	stays := step == crashpoint.FoldBegun || !installed && j.pending != nil
	if stays || !noted && s.has(x) { // without the note nobody knows that it is not one that was put back
		s.points = slices.Insert(s.points, i, x)
	}
	if !noted {
		s.confirmCopies()
	}
	s.checkPoints()
	if noted {
		s.checkStates()
	} else {
		s.checkReads()
	}
	if t.Failed() {
		t.Fatalf("step %s, into child: %v, linked: %v, noted: %v", step, intoChild, linked, noted)
	}
}

// confirmCopies does what a backup does with points whose mtime is not the original.
func (s *scene) confirmCopies() {
	s.t.Helper()
	for _, name := range s.points {
		if p := s.Point(name); p.State == Copied {
			if err := p.Confirm(); err != nil {
				s.t.Error(err)
			}
		}
	}
}

// TestFoldLinkedMeanwhile gives the files another name while a fold is at work: they must not become other points under that.
func TestFoldLinkedMeanwhile(t *testing.T) {
	for _, intoChild := range []bool{true, false} {
		s, i := foldScene(t, intoChild)
		j, err := s.newFold(s.points[i], FoldOptions{})
		if err != nil {
			t.Fatal(err)
		}
		j.step = func(reached string) error {
			if reached == crashpoint.FoldBegun {
				s.link()
			}
			return nil
		}
		err = j.run(t.Context())
		switch {
		case j.pending != nil: // a copy that shares extents
			s.forget(i)
		case err == nil || !strings.Contains(err.Error(), "another name"):
			t.Errorf("into child: %v: %v", intoChild, err)
		}
		s.recover()
		s.checkPoints()
		s.checkStates()
		if j.pending == nil {
			s.fold(i) // now on a copy
			s.checkPoints()
			s.checkStates()
		}
	}
}
