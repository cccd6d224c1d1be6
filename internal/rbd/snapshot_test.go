package rbd

import (
	"errors"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
)

func TestSnapshots(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	ctx, p := connectAs(t, tp)
	tp.CreateImage(t, "vm", 8<<20)
	id := tp.Info(t, "vm").ID
	if err := p.CreateSnapshot(ctx, id, "first"); err != nil {
		t.Fatal(err)
	}
	tp.Resize(t, "vm", 4<<20)
	tp.RBD(t, "group", "create", tp.Spec("g"))
	tp.RBD(t, "group", "image", "add", tp.Spec("g"), tp.Spec("vm"))
	tp.RBD(t, "group", "snap", "create", tp.Spec("g@gs"))
	if err := p.CreateSnapshot(ctx, id, "second"); err != nil {
		t.Fatal(err)
	}
	tp.RBD(t, "snap", "protect", tp.Spec("vm@second"))
	tp.RBD(t, "feature", "disable", tp.Spec("vm"), "fast-diff", "object-map")
	tp.RBD(t, "feature", "enable", tp.Spec("vm"), "object-map", "fast-diff")

	img := openAt(ctx, t, p, id, "")
	got, err := img.Snapshots(ctx)
	if err != nil {
		t.Fatal(err)
	}
	byRBD := tp.Snapshots(t, "vm")
	if len(got) != 3 || len(byRBD) != 3 {
		t.Fatalf("snapshots %+v, the rbd program says %+v", got, byRBD)
	}
	for i, s := range got {
		want := Snapshot{ID: byRBD[i].ID, Name: byRBD[i].Name, Kind: SnapshotKind(byRBD[i].Namespace.Type), Size: byRBD[i].Size,
			Time: s.Time, Protected: byRBD[i].Protected, Flags: FlagObjectMapInvalid | FlagFastDiffInvalid}
		if s != want {
			t.Errorf("snapshot %+v, want %+v", s, want)
		}
		if age := time.Since(s.Time); age < -time.Minute || age > time.Hour {
			t.Errorf("snapshot %s is from %v", s.Name, s.Time)
		}
	}
	if sizes := []int64{got[0].Size, got[1].Size, got[2].Size}; !slices.Equal(sizes, []int64{8 << 20, 4 << 20, 4 << 20}) {
		t.Errorf("sizes %v", sizes)
	}
	if got[1].Kind != GroupSnapshot {
		t.Errorf("group snapshot is of kind %s", got[1].Kind)
	}
	info, err := img.Info(ctx)
	if err != nil || info.SnapSeq != got[2].ID || info.Flags.String() != "object map invalid, fast diff invalid" {
		t.Errorf("info %+v, %v", info, err)
	}
	if old := openAt(ctx, t, p, id, "first"); old.Size() != 8<<20 {
		t.Errorf("%v has size %d", old, old.Size())
	}

	if err := p.CreateSnapshot(ctx, id, "first"); !errors.Is(err, ErrExists) || !errors.Is(err, syscall.EEXIST) {
		t.Error(err)
	}
	if err := p.RemoveSnapshot(ctx, id, "second"); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	tp.RBD(t, "snap", "limit", "set", "--limit", "3", tp.Spec("vm"))
	if err := p.CreateSnapshot(ctx, id, "third"); !errors.Is(err, ErrQuota) {
		t.Error(err)
	}
	for _, name := range []string{"", "a\x00b"} {
		if err := p.CreateSnapshot(ctx, id, name); err == nil {
			t.Errorf("made snapshot %q", name)
		}
	}
	late := openAt(ctx, t, p, id, "")
	if err := p.RemoveSnapshot(ctx, id, "first"); err != nil {
		t.Error(err)
	}
	// The list stays what it was, and one of an image opened before the removal, but asked after it, is without it.
	if again, err := img.Snapshots(ctx); err != nil || !slices.Equal(again, got) {
		t.Errorf("snapshots %+v, %v", again, err)
	}
	if left, err := late.Snapshots(ctx); err != nil || !slices.Equal(left, got[1:]) {
		t.Errorf("snapshots %+v, %v", left, err)
	}
}

