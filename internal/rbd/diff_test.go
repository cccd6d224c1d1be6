package rbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
)

// TestDiff makes random histories on images of many layouts and checks every
// pair of snapshots against what rbd export says.
func TestDiff(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	dataPool := tp.DataPool(t)
	ctx, p := connectAs(t, tp)
	for name, test := range map[string]struct {
		size    int64
		options []string
	}{
		"plain":         {24 << 20, nil},
		"odd size":      {9<<20 + 513, nil},
		"tiny":          {1, nil},
		"small objects": {5 << 20, []string{"--object-size=4K"}},
		"striped":       {24<<20 + 5, []string{"--object-size=1M", "--stripe-unit=64K", "--stripe-count=3"}},
		"no map":        {16 << 20, []string{"--image-feature=layering"}},
		"data pool":     {16 << 20, []string{"--data-pool=" + dataPool}},
	} {
		t.Run(name, func(t *testing.T) {
			image := string(bytes.ReplaceAll([]byte(name), []byte(" "), nil))
			tp.CreateImage(t, image, test.size, test.options...)
			id := tp.Info(t, image).ID
			random := rand.New(rand.NewPCG(1, uint64(len(name))))
			points := []string{""}
			for n := range 4 {
				var cmds []string
				for range 6 {
					off, length := random.Int64N(test.size), 1+random.Int64N(test.size)/4
					length = min(length, test.size-off)
					cmds = append(cmds, []string{
						fmt.Sprintf("write -P %d %d %d", 1+random.IntN(255), off, length),
						fmt.Sprintf("discard %d %d", off, length),
						fmt.Sprintf("write -z %d %d", off, length),
					}[random.IntN(3)])
				}
				if test.size > 1 {
					tp.IO(t, image, cmds...)
				}
				points = append(points, fmt.Sprintf("s%d", n))
				if err := p.CreateSnapshot(ctx, id, points[n+1]); err != nil {
					t.Fatal(err)
				}
			}
			data := map[string][]byte{"": make([]byte, test.size)}
			for _, s := range points[1:] {
				raw, err := os.ReadFile(tp.Export(t, image+"@"+s))
				if err != nil {
					t.Fatal(err)
				}
				data[s] = raw
			}
			for to := 1; to < len(points); to++ {
				img := openAt(ctx, t, p, id, points[to])
				for _, from := range points[:to] {
					checkDiff(ctx, t, img, from, data[from], data[points[to]])
				}
			}
		})
	}
}

// checkDiff applies the diff, read from the image, to the older content.
func checkDiff(ctx context.Context, t *testing.T, img *Image, from string, older, newer []byte) {
	t.Helper()
	got := slices.Clone(older)
	err := img.Diff(ctx, from, 0, img.Size(), func(e Extent) error {
		part := got[e.Offset : e.Offset+e.Length]
		if !e.Exists {
			clear(part)
			return nil
		}
		return img.Read(ctx, part, e.Offset)
	})
	if err != nil {
		t.Error(err)
	}
	if !bytes.Equal(got, newer) {
		t.Errorf("diff from %q to %v misses changes", from, img)
	}
}

func TestDiffOfClone(t *testing.T) {
	t.Parallel()
	c := cephtest.Require(t)
	parents, tp := c.Pool(t), c.Pool(t)
	tp.GrantRead(t, parents.Name)
	ctx, p := connectAs(t, tp)
	parents.CreateImage(t, "golden", 16<<20)
	parents.IO(t, "golden", "write -P 1 0 9M")
	parents.CreateSnapshot(t, "golden@v1")
	parents.RBD(t, "snap", "protect", parents.Spec("golden@v1"))
	tp.RBD(t, "clone", parents.Spec("golden@v1"), tp.Spec("vm"))
	tp.IO(t, "vm", "write -P 2 1M 64k", "write -z 4M 4M")
	tp.CreateSnapshot(t, "vm@s")

	img, err := p.Open(ctx, "vm")
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	info, err := img.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := Parent{PoolID: info.Parent.PoolID, Pool: parents.Name, Image: "golden", ImageID: parents.Info(t, "golden").ID,
		Snapshot: "v1", SnapshotID: parents.Snapshots(t, "golden")[0].ID, Overlap: 16 << 20}
	if *info.Parent != want || want.PoolID == p.ID() {
		t.Errorf("parent %+v, want %+v", *info.Parent, want)
	}
	raw, err := os.ReadFile(tp.Export(t, "vm@s"))
	if err != nil {
		t.Fatal(err)
	}
	checkDiff(ctx, t, openAt(ctx, t, p, info.ID, "s"), "", make([]byte, len(raw)), raw)
}

