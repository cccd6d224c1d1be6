package changes_test

import (
	"slices"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbdtest"
)

// span picks a range of the image, aligned or not, often short or up to the end.
func (h *history) span(img *rbdtest.Image) (off, length int64) {
	size, err := img.Bytes()
	if err != nil || size == 0 {
		return 0, 0
	}
	object := int64(1) << h.layout.Order
	align := pick(h.rng, 1, 512, 4096, object, object)
	off = h.rng.Int64N(size) / align * align
	length = min(align*(1+h.rng.Int64N(4)), size-off)
	if h.chance(8) {
		off = size - length
	}
	return off, length
}

// noise gives random bytes, rarely the same or none at all.
func (h *history) noise(n int64) []byte {
	p := make([]byte, n)
	fill := pick(h.rng, 0, 1, 2, 2, 2)
	for i := range p {
		switch fill {
		case 1:
			p[i] = 7
		case 2:
			p[i] = byte(h.rng.Uint32())
		}
	}
	return p
}

func (h *history) write() error {
	off, n := h.span(h.img)
	if n == 0 {
		return nil
	}
	h.note("write %d+%d", off, n)
	if n%512 == 0 && h.chance(6) {
		return h.img.Same(off, n/512, h.noise(512))
	}
	_, err := h.img.WriteAt(h.noise(n), off)
	return err
}

func (h *history) zero() error {
	off, n := h.span(h.img)
	h.note("zero %d+%d", off, n)
	return h.img.Zero(off, n)
}

func (h *history) discard() error {
	off, n := h.span(h.img)
	if n == 0 {
		return nil
	}
	h.note("discard %d+%d", off, n)
	return h.img.Trim(off, n)
}

// resize makes the image smaller or larger, or smaller and then as large as before.
func (h *history) resize() error {
	size, err := h.img.Bytes()
	if err != nil {
		return err
	}
	align := pick(h.rng, 1, 512, int64(1)<<h.layout.Order)
	to := max(1, h.rng.Int64N(2*h.layout.Size/align)*align)
	if h.chance(3) {
		to = h.layout.Size
	}
	h.note("resize %d to %d", size, to)
	if err := h.img.Resize(uint64(to)); err != nil || to > size || h.chance(2) {
		return err
	}
	if h.chance(2) {
		h.operation("snapshot", h.snapshot)
	}
	h.note("resize to %d again", size)
	return h.img.Resize(uint64(size))
}

func (h *history) snapshot() error {
	name := h.name("admin")
	h.note("snapshot %s", name)
	return h.img.MakeSnapshot(name)
}

// others gives the names of snapshots, without ours unless told.
func (h *history) others(ours bool) []string {
	names, err := h.img.Snapshots()
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(names, func(name string) bool { return !ours && name[0] == 'o' })
}

func (h *history) removeSnapshot() error {
	names := h.others(false)
	if len(names) == 0 {
		return nil
	}
	name := pick(h.rng, names...)
	h.note("remove %s", name)
	return h.img.RemoveSnapshot(name)
}

func (h *history) rollback() error {
	names := h.others(true)
	if len(names) == 0 {
		return nil
	}
	name := pick(h.rng, names...)
	h.note("roll back to %s", name)
	return h.img.Rollback(name)
}

func (h *history) flatten() error {
	h.note("flatten")
	return h.img.Flatten()
}

func (h *history) sparsify() error {
	h.note("sparsify")
	return h.img.Sparsify()
}

// tracking switches what tracks changes off, or on.
func (h *history) tracking() error {
	tracked, fast, err := h.img.Tracked()
	if err != nil {
		return err
	}
	if tracked && h.chance(3) {
		h.note("fast-diff %t", !fast)
		return h.img.SetFastDiff(!fast)
	}
	h.note("object-map %t", !tracked)
	if err := h.img.SetTracking(!tracked); err != nil || tracked || h.chance(3) {
		return err
	}
	return h.rebuild()
}

// rebuild rebuilds the maps of the head, of snapshots, or of all.
func (h *history) rebuild() error {
	if tracked, _, err := h.img.Tracked(); err != nil || !tracked {
		return err
	}
	if err := h.img.Reopen(); err != nil { // the rbd program asks for the lock
		return err
	}
	what := h.rng.IntN(4)
	for _, name := range h.others(true) {
		if what == 0 || what == 1 && h.chance(2) {
			h.note("rebuild %s", name)
			if err := h.img.Rebuild(name); err != nil {
				return err
			}
		}
	}
	if what == 1 && h.chance(2) {
		return nil
	}
	h.note("rebuild head")
	return h.img.Rebuild("")
}

// groupSnapshot makes a snapshot of the group, rolls back to it, or removes it.
func (h *history) groupSnapshot() error {
	names, err := h.group.Snapshots()
	if err != nil {
		return err
	}
	if len(names) == 0 || h.chance(3) {
		name := h.name("group")
		h.note("group snapshot %s", name)
		return h.group.Snapshot(name)
	}
	name := pick(h.rng, names...)
	if h.chance(2) {
		h.note("remove group snapshot %s", name)
		return h.group.RemoveSnapshot(name)
	}
	h.note("roll back to group snapshot %s", name)
	return h.group.Rollback(name)
}

// cloneSnapshot clones a snapshot, and mostly removes that, which leaves it in the trash; or it removes a clone, and what is in
// the trash with it.
func (h *history) cloneSnapshot() error {
	if len(h.clones) > 0 && h.chance(2) {
		name := h.clones[0]
		h.note("remove clone %s", name)
		h.clones = h.clones[1:]
		return h.admin.Remove(name)
	}
	names := h.others(false)
	if len(names) == 0 {
		return nil
	}
	snapshot, name := pick(h.rng, names...), h.name(h.img.Name+"-clone")
	h.note("clone %s, %s", snapshot, name)
	clone, err := h.admin.Clone(h.img.Name, snapshot, name, rbdtest.Layout{})
	if err != nil {
		return err
	}
	h.clones = append(h.clones, name)
	if err := clone.Close(); err != nil || h.chance(3) {
		return err
	}
	h.note("remove %s into the trash", snapshot)
	return h.img.RemoveSnapshot(snapshot)
}