// TestRemovedSnapshot shows why Pool.SnapshotID is there.
func TestRemovedSnapshot(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	ctx, p := connectAs(t, tp)
	tp.CreateImage(t, "vm", 8<<20)
	id := tp.Info(t, "vm").ID
	tp.IO(t, "vm", "write -P 1 0 8M")
	if err := p.CreateSnapshot(ctx, id, "s"); err != nil {
		t.Fatal(err)
	}
	before, err := p.SnapshotID(ctx, id, "s")
	if err != nil || before != tp.Snapshots(t, "vm")[0].ID {
		t.Fatal(before, err)
	}
	tp.IO(t, "vm", "write -P 2 0 8M")
	img := openAt(ctx, t, p, id, "s")
	buf := make([]byte, 1)
	if err := img.Read(ctx, buf, 0); err != nil || buf[0] != 1 {
		t.Fatal(buf, err)
	}
	tp.RemoveSnapshot(t, "vm@s")
	if err := img.Read(ctx, buf, 0); err == nil && buf[0] == 0 {
		t.Log("a removed snapshot reads as zeros, without an error")
	}
	if _, err := p.SnapshotID(ctx, id, "s"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

func TestMigrating(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	ctx, p := connectAs(t, tp)
	tp.CreateImage(t, "vm", 8<<20)
	tp.RBD(t, "migration", "prepare", tp.Spec("vm"), tp.Spec("vm"))
	if _, err := p.Open(ctx, "vm"); !errors.Is(err, ErrMigrating) {
		t.Error(err)
	}
	if err := p.CreateSnapshot(ctx, tp.Info(t, "vm").ID, "s"); !errors.Is(err, ErrMigrating) {
		t.Error(err)
	}
	tp.RBD(t, "migration", "abort", "--no-progress", tp.Spec("vm"))
	img, err := p.Open(ctx, "vm")
	if err != nil {
		t.Fatal(err)
	}
	if err := img.Close(); err != nil {
		t.Error(err)
	}
}

func TestNonPrimary(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	ctx, p := connectAs(t, tp)
	tp.CreateImage(t, "vm", 8<<20)
	id := tp.Info(t, "vm").ID
	tp.RBD(t, "mirror", "pool", "enable", tp.Name, "image")
	tp.RBD(t, "mirror", "image", "enable", tp.Spec("vm"), "snapshot")
	tp.RBD(t, "mirror", "image", "demote", tp.Spec("vm"))
	if err := p.CreateSnapshot(ctx, id, "s"); !errors.Is(err, ErrNotPrimary) {
		t.Error(err)
	}
	snaps, err := openAt(ctx, t, p, id, "").Snapshots(ctx)
	if err != nil || len(snaps) == 0 || snaps[0].Kind != MirrorSnapshot {
		t.Errorf("snapshots %+v, %v", snaps, err)
	}
}

// TestTrashedSnapshot has a clone keep a removed snapshot in the trash.
func TestTrashedSnapshot(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	ctx, p := connectAs(t, tp)
	tp.CreateImage(t, "vm", 8<<20)
	id := tp.Info(t, "vm").ID
	if err := p.CreateSnapshot(ctx, id, "s"); err != nil {
		t.Fatal(err)
	}
	user, err := openAt(ctx, t, p, id, "").Snapshots(ctx)
	if err != nil || len(user) != 1 {
		t.Fatalf("snapshots %+v, %v", user, err)
	}
	if err := p.RemoveTrashedSnapshot(ctx, id, user[0]); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("one that is not in the trash: %v", err)
	}
	tp.RBD(t, "clone", "--rbd-default-clone-format=2", tp.Spec("vm@s"), tp.Spec("clone"))
	tp.RemoveSnapshot(t, "vm@s")
	trashed, err := openAt(ctx, t, p, id, "").Snapshots(ctx)
	if err != nil || len(trashed) != 1 || trashed[0].Kind != TrashSnapshot || trashed[0].TrashedName != "s" {
		t.Fatalf("snapshots %+v, %v", trashed, err)
	}
	if err := p.RemoveTrashedSnapshot(ctx, id, trashed[0]); !errors.Is(err, ErrBusy) {
		t.Errorf("with a clone: %v", err)
	}
	tp.Remove(t, "clone")
	if err := p.RemoveTrashedSnapshot(ctx, id, trashed[0]); !errors.Is(err, ErrNotFound) {
		t.Errorf("after its clone: %v", err)
	}
}
