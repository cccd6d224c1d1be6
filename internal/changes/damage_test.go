package changes_test

import (
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/changes"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbdtest"
)

// TestDamagedMap damages the object map of one of the two snapshots: Find has to notice, to tell, and to ask about all; or to
// give up where it is the one that the base was read by.
func TestDamagedMap(t *testing.T) {
	for _, damage := range []struct {
		name   string
		do     func(s *story, object string, raw []byte) error
		reason string // has to name
	}{
		{"removed", func(s *story, object string, _ []byte) error { return s.admin.RemoveObject(object) }, "not found"},
		{"empty", func(s *story, object string, _ []byte) error { return s.admin.WriteObject(object, nil) }, "damaged"},
		{"cut short", func(s *story, object string, raw []byte) error {
			return s.admin.WriteObject(object, raw[:len(raw)-1])
		}, "cut short"},
		{"without footer", func(s *story, object string, raw []byte) error {
			return s.admin.WriteObject(object, raw[:len(raw)-16])
		}, "cut short"},
		{"bit of an object", func(s *story, object string, raw []byte) error { return s.flip(object, raw, 18) }, "checksum"},
		{"bit of the length", func(s *story, object string, raw []byte) error { return s.flip(object, raw, 10) }, "damaged"},
		{"bit of the checksum", func(s *story, object string, raw []byte) error { return s.flip(object, raw, len(raw)-1) }, "checksum"},
		{"another image's", func(s *story, object string, _ []byte) error {
			other, err := s.admin.Create("small", rbdtest.Layout{Size: 4 * objectSize, Order: 16, Features: rbdtest.AllFeatures})
			if err != nil {
				return err
			}
			defer other.Close()
			if _, err := other.WriteAt([]byte{1}, 0); err != nil {
				return err
			}
			raw, err := s.admin.ReadObject(other.MapObject(0))
			if err != nil {
				return err
			}
			return s.admin.WriteObject(object, raw)
		}, "of 4 objects"},
	} {
		for _, which := range []string{"b", "n"} {
			t.Run(damage.name+" of "+which, func(t *testing.T) {
				s := tell(t, rbdtest.Layout{})
				s.backUp("b")
				s.fill(2, 5, 1)
				s.backUp("n")
				if r := s.wantRight("b", "n"); r.Method != changes.MethodNarrowed {
					t.Errorf("before it was damaged: %+v", r)
				}
				object := s.MapObject(s.points[which].snapshot.ID)
				raw, err := s.admin.ReadObject(object)
				s.must(err)
				s.must(damage.do(s, object, raw))
				r := s.wantRight("b", "n")
				if which == "b" {
					if !r.Unprovable || !strings.Contains(r.Reason, "was read by") {
						t.Errorf("%+v, want it to be unprovable", r)
					}
					return
				}
				// librbd may have noticed it, too, and set the flag.
				if r.Method != changes.MethodPrecise || !strings.Contains(r.Reason, damage.reason) && !strings.Contains(r.Reason, "invalid") {
					t.Errorf("%s, %q, want %s and %q or invalid", r.Method, r.Reason, changes.MethodPrecise, damage.reason)
				}
			})
		}
	}
}

// flip flips the lowest bit of one byte.
func (s *story) flip(object string, raw []byte, at int) error {
	raw[at] ^= 1
	return s.admin.WriteObject(object, raw)
}

// TestInvalidFlag lets librbd itself find out that a map is wrong, and call it invalid.
func TestInvalidFlag(t *testing.T) {
	for _, which := range []string{"b", "n"} {
		t.Run(which, func(t *testing.T) {
			s := tell(t, rbdtest.Layout{})
			s.backUp("b")
			s.must(s.Trim(8*objectSize, objectSize))
			s.backUp("n")
			// The map of the other one is of the same length, and its checksums are right.
			other := map[string]string{"b": "n", "n": "b"}[which]
			raw, err := s.admin.ReadObject(s.MapObject(s.points[other].snapshot.ID))
			s.must(err)
			s.must(s.admin.WriteObject(s.MapObject(s.points[which].snapshot.ID), raw))
			s.must(s.CheckMap(which))
			r := s.wantRight("b", "n")
			switch {
			case which == "b" && !r.Unprovable:
				t.Errorf("%+v, want it to be unprovable", r)
			case which == "n" && (r.Method != changes.MethodPrecise || !strings.Contains(r.Reason, "invalid")):
				t.Errorf("%s, %q, want %s and the flag", r.Method, r.Reason, changes.MethodPrecise)
			}
			s.must(s.Reopen())
			s.must(s.Rebuild(which))
			if r := s.wantRight("b", "n"); r.Method != changes.MethodNarrowed {
				t.Errorf("after rebuilding: %s, %q", r.Method, r.Reason)
			}
		})
	}
}

// TestEnabledLate enables the object map of an image with data: until they are rebuilt, all maps are invalid.
func TestEnabledLate(t *testing.T) {
	s := tell(t, rbdtest.Layout{})
	s.must(s.SetTracking(false))
	s.backUp("b")
	s.must(s.SetTracking(true))
	s.fill(2, 3, 1)
	s.backUp("n")
	if r := s.wantRight("b", "n"); r.Method != changes.MethodPrecise {
		t.Errorf("with invalid maps: %s, %q", r.Method, r.Reason)
	}
	s.must(s.Reopen())
	for _, name := range []string{"b", "n", ""} {
		s.must(s.Rebuild(name))
	}
	if r := s.wantRight("b", "n"); r.Method != changes.MethodNarrowed {
		t.Errorf("after rebuilding: %s, %q", r.Method, r.Reason)
	}
}
