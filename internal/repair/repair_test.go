package repair

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// damages are kinds of damage, what they need to be mended, and what is left.
var damages = []struct {
	name   string
	point  int
	change func(b []byte, h *qcow2.Header)
	alone  bool  // it is mended without the snapshot, too
	wrong  []int // points that stay damaged; the newest one reads right all the same
}{
	{"data of the newest", 2, rot(place(2, 5)), false, nil},
	{"data that nobody has changed since", 0, rot(place(0, 5)), false, nil},
	{"data that the next point has changed", 0, rot(place(0, 0)), false, []int{0}},
	{"data of a middle one", 1, rot(place(1, 7)), false, nil},
	{"an L2 entry", 0, func(b []byte, h *qcow2.Header) { b[entryAt(b, h, place(0, 5))+1] ^= 0x40 }, false, nil},
	{"an L2 entry that goes", 2, func(b []byte, h *qcow2.Header) { clear(b[entryAt(b, h, place(2, 5)):][:8]) }, false, nil},
	{"an L2 entry that goes below", 1, func(b []byte, h *qcow2.Header) {
		clear(b[entryAt(b, h, place(1, 5)):][:8])
	}, false, []int{1}},
	{"an L1 entry", 2, func(b []byte, h *qcow2.Header) { b[h.L1Offset+1] ^= 0x40 }, false, nil},
	{"an L1 entry below", 1, func(b []byte, h *qcow2.Header) { b[h.L1Offset+1] ^= 0x40 }, false, []int{1}},
	{"a COPIED flag", 1, func(b []byte, h *qcow2.Header) { b[entryAt(b, h, place(1, 5))] ^= 0x80 }, true, nil},
	{"a refcount", 1, func(b []byte, h *qcow2.Header) {
		b[h.RefTableOffset+int64(h.RefTableClusters)*sceneCluster+5] ^= 1
	}, true, nil},
	{"the refcount table", 0, func(b []byte, h *qcow2.Header) { b[h.RefTableOffset+6] ^= 0x40 }, true, nil},
	{"a digest block", 1, func(b []byte, h *qcow2.Header) {
		b[h.Record.DirectoryOffset+h.Record.DirectoryLength+30] ^= 1
	}, true, nil},
	{"the digest directory", 2, func(b []byte, h *qcow2.Header) { b[h.Record.DirectoryOffset+3] ^= 1 }, false, nil},
	{"the digest directory below", 1, func(b []byte, h *qcow2.Header) { b[h.Record.DirectoryOffset+3] ^= 1 }, false, []int{1}},
}

// TestRepair mends each kind of damage, with the snapshot and without, in plain and in compressed files.
func TestRepair(t *testing.T) {
	for compression, codec := range map[string]qcow2.Codec{"none": nil, "zlib": qcow2.ZlibCodec(), "zstd:1": qcow2.ZstdCodec(1)} {
		for _, d := range damages {
			if d.name == "a COPIED flag" && codec != nil {
				continue // compressed clusters have none
			}
			t.Run(compression+"/"+strings.ReplaceAll(d.name, " ", "-"), func(t *testing.T) {
				s := newScene(t, compression, codec)
				s.edit(d.point, d.change)
				if report := s.repair(false); (report.Left() == 0) != d.alone || len(report.Damages) == 0 {
					t.Errorf("without the snapshot: %+v", report)
				}
				report := s.repair(true)
				if (report.Left() == 0) != (d.wrong == nil) {
					t.Errorf("report %+v", report)
				}
				s.checkMended(d.wrong)
				if again := s.repair(true); again.Left() != report.Left() || len(again.Replaced) > 0 {
					t.Errorf("again: %+v", again)
				}
			})
		}
	}
}

// checkMended compares all points with what they have to read as, but for some that are wrong; the newest one reads right in
// any case.
func (s *scene) checkMended(wrong []int) {
	s.t.Helper()
	isWrong := map[int]bool{}
	for _, i := range wrong {
		isWrong[i] = true
	}
	points, err := s.Points()
	s.must(err)
	noted := s.Verified(points)
	for i, p := range points {
		if p.State != repo.Good {
			s.t.Errorf("point %d is %s: %v", i, p.State, p.Err)
		}
		if bad := noted[p.Name].Verdict.Bad(); bad != isWrong[i] {
			s.t.Errorf("point %d is noted as %q", i, noted[p.Name].Verdict)
		}
		if isWrong[i] {
			continue
		}
		if got, err := s.read(i); err != nil || !bytes.Equal(got, s.states[i]) {
			s.t.Errorf("point %d does not read as it did: %v", i, err)
		}
		if chain, err := s.OpenChain(s.t.Context(), p.Name); err != nil {
			s.t.Error(err)
		} else if err := errors.Join(chain.Refuse(), chain.Close()); (err != nil) != (len(wrong) > 0 && i > wrong[0] && i < 2) {
			s.t.Errorf("chain of point %d is refused: %v", i, err)
		}
		qemutest.Check(s.t, p.Path())
	}
	if left, err := filepath.Glob(filepath.Join(s.Dir, ".rbd2qcow2-tmp-*")); err != nil || len(left) > 0 {
		s.t.Errorf("left: %v, %v", left, err)
	}
}

// TestRepairSource makes the newest point read as its snapshot where it was wrong from the beginning.
func TestRepairSource(t *testing.T) {
	s := newScene(t, "none", nil)
	state := s.states[2]
	state[sceneSize-1] ^= 1   // that nobody has
	state[place(1, 5)] ^= 1   // that the point below has
	state[place(2, 5)+7] ^= 1 // that it has itself
	clear(state[place(0, 9):][:sceneCluster])
	if report := s.repair(true); len(report.Damages) == 0 || report.Left() != 0 || len(report.Replaced) != 1 {
		t.Errorf("report %+v", report)
	}
	s.checkMended(nil)
}

// TestRepairGood leaves good files alone.
func TestRepairGood(t *testing.T) {
	s := newScene(t, "none", nil)
	if report := s.repair(true); len(report.Damages)+len(report.Replaced) > 0 || report.Points != 3 {
		t.Errorf("report %+v", report)
	}
}

// TestRepairLinked leaves a file's other name what it was.
func TestRepairLinked(t *testing.T) {
	s := newScene(t, "none", nil)
	s.edit(0, rot(place(0, 5)))
	other := filepath.Join(t.TempDir(), "other")
	s.must(os.Link(s.Path(s.points[0]), other))
	before, err := os.ReadFile(other)
	s.must(err)
	s.repair(true)
	s.checkMended(nil)
	if after, err := os.ReadFile(other); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the other name has changed: %v", err)
	}
}

// TestRepairHeader says that nobody can mend what is no point any more, and touches nothing.
func TestRepairHeader(t *testing.T) {
	for i := range 3 {
		s := newScene(t, "none", nil)
		s.edit(i, func(b []byte, _ *qcow2.Header) { b[5] ^= 1 })
		report := s.repair(true)
		if report.Left() != 1 || len(report.Replaced) > 0 || !strings.Contains(report.Damages[0].Reason, "full one") {
			t.Errorf("point %d: report %+v", i, report)
		}
	}
}