func TestDiffEnds(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	ctx, p := connectAs(t, tp)
	tp.CreateImage(t, "vm", 64<<20, "--object-size=64K")
	tp.CreateImage(t, "empty", 0)
	id := tp.Info(t, "vm").ID
	tp.IO(t, "vm", "write -P 1 0 64M")
	tp.CreateSnapshot(t, "vm@s")
	img := openAt(ctx, t, p, id, "s")

	all := func() (extents []Extent, err error) {
		err = img.Diff(ctx, "", 0, img.Size(), func(e Extent) error {
			extents = append(extents, e)
			return nil
		})
		return extents, err
	}
	whole, err := all()
	if err != nil || len(whole) != 1024 {
		t.Errorf("%d extents, %v", len(whole), err)
	}
	t.Run("concurrent", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if again, err := all(); err != nil || !slices.Equal(again, whole) {
					t.Errorf("%d extents, %v", len(again), err)
				}
			})
		}
		wg.Wait()
	})
	t.Run("part", func(t *testing.T) {
		var got []Extent
		err := img.Diff(ctx, "", 100_000, 200_000, func(e Extent) error {
			got = append(got, e)
			return nil
		})
		first, last := got[0], got[len(got)-1]
		if err != nil || first.Offset != 100_000 || last.Offset+last.Length != 300_000 {
			t.Errorf("%v, %v", got, err)
		}
	})
	t.Run("callback's error", func(t *testing.T) {
		mine, calls := errors.New("mine"), 0
		err := img.Diff(ctx, "", 0, img.Size(), func(Extent) error {
			calls++
			return mine
		})
		if !errors.Is(err, mine) || calls != 1 {
			t.Errorf("%d calls, %v", calls, err)
		}
	})
	t.Run("panic", func(t *testing.T) {
		err := img.Diff(ctx, "", 0, img.Size(), func(Extent) error { panic("oops") })
		if err == nil || !errors.Is(err, errCallback) {
			t.Error(err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(ctx)
		calls := 0
		err := img.Diff(ctx, "", 0, img.Size(), func(Extent) error {
			if calls++; calls == 3 {
				cancel()
			}
			return ctx.Err()
		})
		if !errors.Is(err, context.Canceled) || calls > 3 {
			t.Errorf("%d calls, %v", calls, err)
		}
	})
	t.Run("arguments", func(t *testing.T) {
		fn := func(Extent) error { t.Error("called"); return nil }
		if err := img.Diff(ctx, "", 0, 0, fn); err != nil {
			t.Error(err)
		}
		for _, r := range [][2]int64{{-1, 1}, {0, -1}, {0, 64<<20 + 1}, {64<<20 + 1, 0}, {1, 1<<63 - 1}} {
			if err := img.Diff(ctx, "", r[0], r[1], fn); err == nil {
				t.Errorf("range %v was accepted", r)
			}
		}
		if err := img.Diff(ctx, "nope", 0, 1, fn); !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
		if err := img.Diff(ctx, "s", 0, img.Size(), fn); err != nil {
			t.Error(err)
		}
		empty, err := p.Open(ctx, "empty")
		if err != nil {
			t.Fatal(err)
		}
		defer empty.Close()
		if err := empty.Diff(ctx, "", 0, empty.Size(), fn); err != nil {
			t.Error(err)
		}
	})
}
