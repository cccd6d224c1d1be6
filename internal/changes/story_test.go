package changes_test

import (
	"bytes"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/changes"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbdtest"
)

const (
	objectSize = 64 << 10
	objects    = 16
)

// story is an image whose history a test tells.
type story struct {
	*testing.T
	*rbdtest.Image
	admin  *rbdtest.Pool
	pool   *rbd.Pool
	points map[string]*point
}

// tell makes an image, of 16 objects unless told, that begins with 16 objects full of ones.
func tell(t *testing.T, l rbdtest.Layout) *story {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	admin := rbdtest.Connect(t, tp)
	if l.Size == 0 {
		l.Size, l.Order = objects*objectSize, 16
	}
	if l.Features == 0 {
		l.Features = rbdtest.AllFeatures
	}
	img, err := admin.Create("vm", l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := img.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &story{T: t, Image: img, admin: admin, pool: connect(t, tp), points: map[string]*point{}}
	s.fill(1, 0, objects)
	return s
}

func (s *story) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// fill fills objects with one byte.
func (s *story) fill(value byte, first, n int64) {
	s.Helper()
	_, err := s.WriteAt(bytes.Repeat([]byte{value}, int(n*objectSize)), first*objectSize)
	s.must(err)
}

// backUp makes a snapshot and remembers what a backup would.
func (s *story) backUp(name string) {
	s.Helper()
	seq, err := s.SnapSeq()
	s.must(err)
	s.must(s.MakeSnapshot(name))
	s.remember(name, seq)
}

// remember records of a snapshot what a backup would have recorded.
func (s *story) remember(name string, seq uint64) {
	s.Helper()
	img := s.open(name)
	defer img.Close()
	p, err := describe(s.Context(), img, name, nil, seq)
	s.must(err)
	p.content = s.content(name)
	_, found, err := find(s.Context(), img, changes.Options{Snapshot: p.snapshot.ID, SnapSeq: p.snapSeq})
	s.must(err)
	p.found(found)
	s.points[name] = p
}

func (s *story) open(name string) *rbd.Image {
	s.Helper()
	img, err := s.pool.OpenAt(s.Context(), s.ID, name)
	s.must(err)
	return img
}

func (s *story) content(name string) []byte {
	s.Helper()
	at, err := s.At(name)
	s.must(err)
	defer at.Close()
	content, err := at.Content()
	s.must(err)
	return content
}

// wantRight checks that Find misses nothing between two snapshots, in no mode, and gives what the default one says.
func (s *story) wantRight(from, to string) changes.Result {
	s.Helper()
	base, p := s.points[from], s.points[to]
	img := s.open(to)
	defer img.Close()
	o := changes.Options{
		Base:     base.base(),
		Snapshot: p.snapshot.ID, SnapSeq: p.snapSeq, SpotChecks: -1,
	}
	extents, result, err := find(s.Context(), img, o)
	s.must(err)
	if result.Unprovable {
		s.Logf("%s to %s: %s", from, to, result.Reason)
		return result
	}
	if at := missed(base, p, extents); at >= 0 {
		s.Errorf("%s (%s) missed byte %d between %s and %s: %v", result.Method, result.Reason, at, from, to, extents)
	}
	o.Mode = changes.Precise
	extents, _, err = find(s.Context(), img, o)
	s.must(err)
	if at := missed(base, p, extents); at >= 0 {
		s.Errorf("precise missed byte %d between %s and %s: %v", at, from, to, extents)
	}
	s.Logf("%s to %s: %s, %s", from, to, result.Method, result.Reason)
	return result
}

// logFastDiff tells whether librbd's fast-diff is as wrong as on the release that the test was written for.
func (s *story) logFastDiff(from, to string) {
	s.Helper()
	at, err := s.At(to)
	s.must(err)
	defer at.Close()
	fast, err := at.FastDiff(from)
	s.must(err)
	var extents []rbd.Extent
	for _, e := range fast {
		extents = append(extents, rbd.Extent(e))
	}
	if missed(s.points[from], s.points[to], extents) < 0 {
		s.Logf("librbd's fast-diff is right between %s and %s: fixed in this release", from, to)
	} else {
		s.Logf("librbd's fast-diff is wrong between %s and %s", from, to)
	}
}
