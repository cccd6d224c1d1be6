package e2e

import (
	"slices"
	"strconv"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

// pruneSome removes points: all but the last ones, and now and then but for one that is pinned too.
func (h *history) pruneSome(t *testing.T) {
	keep := 1 + h.rng.IntN(max(1, len(h.points)-1))
	kept := slices.Clone(h.points[len(h.points)-keep:])
	if older := h.points[:len(h.points)-keep]; len(older) > 0 && h.chance(2) {
		pinned := pick(h.rng, older...)
		h.pin(t, "pin", pinned)
		defer h.pin(t, "unpin", pinned)
		kept = append([]status.Point{pinned}, kept...)
	}
	r := h.disk.prune(t, 0, "--keep-last", strconv.Itoa(keep)).Images[0]
	t.Logf("prune %d points to %d: removed %d, written %d, freed %d bytes", len(h.points), len(kept), r.Removed, r.Written, r.Freed)
	h.wantPoints(t, kept...)
	h.points = list(t, h.dir)[0].Points // some have another parent now
}

func (h *history) pin(t *testing.T, command string, p status.Point) {
	if r := program.Run(t, command, h.dir, h.folder(p.Point)); r.Code != 0 {
		t.Errorf("%s: exit status %d\n%s", command, r.Code, r.Stderr)
	}
}
