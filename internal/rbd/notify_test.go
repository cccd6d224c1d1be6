package rbd

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbdtest"
)

func TestWatchers(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	ctx, p := connectAs(t, tp)
	guest := newGuest(t, tp)
	openAt(ctx, t, p, guest.ID, "") // for reading: that does not count
	want := func(open bool) {
		t.Helper()
		if got, err := p.Watchers(ctx, guest.ID); err != nil || len(got) > 0 != open {
			t.Errorf("watchers: %v, %v; want some: %t", got, err, open)
		}
	}
	want(true)
	if err := guest.Close(); err != nil {
		t.Fatal(err)
	}
	want(false)
	if _, err := p.Watchers(ctx, "none"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

func TestRefresh(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	ctx, p := connectAs(t, tp)
	guest := newGuest(t, tp)
	updates := make(chan struct{}, 16)
	watch, err := guest.UpdateWatch(func(any) { updates <- struct{}{} }, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Refresh(ctx, guest.ID); err != nil {
		t.Errorf("with a client: %v", err)
	}
	select {
	case <-updates:
	case <-time.After(10 * time.Second):
		t.Error("the client did not understand the message")
	}
	if err := errors.Join(watch.Unwatch(), guest.Close()); err != nil {
		t.Fatal(err)
	}
	if err := p.Refresh(ctx, guest.ID); err != nil {
		t.Errorf("with no client: %v", err)
	}
	if err := guest.Open(); err != nil {
		t.Fatal(err)
	}
	frozen, err := guest.PauseAt("handle_register_watch: r=0", "bench", "--io-type=read", "--io-total=8M", guest.Spec(""))
	if err != nil {
		t.Fatal(err)
	}
	wantTimeout(ctx, t, p, guest.ID)
	if err := frozen.Resume(); err != nil {
		t.Error(err)
	}
	if err := p.Refresh(ctx, guest.ID); err != nil {
		t.Errorf("when the frozen client has gone: %v", err)
	}
}

// wantTimeout fails the test unless Refresh gives up on a client after a few seconds.
func wantTimeout(ctx context.Context, t *testing.T, p *Pool, id string) {
	t.Helper()
	start := time.Now()
	err := p.Refresh(ctx, id)
	if d := time.Since(start); !errors.Is(err, ErrTimeout) || d < refreshTimeout/2 || d > 4*refreshTimeout {
		t.Errorf("with a frozen client: %v after %v", err, d)
	}
}

// newGuest creates an image that this process has open, as a virtual machine would, until the end of the test.
func newGuest(t *testing.T, tp *cephtest.Pool) *rbdtest.Image {
	t.Helper()
	guest, err := rbdtest.Connect(t, tp).Create("vm", rbdtest.Layout{Size: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = guest.Close() }) // it may be closed already
	return guest
}
