package changes_test

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"slices"

	"github.com/rbd2qcow2/rbd2qcow2/internal/changes"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbdtest"
)

// judgeAll compares a point with all older ones whose snapshot is still there, and with nothing.
func (h *history) judgeAll(ctx context.Context, img *rbd.Image, raw *rbdtest.Snapshot, p *point) error {
	for _, base := range slices.Backward(h.points) {
		if base.gone {
			continue
		}
		if err := h.judge(ctx, img, raw, base, p); err != nil {
			return err
		}
	}
	if p.marks != nil && !h.chance(8) {
		return nil
	}
	extents, found, err := find(ctx, img, changes.Options{Snapshot: p.snapshot.ID, SnapSeq: p.snapSeq})
	if err != nil {
		return err
	}
	p.found(found)
	h.note("  in full: %s", found.Reason)
	nothing := &point{}
	if at := missed(nothing, p, extents); at >= 0 {
		h.fuzz.mu.Lock()
		defer h.fuzz.mu.Unlock()
		h.count.misses = append(h.count.misses, fmt.Sprintf("full missed byte %d of %s: RBD2QCOW2_SEED=%d (%s)\n%s\nreported %v\nmap %s",
			at, p.snapshot.Name, h.seed, h.profile.name, h, extents, states(ctx, img, p.snapshot.ID)))
	}
	return nil
}

// judge compares a pair by all methods.
func (h *history) judge(ctx context.Context, img *rbd.Image, raw *rbdtest.Snapshot, base, p *point) error {
	o := changes.Options{
		Base:     base.base(),
		Snapshot: p.snapshot.ID, SnapSeq: p.snapSeq,
		SpotChecks: -1, // which would hide on small images what the maps have not told
	}
	auto, found, err := find(ctx, img, o)
	if err != nil {
		return err
	}
	p.found(found)
	if found.Unprovable {
		h.note("  since %s: %s", base.snapshot.Name, found.Reason)
		h.fuzz.mu.Lock()
		defer h.fuzz.mu.Unlock()
		h.count.add(found, p.plainSince(base), false)
		return nil
	}
	precise := auto
	if found.Method != changes.MethodPrecise && (missed(base, p, auto) >= 0 || h.chance(3)) {
		o.Mode = changes.Precise
		if precise, _, err = find(ctx, img, o); err != nil {
			return err
		}
	}
	fast, err := raw.FastDiff(base.snapshot.Name)
	if err != nil {
		return err
	}
	var fastExtents []rbd.Extent
	for _, e := range fast {
		fastExtents = append(fastExtents, rbd.Extent(e))
	}
	h.note("  since %s: %s, %s", base.snapshot.Name, found.Method, found.Reason)
	h.fuzz.mu.Lock()
	h.count.add(found, p.plainSince(base), missed(base, p, fastExtents) >= 0)
	h.fuzz.mu.Unlock()
	if err := h.blame(ctx, img, base, p, "auto ("+found.Method+")", auto); err != nil {
		return err
	}
	return h.blame(ctx, img, base, p, "precise", precise)
}

// blame notes down a miss, if it is one.
func (h *history) blame(ctx context.Context, img *rbd.Image, base, p *point, method string, extents []rbd.Extent) error {
	at := missed(base, p, extents)
	if at < 0 {
		return nil
	}
	maps := fmt.Sprintf("maps %s and %s", states(ctx, img, base.snapshot.ID), states(ctx, img, p.snapshot.ID))
	h.fuzz.mu.Lock()
	defer h.fuzz.mu.Unlock()
	h.count.misses = append(h.count.misses, fmt.Sprintf("%s missed byte %d between %s and %s: RBD2QCOW2_SEED=%d (%s)\n%s\nreported %v\n%s",
		method, at, base.snapshot.Name, p.snapshot.Name, h.seed, h.profile.name, h, extents, maps))
	return nil
}

// states shows an object map, a digit for each object; see rbd.ObjectMap.
func states(ctx context.Context, img *rbd.Image, snapshot uint64) string {
	m, err := img.ObjectMap(ctx, snapshot)
	if err != nil {
		return err.Error()
	}
	digits := make([]byte, m.Objects)
	for i := range digits {
		digits[i] = '0' + byte(m.Words[i/rbd.ObjectsPerWord]>>(62-2*(i%rbd.ObjectsPerWord))&3)
	}
	return string(digits)
}

func (c *counters) add(found changes.Result, plain, fastMissed bool) {
	c.pairs++
	how := found.Method + ": " + general(found.Reason)
	if found.Unprovable {
		how = "a full point: " + general(found.Reason)
	}
	c.methods[how]++
	if fastMissed {
		c.fastDiffMissed++
		c.missedBesides[how]++
	}
	narrowed := found.Method == changes.MethodNarrowed
	if narrowed {
		c.asked += found.Asked
		c.objects += found.Objects
	}
	if plain {
		c.plain++
		if narrowed {
			c.plainNarrowed++
		}
	}
}

// general takes names and numbers out of a reason.
func general(reason string) string {
	reason = regexp.MustCompile(`\([^)]*\)|rbd_object_map\S*|\.group\S*`).ReplaceAllString(reason, "…")
	return regexp.MustCompile(`\d+`).ReplaceAllString(reason, "#")
}

// find collects what Find reports.
func find(ctx context.Context, img *rbd.Image, o changes.Options) (extents []rbd.Extent, r changes.Result, err error) {
	end := int64(0)
	r, err = changes.Find(ctx, img, o, func(e rbd.Extent) error {
		if e.Offset < end || e.Length <= 0 || e.Length > img.Size()-e.Offset {
			return fmt.Errorf("extent %+v after %d of %d bytes", e, end, img.Size())
		}
		end = e.Offset + e.Length
		extents = append(extents, e)
		return nil
	})
	return extents, r, err
}

// missed applies extents to the older content and gives the first byte that differs from the newer, or -1.
func missed(base, p *point, extents []rbd.Extent) int {
	older, newer := base.content, p.content
	got := make([]byte, len(newer))
	copy(got, older)
	for _, e := range extents {
		part := got[e.Offset : e.Offset+e.Length]
		if e.Exists {
			copy(part, newer[e.Offset:])
		} else {
			clear(part)
		}
	}
	return firstDifference(got, newer)
}

// firstDifference gives where two contents of one length differ first, or -1.
func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// plainSince tells whether a pair meets none of the obstacles to a narrowed diff that are there to be seen: other
// snapshots beside the base than the previous of ours, or made since; a resize; a flag; another parent.
func (p *point) plainSince(base *point) bool {
	if base.snapshot.Size != p.snapshot.Size || (base.parent == nil) != (p.parent == nil) ||
		base.parent != nil && *base.parent != *p.parent || !p.tracked {
		return false
	}
	if slices.ContainsFunc(base.others, func(id uint64) bool { return id != base.previous }) {
		return false
	}
	return !slices.ContainsFunc(p.after, func(s rbd.Snapshot) bool {
		return s.Flags != 0 || s.ID > base.snapshot.ID && s.ID != p.snapshot.ID
	}) && p.snapSeq == base.snapshot.ID
}
