package rbd

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
)

// within fails the test if f takes longer.
func within(t *testing.T, limit time.Duration, what string, f func() error) error {
	t.Helper()
	start := time.Now()
	err := f()
	took := time.Since(start).Round(time.Millisecond)
	t.Logf("%s: %v after %v", what, err, took)
	if took > limit {
		t.Errorf("%s took %v, more than %v", what, took, limit)
	}
	return err
}

func TestOutage(t *testing.T) {
	t.Parallel()
	own := cephtest.Own(t)
	tp := own.Pool(t)
	tp.CreateImage(t, "vm", 64<<20)
	tp.IO(t, "vm", "write -P 1 0 8M")
	id := tp.Info(t, "vm").ID
	ctx := t.Context()
	cfg := config(tp)
	cfg.Timeout, cfg.SnapshotTimeout = time.Second, 3*time.Second
	c, err := Connect(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Pool(ctx, tp.Name, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.CreateSnapshot(ctx, id, "before"); err != nil {
		t.Fatal(err)
	}
	img, err := p.OpenAt(ctx, id, "before")
	if err != nil {
		t.Fatal(err)
	}
	// One of its own: what it wants the lock for and gives up may leave it the lock.
	tp.CreateImage(t, "written", 64<<20)
	w, err := p.OpenWriter(ctx, tp.Info(t, "written").ID)
	if err != nil {
		t.Fatal(err)
	}

	// In all not longer than 16 seconds: then the OSD's read lease would run out,
	// which an OSD without peers does not get back by itself.
	thaw := own.Freeze(t, "osd.0")
	nothing := func(Extent) error { return nil }
	limit := (callsPerWatchdog + 1) * cfg.Timeout
	var wg sync.WaitGroup
	for what, try := range map[string]func() error{
		"read":   func() error { return img.Read(ctx, make([]byte, 4096), 0) },
		"diff":   func() error { return img.Diff(ctx, "", 0, img.Size(), nothing) },
		"info":   func() error { _, err := img.Info(ctx); return err },
		"open":   func() error { _, err := p.Open(ctx, "vm"); return err },
		"list":   func() error { _, err := p.ListImages(ctx); return err },
		"write":  func() error { return w.Write(ctx, make([]byte, 4096), 0) },
		"resize": func() error { return w.Resize(ctx, 4096) },
		"commit": func() error { return p.CommitMigration(ctx, "vm") },
	} {
		wg.Go(func() {
			if err := within(t, limit, what, try); !errors.Is(err, ErrTimeout) {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
	wg.Wait()
	err = within(t, limit, "snapshot", func() error { return p.CreateSnapshot(ctx, id, "during") })
	if !errors.Is(err, ErrAbandoned) || !errors.Is(err, ErrTimeout) {
		t.Error(err)
	}
	// Ctrl-C ends everything at once.
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	buf := make([]byte, 4096)
	err = within(t, time.Second, "read with a deadline", func() error { return img.Read(short, buf, 0) })
	if !errors.Is(err, ErrAbandoned) || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := within(t, time.Second, "diff with a deadline", func() error { return img.Diff(short, "", 0, img.Size(), nothing) }); err == nil {
		t.Error("diff of a dead cluster succeeded")
	}
	_ = within(t, limit, "close image", img.Close)
	_ = within(t, limit, "close writer", w.Close)

	thaw()
	// The abandoned snapshot completes, which is why its error means nothing.
	for deadline := time.Now().Add(time.Minute); ; {
		_, err := p.SnapshotID(ctx, id, "during")
		if err == nil {
			t.Log("the abandoned snapshot came into being later")
			break
		}
		if time.Now().After(deadline) {
			t.Error(err)
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err := within(t, limit, "close", c.Close); err != nil {
		t.Error(err)
	}
}

func TestDeadMonitor(t *testing.T) {
	t.Parallel()
	own := cephtest.Own(t)
	tp := own.Pool(t)
	tp.CreateImage(t, "vm", 64<<20)
	id := tp.Info(t, "vm").ID
	cfg := config(tp)
	cfg.Timeout, cfg.SnapshotTimeout = 2*time.Second, 6*time.Second
	ctx := t.Context()
	c, err := Connect(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Pool(ctx, tp.Name, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.SnapshotClient(ctx); err != nil {
		t.Fatal(err)
	}
	thaw := own.Freeze(t, "mon.a")
	err = within(t, 10*time.Second, "snapshot", func() error { return p.CreateSnapshot(ctx, id, "during") })
	if !errors.Is(err, ErrTimeout) {
		t.Error(err)
	}
	err = within(t, 5*time.Second, "version", func() error { _, err := c.Version(ctx); return err })
	if !errors.Is(err, ErrTimeout) {
		t.Error(err)
	}
	err = within(t, 5*time.Second, "connect", func() error { _, err := Connect(ctx, cfg); return err })
	if !errors.Is(err, ErrTimeout) {
		t.Error(err)
	}
	thaw()
	if err := within(t, 20*time.Second, "close", c.Close); err != nil {
		t.Error(err)
	}
}

func TestBlocklisted(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	ctx, p := connectAs(t, tp)
	tp.CreateImage(t, "vm", 8<<20)
	img, err := p.Open(ctx, "vm")
	if err != nil {
		t.Fatal(err)
	}
	address, err := p.cluster.reader.rados.GetAddrs()
	if err != nil {
		t.Fatal(err)
	}
	tp.Ceph(t, "osd", "blocklist", "add", address)
	t.Cleanup(func() { tp.Ceph(t, "osd", "blocklist", "rm", address) })
	// The OSD learns it a little later.
	for err = nil; err == nil && ctx.Err() == nil; {
		err = img.Read(ctx, make([]byte, 4096), 0)
	}
	if !errors.Is(err, ErrBlocklisted) {
		t.Error(err)
	}
	if err := img.Close(); err != nil {
		t.Error(err)
	}
	again, againPool := connectAs(t, tp)
	if _, err := againPool.ListImages(again); err != nil {
		t.Error(err)
	}
}
