package rbd

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	librbd "github.com/ceph/go-ceph/rbd"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
)

// testLockedWriter has another client lock the image on purpose.
func testLockedWriter(ctx context.Context, t *testing.T, tp *cephtest.Pool, p *Pool) {
	w := newWriter(ctx, t, p, "locked", CreateOptions{Size: 8 << 20})
	other, err := librbd.OpenImage(adminContext(ctx, t, tp), "locked", librbd.NoSnapshot)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.LockAcquire(librbd.LockModeExclusive); err != nil {
		t.Fatal(err)
	}
	for what, try := range map[string]func() error{
		"write": func() error { return w.Write(ctx, []byte{1}, 0) },
		"zero":  func() error { return w.WriteZeroes(ctx, 0, 4096) },
	} {
		err := within(t, 5*time.Second, what, try)
		var locked *LockedError
		if !errors.As(err, &locked) || locked.Image != tp.Spec("locked") || !strings.HasPrefix(locked.Client, "client.") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// testWriterLock holds the lock while another client tries to write.
func testWriterLock(ctx context.Context, t *testing.T, tp *cephtest.Pool, p *Pool) {
	ref, err := p.CreateImage(ctx, "kept", CreateOptions{Size: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	w, err := p.OpenWriter(ctx, ref.ID)
	if err != nil {
		t.Fatal(err)
	}
	if locked, err := w.Lock(ctx); err != nil || !locked {
		t.Errorf("lock: %v, %v", locked, err)
	}
	other, err := librbd.OpenImage(adminContext(ctx, t, tp), "kept", librbd.NoSnapshot)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	write := func() error { _, err := other.WriteAt([]byte{1}, 0); return err }
	if err := within(t, 5*time.Second, "write while it is locked", write); !errors.Is(translate(err), syscall.EROFS) {
		t.Errorf("another client writes: %v", err)
	}
	if err := w.Write(ctx, []byte{2}, 0); err != nil {
		t.Error(err)
	}
	if err := w.CreateSnapshot(ctx, "s"); err != nil {
		t.Error(err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if err := within(t, 5*time.Second, "write", write); err != nil {
		t.Error(err)
	}
	plain := newWriter(ctx, t, p, "unlocked", CreateOptions{Size: 8 << 20, FeaturesSet: true, Features: Features(librbd.FeatureLayering)})
	if locked, err := plain.Lock(ctx); err != nil || locked {
		t.Errorf("lock an image that has no lock: %v, %v", locked, err)
	}
}

func TestWriterRefused(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	ctx, p := connectToRestore(t, tp)
	ref, err := p.CreateImage(ctx, "vm", CreateOptions{Size: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	readerCtx, reader := connectAs(t, tp)
	w := openWriter(readerCtx, t, reader, ref.ID)
	err = within(t, 5*time.Second, "write without permission", func() error { return w.Write(readerCtx, []byte{1}, 0) })
	if !errors.Is(err, ErrPermission) || err.Error() != "write "+reader.idSpec(ref.ID, "")+" at 0+1: permission denied" {
		t.Error(err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	tp.RBD(t, "migration", "prepare", tp.Spec("vm"), tp.Spec("vm"))
	migrating, err := p.FindImage(ctx, "vm")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.OpenWriter(ctx, migrating.ID); !errors.Is(err, ErrMigrating) {
		t.Error(err)
	}
	tp.RBD(t, "migration", "abort", "--no-progress", tp.Spec("vm"))
	tp.RBD(t, "mirror", "pool", "enable", tp.Name, "image")
	tp.RBD(t, "mirror", "image", "enable", tp.Spec("vm"), "snapshot")
	tp.RBD(t, "mirror", "image", "demote", tp.Spec("vm"))
	if _, err := p.OpenWriter(ctx, ref.ID); !errors.Is(err, ErrNotPrimary) {
		t.Error(err)
	}
}

// TestFullPool fills a pool to beyond its quota, which the monitor notices a little later.
func TestFullPool(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	ctx, p := connectToRestore(t, tp)
	w := newWriter(ctx, t, p, "vm", CreateOptions{Size: 1 << 30})
	tp.Ceph(t, "osd", "pool", "set-quota", tp.Name, "max_bytes", "8M")
	data := bytes.Repeat([]byte{1}, 16<<20)
	err := w.Write(ctx, data, 0)
	start := time.Now()
	for off := int64(len(data)); err == nil && off < w.Size(); off += 4 << 10 {
		start = time.Now()
		err = w.Write(ctx, data[:4<<10], off)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("it took %v to fail", took)
	}
	if !errors.Is(err, ErrQuota) || !strings.HasSuffix(err.Error(), ": the quota of the pool is reached") {
		t.Error(err)
	}
	if _, err := p.CreateImage(ctx, "vm2", CreateOptions{}); !errors.Is(err, ErrQuota) {
		t.Error(err)
	}
	// What takes no more space works, and what frees it.
	if err := w.Write(ctx, data, 0); err != nil {
		t.Error(err)
	}
	if err := errors.Join(w.WriteZeroes(ctx, 0, w.Size()), w.Close()); err != nil {
		t.Error(err)
	}
	// A removal takes space before it frees any. It works when the monitor has noticed.
	err = p.RemoveImage(ctx, w.ID())
	if !errors.Is(err, ErrQuota) || errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	for errors.Is(err, ErrQuota) && ctx.Err() == nil {
		err = p.RemoveImage(ctx, w.ID())
	}
	if err != nil {
		t.Error(err)
	}
}
