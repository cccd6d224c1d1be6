package repo

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// TestFoldRefused leaves everything as it was.
func TestFoldRefused(t *testing.T) {
	s, i := foldScene(t, true)
	ctx, cancel := context.WithCancel(t.Context())
	try := func(name PointName) error {
		_, err := s.FoldPoint(ctx, name, FoldOptions{})
		return err
	}
	var inUse *InUseError
	chain, err := s.OpenChain(s.t.Context(), s.points[i])
	if err != nil {
		t.Fatal(err)
	}
	if err := try(s.points[i]); !errors.As(err, &inUse) {
		t.Errorf("in use: %v", err)
	}
	_ = chain.Close()
	if err := s.Pin(ctx, s.points[i], ""); err != nil {
		t.Fatal(err)
	}
	if err := try(s.points[i]); !errors.As(err, new(*PinnedError)) {
		t.Errorf("pinned: %v", err)
	}
	if _, err := s.Unpin(ctx, s.points[i]); err != nil {
		t.Fatal(err)
	}
	if err := try(s.points[3]); err == nil || !strings.Contains(err.Error(), "newest") {
		t.Errorf("newest: %v", err)
	}
	flip(t, s.Point(s.points[i]))
	if err := try(s.points[i]); !errors.As(err, new(*qcow2.CorruptError)) {
		t.Errorf("damaged: %v", err)
	}
	flip(t, s.Point(s.points[i]))
	cancel()
	if err := try(s.points[i]); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	s.checkPoints()
	s.checkStates()
}

// TestFoldPinnedMeanwhile pins a point after its fold has looked at the pins, and before it has the lock.
func TestFoldPinnedBeforeLock(t *testing.T) {
	s, i := foldScene(t, true)
	j, err := s.newFold(s.points[i], FoldOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Pin(t.Context(), s.points[i], ""); err != nil {
		t.Fatal(err)
	}
	if err := j.run(t.Context()); !errors.As(err, new(*PinnedError)) {
		t.Errorf("pinned meanwhile: %v", err)
	}
	s.recover()
	s.checkPoints()
	s.checkStates()
}

// flip flips a bit of the first data of a point.
func flip(t *testing.T, p *Point) {
	t.Helper()
	file, err := openWritable(p.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var at int64
	for _, e := range qemutest.Map(t, p.Path()) {
		if e.Depth == 0 && e.Data && e.Offset != nil {
			at = *e.Offset
			break
		}
	}
	b := make([]byte, 1)
	if _, err := file.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := file.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
	if err := setTime(file, p.ModTime); err != nil {
		t.Fatal(err)
	}
}

// TestFoldBesideReaders folds while others read: they wait, or keep the fold from happening, and read what is right.
func TestFoldBesideReaders(t *testing.T) {
	s := newScene(t, 6)
	newest := s.points[len(s.points)-1]
	ctx, cancel := context.WithCancel(t.Context())
	var g errgroup.Group
	for range 2 {
		g.Go(func() error {
			for ctx.Err() == nil {
				got, err := s.read(newest)
				if err != nil {
					return err
				}
				if !bytes.Equal(got, s.states[newest]) {
					return errors.New("the newest point reads as something else")
				}
				runtime.Gosched()
			}
			return nil
		})
	}
	declined := 0
	for len(s.points) > 1 {
		_, err := s.FoldPoint(ctx, s.points[0], FoldOptions{})
		switch {
		case errors.As(err, new(*InUseError)):
			declined++
		case err != nil:
			t.Fatal(err)
		default:
			s.forget(0)
		}
	}
	cancel()
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	t.Log("declined:", declined)
	s.checkPoints()
	s.checkStates()
}
