package e2e

import (
	"fmt"
	"slices"
	"testing"
)

// change does to the image what a guest and an administrator may do between two backups.
func (h *history) change(t *testing.T) {
	if len(h.points) == 0 || !h.chance(8) { // now and then nothing changes at all
		h.io(t)
	}
	for range h.rng.IntN(3) {
		switch h.rng.IntN(14) {
		case 0, 1, 2:
			h.io(t)
		case 3, 4:
			h.resize(t, h.randomSize())
		case 5:
			h.shrinkAndGrow(t)
		case 6, 7:
			h.makeSnapshot(t)
		case 8:
			h.dropSnapshot(t)
		case 9, 10:
			h.rollback(t)
		case 11:
			h.maintain(t)
		case 12, 13:
			h.restoreInPlace(t)
		}
	}
}

// io runs some commands of a guest.
func (h *history) io(t *testing.T) {
	if h.size == 0 {
		return
	}
	commands := make([]string, 1+h.rng.IntN(8))
	for i := range commands {
		commands[i] = h.command()
	}
	t.Logf("qemu-io %q", commands)
	h.pool.IO(t, h.image, commands...)
	if h.size%512 != 0 { // QEMU grows an image to whose last sector it writes beyond the end
		h.size = h.pool.Info(t, h.image).Size
	}
}

func (h *history) command() string {
	switch h.rng.IntN(12) {
	case 0, 1, 2:
		off, n := h.span(noiseSize)
		return fmt.Sprintf("write -s %s %d %d", h.noise, off, n)
	case 3, 4, 5:
		off, n := h.span(noiseSize)
		return fmt.Sprintf("write -P %d %d %d", 1+h.rng.IntN(255), off, n)
	case 6:
		off, n := h.span(noiseSize)
		return fmt.Sprintf("write -P 0 %d %d", off, n)
	case 7, 8:
		off, n := h.span(2 * h.unit)
		return fmt.Sprintf("write -z %d %d", off, n)
	case 9:
		off, n := h.span(noiseSize)
		if n = min(n, h.size-off); n <= 0 { // beyond the end nothing can be discarded
			return h.command()
		}
		return fmt.Sprintf("discard %d %d", off, n)
	}
	if h.size < 2*h.unit && !h.chance(4) {
		return h.command() // little would be left
	}
	// Whole objects, and the rest of the last one.
	off := h.rng.Int64N(h.size) / h.unit * h.unit
	n := min(h.unit*(1+h.rng.Int64N(4)), h.size-off)
	return fmt.Sprintf("discard %d %d", off, n)
}

// span picks a range of at most n bytes, aligned or not, often up to the end.
func (h *history) span(n int64) (off, length int64) {
	align := pick(h.rng, 1, 512, 4096, 64<<10, h.unit)
	end := h.size
	if h.chance(8) {
		end = (end + 511) / 512 * 512 // the guest sees whole sectors
	}
	off = h.rng.Int64N(end) / align * align
	length = min(n, align*(1+h.rng.Int64N(16)), end-off)
	if h.chance(6) {
		off = end - length
	}
	return off, length
}

// randomSize picks a size: of whole objects, whole clusters, whole sectors, or of any number of bytes.
func (h *history) randomSize() int64 {
	largest := pick[int64](h.rng, 1<<20, 8<<20, maxSize)
	align := pick(h.rng, 1, 512, 64<<10, min(h.unit, largest))
	if h.chance(12) {
		return 1000001
	}
	return (1 + h.rng.Int64N(largest/align)) * align
}

func (h *history) resize(t *testing.T, size int64) {
	if size == h.size {
		return // rbd refuses
	}
	t.Logf("resize %d -> %d", h.size, size)
	h.pool.Resize(t, h.image, size)
	h.size = size
}

// shrinkAndGrow makes a part of the image empty in a way that leaves little trace: the size is the same as before, or not.
func (h *history) shrinkAndGrow(t *testing.T) {
	before := h.size
	h.resize(t, h.rng.Int64N(before+1))
	if h.chance(2) {
		h.makeSnapshot(t)
	}
	if h.chance(2) {
		h.io(t)
	}
	h.resize(t, pick(h.rng, before, h.size+h.rng.Int64N(maxSize-h.size+1)))
	if h.chance(2) {
		h.io(t)
	}
}

func (h *history) makeSnapshot(t *testing.T) {
	h.made++
	name := fmt.Sprintf("s%d", h.made)
	t.Logf("make snapshot %s", name)
	h.pool.CreateSnapshot(t, h.image+"@"+name)
	h.snapshots = append(h.snapshots, name)
}

func (h *history) dropSnapshot(t *testing.T) {
	if len(h.snapshots) == 0 {
		return
	}
	i := h.rng.IntN(len(h.snapshots))
	t.Logf("remove snapshot %s", h.snapshots[i])
	h.pool.RemoveSnapshot(t, h.image+"@"+h.snapshots[i])
	h.snapshots = slices.Delete(h.snapshots, i, i+1)
}

// rollback goes back to a snapshot of the administrator or to the one that the newest point was read from.
func (h *history) rollback(t *testing.T) {
	choices := slices.Clone(h.snapshots)
	if len(h.points) > 0 {
		choices = append(choices, h.points[len(h.points)-1].Snapshot)
	}
	if len(choices) == 0 {
		return
	}
	name := pick(h.rng, choices...)
	t.Logf("roll back to %s", name)
	h.pool.Rollback(t, h.image+"@"+name)
	h.size = h.pool.Info(t, h.image).Size
}

// maintain does what changes no byte that the guest sees.
func (h *history) maintain(t *testing.T) {
	spec := h.pool.Spec(h.image)
	features := h.pool.Info(t, h.image).Features
	switch {
	case h.clone:
		t.Log("flatten")
		h.pool.Flatten(t, h.image)
		h.clone = false
	case h.chance(3):
		t.Log("sparsify")
		h.pool.RBD(t, "sparsify", "--no-progress", spec)
	case slices.Contains(features, "object-map"):
		t.Log("disable object map")
		h.pool.RBD(t, "feature", "disable", spec, "object-map", "fast-diff")
	case slices.Contains(features, "exclusive-lock"):
		t.Log("enable object map")
		h.pool.RBD(t, "feature", "enable", spec, "object-map", "fast-diff")
		if h.chance(2) {
			t.Log("rebuild object map")
			h.pool.RBD(t, "object-map", "rebuild", "--no-progress", spec)
		}
	}
}
