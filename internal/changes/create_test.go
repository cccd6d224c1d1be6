package changes_test

import (
	"fmt"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbdtest"
)

// create makes an image of some layout with some content.
func (h *history) create() (err error) {
	l := &h.layout
	l.Features = rbdtest.AllFeatures
	l.Order = pick(h.rng, 12, 12, 13, 14, 16, 16, 16, 18)
	if h.chance(60) {
		l.Order = 22
	}
	l.Size = int64(8+h.rng.IntN(33)) << l.Order
	if l.Order > 16 {
		l.Size = int64(1+h.rng.IntN(8)) << l.Order
	}
	if h.chance(6) {
		l.Size -= h.rng.Int64N(l.Size / 2)
	}
	if h.chance(6) {
		l.StripeUnit, l.StripeCount = 1<<(l.Order-h.rng.IntN(3)), 1+h.rng.Int64N(4)
		l.Features |= rbdtest.StripingV2
	}
	if h.dataPool != "" && h.chance(8) {
		l.DataPool = h.dataPool
		l.Features |= rbdtest.WithDataPool
	}
	if h.chance(5) {
		l.Features &^= rbdtest.DeepFlatten
	}
	l.Config = map[string]string{}
	if h.chance(2) {
		l.Config["rbd_skip_partial_discard"], l.Config["rbd_discard_granularity_bytes"] = "false", "4096"
	}
	if h.chance(2) {
		l.Config["rbd_concurrent_management_ops"] = "1"
	}
	name := fmt.Sprintf("fuzz-%d", h.seed)
	h.note("create %+v", *l)
	if h.profile.clone {
		if err := h.createParent(name + "-parent"); err != nil {
			return err
		}
		h.img, err = h.admin.Clone(h.parent.Name, "p", name, *l)
	} else {
		h.img, err = h.admin.Create(name, *l)
	}
	if err != nil {
		return err
	}
	if h.profile.group {
		if h.group, err = h.img.Group(name + "-group"); err != nil {
			return err
		}
	}
	for range h.rng.IntN(12) {
		h.operation("write", h.write)
	}
	return nil
}

func (h *history) createParent(name string) (err error) {
	l := rbdtest.Layout{Size: h.layout.Size, Order: h.layout.Order, Features: rbdtest.AllFeatures}
	if h.parent, err = h.admin.Create(name, l); err != nil {
		return err
	}
	for range 1 + h.rng.IntN(6) {
		off, n := h.span(h.parent)
		if _, err := h.parent.WriteAt(h.noise(n), off); err != nil {
			return err
		}
	}
	return h.parent.MakeSnapshot("p")
}
