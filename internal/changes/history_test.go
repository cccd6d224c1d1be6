package changes_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/changes"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbdtest"
)

// history is the life of an image.
type history struct {
	*fuzz
	profile profile
	rng     *rand.Rand
	seed    uint64
	img     *rbdtest.Image
	layout  rbdtest.Layout
	parent  *rbdtest.Image // of a clone
	group   *rbdtest.Group
	clones  []string // of snapshots of the image
	points  []*point // ours, oldest first
	made    int      // names given
	tidy    bool     // ours are removed in time, mostly

	mu  sync.Mutex
	log []string
}

// point is one snapshot of ours with what a backup of it would have recorded.
type point struct {
	snapshot rbd.Snapshot
	parent   *rbd.Parent
	others   []uint64
	previous uint64 // point's snapshot, if it was there still
	snapSeq  uint64 // the last snapshot's before ours
	marks    []changes.Marks
	quiet    bool
	existed  string         // what it was read by: changes.Result.Existence
	after    []rbd.Snapshot // when it was made
	tracked  bool           // by object-map and fast-diff
	content  []byte
	gone     bool
}

// base is what an increment on the point knows of it.
func (p *point) base() *changes.Base {
	return &changes.Base{Snapshot: p.snapshot, Parent: p.parent, Others: p.others, Marks: p.marks, Quiet: p.quiet,
		Existence: p.existed}
}

// found keeps what the search for the point has given the next one.
func (p *point) found(r changes.Result) {
	if p.marks == nil {
		p.marks = r.Marks
	}
	p.quiet = p.quiet || r.Quiet
	p.existed = cmp.Or(p.existed, r.Existence)
}

func (h *history) live(ctx context.Context) error {
	if err := h.create(); err != nil {
		return fmt.Errorf("create image: %w", err)
	}
	h.tidy = h.chance(2)
	for range 8 + h.rng.IntN(14) {
		for range h.rng.IntN(5) {
			h.operate()
		}
		if err := h.backUp(ctx); err != nil {
			return err
		}
	}
	return h.end()
}

func (h *history) note(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.log = append(h.log, fmt.Sprintf(format, args...))
}

// String tells the history.
func (h *history) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.log, "\n")
}

func (h *history) chance(n int) bool { return h.rng.IntN(n) == 0 }

func pick[T any](rng *rand.Rand, choices ...T) T { return choices[rng.IntN(len(choices))] }

func (h *history) name(kind string) string {
	h.made++
	return fmt.Sprintf("%s%d", kind, h.made)
}

// operate does something that a guest or an administrator may do.
func (h *history) operate() {
	weight := 0
	for _, o := range h.profile.operations {
		weight += o.weight
	}
	n := h.rng.IntN(weight)
	for _, o := range h.profile.operations {
		if n -= o.weight; n < 0 {
			h.operation(o.name, func() error { return o.do(h) })
			return
		}
	}
}

// operation does something that may fail, such as to remove a snapshot that was never made.
func (h *history) operation(name string, do func() error) {
	err := do()
	if err == nil {
		return
	}
	h.note("  %s: %v", name, err)
	h.fuzz.mu.Lock()
	defer h.fuzz.mu.Unlock()
	line, _, _ := strings.Cut(err.Error(), "\n")
	h.count.notMade[name+": "+general(line)]++
}

// backUp makes a snapshot of ours, and compares it with older ones.
func (h *history) backUp(ctx context.Context) error {
	before, err := h.img.SnapshotIDs()
	if err != nil {
		return err
	}
	seq, err := h.img.SnapSeq()
	if err != nil {
		return err
	}
	name := h.name("ours")
	if err := h.makeOurs(name); err != nil {
		return fmt.Errorf("make %s: %w", name, err)
	}
	img, err := h.pool.OpenAt(ctx, h.img.ID, name)
	if err != nil {
		return err
	}
	defer img.Close()
	raw, err := h.img.At(name)
	if err != nil {
		return err
	}
	defer raw.Close()
	p, err := describe(ctx, img, name, before, seq)
	if err != nil {
		return err
	}
	if p.content, err = raw.Content(); err != nil {
		return err
	}
	if n := len(h.points); n > 0 && !h.points[n-1].gone {
		p.previous = h.points[n-1].snapshot.ID
	}
	h.note("  %s is snapshot %d of %d bytes, others %v, previous %d", name, p.snapshot.ID, p.snapshot.Size, p.others, p.previous)
	if err := h.judgeAll(ctx, img, raw, p); err != nil {
		return fmt.Errorf("judge %s: %w", name, err)
	}
	h.points = append(h.points, p)
	h.dropOld()
	return nil
}

// makeOurs makes the snapshot, now and then while something else goes on.
func (h *history) makeOurs(name string) error {
	var first []string
	if len(h.profile.meanwhile) > 0 && h.chance(cmp.Or(h.profile.races, 10)) {
		first = pick(h.rng, h.profile.meanwhile...)(h)
	}
	if first == nil {
		h.note("%s", name)
		return h.img.MakeSnapshot(name)
	}
	percent, after := h.rng.IntN(100), time.Duration(h.rng.IntN(40))*time.Millisecond
	h.note("%s while at %d%% or after %v: %v", name, percent, after, first)
	return h.img.Race(percent, after, first, []string{"snap", "create", h.admin.Spec(h.img.Name + "@" + name)})
}

// describe records what a backup would have recorded.
func describe(ctx context.Context, img *rbd.Image, name string, before []uint64, seq uint64) (*point, error) {
	after, err := img.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	tracking := rbd.FeatureObjectMap | rbd.FeatureFastDiff
	p := &point{after: after, others: []uint64{}, snapSeq: seq, tracked: img.Features().Has(tracking)}
	ids := slices.Clone(before)
	for _, s := range after {
		if s.Name == name && s.Kind == rbd.UserSnapshot {
			p.snapshot = s
		}
		ids = append(ids, s.ID)
	}
	if p.snapshot.ID == 0 {
		return nil, errors.New("our snapshot is gone")
	}
	for _, id := range ids {
		if id < p.snapshot.ID && !slices.Contains(p.others, id) {
			p.others = append(p.others, id)
			p.snapSeq = max(p.snapSeq, id)
		}
	}
	p.parent, err = img.Parent(ctx)
	return p, err
}

// dropOld removes our older snapshots, as a backup does when its point is there: mostly all but the newest.
func (h *history) dropOld() {
	late := 2
	if h.tidy {
		late = 10
	}
	if h.chance(late) || !h.tidy && !h.chance(3) {
		return
	}
	for _, p := range h.points[:len(h.points)-1] {
		if p.gone || h.chance(late) {
			continue
		}
		h.note("remove %s", p.snapshot.Name)
		h.operation("remove ours", func() error { return h.img.RemoveSnapshot(p.snapshot.Name) })
		p.gone = true
	}
}

func (h *history) end() error {
	var errs []error
	if h.group != nil {
		errs = append(errs, h.group.Remove())
	}
	for _, name := range h.clones {
		errs = append(errs, h.admin.Remove(name))
	}
	errs = append(errs, h.img.Destroy())
	if h.parent != nil {
		errs = append(errs, h.parent.Destroy())
	}
	return errors.Join(errs...)
}
