package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

// inPlaceReport is what a restore in place prints with --json.
type inPlaceReport struct {
	Method   string `json:"method"`
	Reason   string `json:"reason"`
	Snapshot string `json:"safety_snapshot"`
	Read     int64  `json:"read_bytes"`
	Written  int64  `json:"written_bytes"`
	Zeroed   int64  `json:"zeroed_bytes"`
}

// restoreInPlace brings the image itself back to a point.
func (d *disk) restoreInPlace(t *testing.T, point repo.PointName, more ...string) (r inPlaceReport) {
	t.Helper()
	result := d.restore(t, point, d.target(d.image), append(more, "--in-place", "--json")...)
	must(t, json.Unmarshal([]byte(result.Stdout), &r))
	return r
}

// restoreInPlace undoes what has happened to the image since a point.
func (h *history) restoreInPlace(t *testing.T) {
	if len(h.points) == 0 {
		return
	}
	p := h.points[len(h.points)-1]
	if h.chance(2) {
		p = pick(h.rng, h.points...)
	}
	r := h.undo(t, p)
	switch {
	case !slices.Contains(h.newestChain(), p):
		h.wantMethod(t, r, "compare", "not in the newest point's chain")
	case r.Method == "compare": // an object map was switched off, or on and rebuilt
		h.wantMethod(t, r, "compare", "was read by")
	default:
		h.wantMethod(t, r, "diff", "since the newest point's snapshot")
	}
}

// undo restores a point in place, and compares the image with the truth about it.
func (h *history) undo(t *testing.T, p status.Point) inPlaceReport {
	options := []string{"--parallel", strconv.Itoa(1 + h.rng.IntN(8))}
	safe, look := !h.chance(3), h.chance(3)
	if !safe {
		options = append(options, "--no-safety-snapshot")
	}
	var before content
	if look {
		before = h.contentAt(t, "")
	}
	r := h.disk.restoreInPlace(t, p.Point, options...)
	t.Logf("restore %s in place %v: %+v", p.Point, options, r)
	h.wantImage(t, h.image, h.truth[p.File])
	h.size = h.truth[p.File].size

	if !safe {
		if r.Snapshot != "" {
			t.Errorf("there is a safety snapshot: %s", r.Snapshot)
		}
		return r
	}
	_, name, _ := strings.Cut(r.Snapshot, "@")
	if look && h.contentAt(t, name) != before {
		t.Errorf("snapshot %s is not what the image was", name)
	}
	h.endSafetySnapshot(t, name)
	return r
}

// endSafetySnapshot removes a safety snapshot, or makes it one to which the image may be rolled back later.
func (h *history) endSafetySnapshot(t *testing.T, name string) {
	if h.chance(2) {
		h.pool.RemoveSnapshot(t, h.image+"@"+name)
		return
	}
	h.made++
	kept := fmt.Sprintf("s%d", h.made)
	h.pool.RBD(t, "snap", "rename", h.pool.Spec(h.image+"@"+name), h.pool.Spec(h.image+"@"+kept))
	h.snapshots = append(h.snapshots, kept)
}

// undoOften goes to and fro between points, with and without changes in between, and backs up what came out.
func (h *history) undoOften(t *testing.T) {
	for range 2 + h.rng.IntN(2) {
		if h.chance(2) {
			h.change(t)
		}
		h.restoreInPlace(t)
	}
	h.backUp(t)
}

// undoWithoutSnapshot restores a point when the newest one's snapshot is gone.
func (h *history) undoWithoutSnapshot(t *testing.T) {
	chain := h.newestChain()
	h.pool.RemoveSnapshot(t, h.image+"@"+h.points[len(h.points)-1].Snapshot)
	h.io(t)
	h.wantMethod(t, h.undo(t, pick(h.rng, chain...)), "compare", "snapshot is gone")
}

// newestChain are the points that the newest one lies on, and itself.
func (h *history) newestChain() []status.Point {
	first := len(h.points) - 1
	for h.points[first].Parent != nil {
		first--
	}
	return h.points[first:]
}

func (h *history) wantMethod(t *testing.T, r inPlaceReport, method, reason string) {
	t.Helper()
	if r.Method != method || !strings.Contains(r.Reason, reason) {
		t.Errorf("restored by %s, because %q: want %s, %q", r.Method, r.Reason, method, reason)
	}
}
