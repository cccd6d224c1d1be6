package repo

import (
	"errors"
	"os"
	"strings"
	"testing"
)

func TestRemoveLeaf(t *testing.T) {
	s := newScene(t, 3)
	old := s.points
	s.points = nil
	s.writes = 4
	full := *s.Point(old[2]).Identity
	full.Parent, full.Point, full.Generation = nil, NextPointName(full.Created, old[2]), 0
	s.write(full.Point, &full, s.states[old[2]])
	s.points = append(old, full.Point)
	s.states[full.Point] = s.states[old[2]]

	for name, c := range map[string]struct {
		point PointName
		want  string
	}{
		"newest": {full.Point, "newest"}, "parent": {old[1], "lies on it"}, "missing": {"20200101T000000Z", "there is no"},
	} {
		if _, err := s.RemoveLeaf(c.point); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.Pin(t.Context(), old[2], "before the upgrade"); err != nil {
		t.Fatal(err)
	}
	var pinned *PinnedError
	if _, err := s.RemoveLeaf(old[2]); !errors.As(err, &pinned) || pinned.Comment != "before the upgrade" {
		t.Errorf("pinned: %v", err)
	}
	if _, err := s.Unpin(t.Context(), old[2]); err != nil {
		t.Fatal(err)
	}
	chain, err := s.OpenChain(s.t.Context(), old[2])
	if err != nil {
		t.Fatal(err)
	}
	var inUse *InUseError
	if _, err := s.RemoveLeaf(old[2]); !errors.As(err, &inUse) {
		t.Errorf("in use: %v", err)
	}
	_ = chain.Close()
	freed, err := s.RemoveLeaf(old[2])
	if err != nil || freed == 0 {
		t.Errorf("freed %d, %v", freed, err)
	}
	s.forget(2)
	s.checkPoints()
	s.checkStates()

	// What can't be read may lie on anything.
	if err := errors.Join(os.Chmod(s.Path(full.Point), 0o640), os.Truncate(s.Path(full.Point), 60)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.RemoveLeaf(old[1]); err == nil || !strings.Contains(err.Error(), "may lie on it") {
		t.Errorf("below a damaged point: %v", err)
	}
}

func TestPins(t *testing.T) {
	s := newScene(t, 3)
	if pins, err := s.Pins(); err != nil || len(pins) != 0 {
		t.Errorf("pins %v, %v", pins, err)
	}
	if err := s.Pin(t.Context(), "20200101T000000Z", ""); err == nil {
		t.Error("pinned what is not there")
	}
	lock := mustLock(t, s.Folder) // a backup is no obstacle
	for _, i := range []int{2, 0} {
		if err := s.Pin(t.Context(), s.points[i], "one"); err != nil {
			t.Fatal(err)
		}
	}
	_ = lock.Unlock()
	if err := s.Pin(t.Context(), s.points[2], "another"); err != nil {
		t.Fatal(err)
	}
	pins, err := s.Pins()
	if err != nil || len(pins) != 2 || pins[0].Point != s.points[0] || pins[1].Comment != "another" || pins[1].Time.IsZero() {
		t.Errorf("pins %v, %v", pins, err)
	}
	for _, want := range []bool{true, false} {
		if was, err := s.Unpin(t.Context(), s.points[0]); err != nil || was != want {
			t.Errorf("unpin: %v, %v", was, err)
		}
	}
	if pins, err := s.Pins(); err != nil || len(pins) != 1 {
		t.Errorf("pins %v, %v", pins, err)
	}
	if err := os.WriteFile(s.StatePath("pins.json"), []byte("{"), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pins(); err == nil {
		t.Error("read damaged pins")
	}
	if _, err := s.RemoveLeaf(s.points[0]); err == nil {
		t.Error("removed a point though the pins can't be read")
	}
}
