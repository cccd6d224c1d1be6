package e2e

import (
	"bufio"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/programtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
)

// TestBadImages backs up images that can't be backed up, and one that can.
func TestBadImages(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "good", 8<<20)
	pool.IO(t, "good", "write -P 1 1M 3M")
	for _, image := range []string{"moving", "mirror", "full"} {
		pool.CreateImage(t, image, 8<<20)
	}
	pool.RBD(t, "migration", "prepare", pool.Spec("moving"), pool.Spec("moved"))
	t.Cleanup(func() { pool.RBD(t, "migration", "abort", "--no-progress", pool.Spec("moved")) })
	pool.RBD(t, "mirror", "pool", "enable", pool.Name, "image")
	pool.RBD(t, "mirror", "image", "enable", pool.Spec("mirror"), "snapshot")
	pool.RBD(t, "mirror", "image", "demote", pool.Spec("mirror"))
	pool.CreateSnapshot(t, "full@only")
	pool.RBD(t, "snap", "limit", "set", "--limit", "1", pool.Spec("full"))

	r := program.Run(t, programtest.BackupArgs(pool, d.dir, "good", "moved", "mirror", "full", "gone")...)
	if r.Code != 3 || !strings.Contains(r.Stderr, "msg=finished done=1 skipped=0 failed=4") {
		t.Errorf("exit status %d, want 3, one done and four failed:\n%s", r.Code, r.Stderr)
	}
	wants := []string{
		"image=moved error=\"open image " + pool.Spec("moved") + ": image is being migrated",
		"image=mirror error=\"create snapshot " + pool.Spec("mirror@"),
		"image=full error=\"create snapshot " + pool.Spec("full@"),
		"image=gone error=\"open image " + pool.Spec("gone") + ": not found",
	}
	said := complaints(r)
	if len(said) != len(wants) {
		t.Errorf("said %q, want one line for each of the four images", said)
	}
	for _, want := range wants {
		if !strings.Contains(r.Stderr, want) {
			t.Errorf("said %q, want %q", said, want)
		}
	}
	for _, image := range []string{"moved", "full", "mirror"} {
		for _, s := range pool.Snapshots(t, image) {
			if s.Namespace.Type == "user" && s.Name != "only" {
				t.Errorf("%s has a snapshot %s", image, s.Name)
			}
		}
	}
	d.backup(t)
	d.wantSound(t, d.backup(t))
}

// TestReadOnlyUser backs up as a user who may make no snapshots.
func TestReadOnlyUser(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "vm", 8<<20)
	point := d.backup(t)
	user := "reader-" + pool.Name
	key := pool.Ceph(t, "auth", "get-or-create", "client."+user, "mon", "profile rbd-read-only",
		"osd", "profile rbd-read-only pool="+pool.Name)
	t.Cleanup(func() { pool.Ceph(t, "auth", "rm", "client."+user) })
	keyring := filepath.Join(t.TempDir(), "keyring")
	if err := os.WriteFile(keyring, key, 0o600); err != nil {
		t.Fatal(err)
	}
	r := program.Run(t, programtest.BackupArgs(pool, d.dir, "--id", user, "--keyring", keyring)...)
	wantComplaint(t, r, 1, "create snapshot "+pool.Spec("vm@"))
	if !strings.Contains(r.Stderr, "permission denied") {
		t.Errorf("said %s", r.Stderr)
	}
	d.wantSound(t, point)
}

// TestFullDisk fills the disk that the repository is on, while an image is copied, and then makes it read-only.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		qemutest.Missing(t, "only root can mount a file system")
	}
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "small", 8<<20)
	d.dir = t.TempDir()
	mount := func(flags uintptr) {
		t.Helper()
		if err := unix.Mount("tmpfs", d.dir, "tmpfs", flags, "size=8M"); err != nil {
			t.Fatalf("mount tmpfs: %v", err)
		}
	}
	mount(0)
	t.Cleanup(func() {
		if err := unix.Unmount(d.dir, 0); err != nil {
			t.Errorf("unmount tmpfs: %v", err)
		}
	})
	if r := program.Run(t, "init", d.dir); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	pool.CreateImage(t, "large", 32<<20)
	pool.IO(t, "large", "write -P 1 0 32M")
	pool.IO(t, "small", "write -P 2 1M 1M")
	first := d.backup(t)
	pool.IO(t, "small", "write -P 3 2M 64k")

	r := program.Run(t, programtest.BackupArgs(pool, d.dir, "--compress", "none", "--jobs", "1", "large")...)
	wantComplaint(t, r, 1, "no space left on device")
	if s := pool.Snapshots(t, "large"); len(s) != 0 {
		t.Errorf("the image that does not fit has snapshots: %+v", s)
	}
	d.wantSound(t, first)

	// What fits behind what does not is done.
	r = program.Run(t, programtest.BackupArgs(pool, d.dir, "--compress", "none", "--jobs", "1", "--json")...)
	if said := complaints(r); r.Code != 3 || len(said) != 1 || !strings.Contains(said[0], "no space left on device") {
		t.Errorf("exit status %d, said %q, want 3 and one line on the full disk", r.Code, said)
	}
	small := r.Report(t).Images[1]
	d.wantIncrement(t, small, first.Points[0].Point)
	d.truth[small.Points[0].File] = d.contentAt(t, small.Points[0].Snapshot)
	d.wantSound(t, small)

	mount(unix.MS_REMOUNT | unix.MS_RDONLY)
	r = program.Run(t, programtest.BackupArgs(pool, d.dir, "small")...)
	wantComplaint(t, r, 1, "read-only file system")
	d.wantSound(t, small)
}

// TestDeadOSD freezes the cluster's only OSD while an image is copied, as when all replicas are gone: the run must end all the
// same, say what it could not remove, and the next one must clear that away.
func TestDeadOSD(t *testing.T) {
	t.Parallel()
	cluster := cephtest.Own(t)
	pool := cluster.Pool(t)
	d := newDisk(t, pool, "vm", 64<<20)
	raw := filepath.Join(t.TempDir(), "random.raw")
	qemutest.Run(t, "dd", "if=/dev/urandom", "of="+raw, "bs=1M", "count=64")
	pool.Update(t, "vm", raw)

	const bound = time.Minute // several calls in a row run into the time-out
	ctx, cancel := context.WithTimeout(t.Context(), 2*bound)
	defer cancel()
	run := program.Command(ctx, programtest.BackupArgs(pool, d.dir, "--timeout", "3s", "--compress", "zstd:19", "--parallel", "1", "-v")...)
	run.Stderr = nil
	pipe, err := run.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	var frozen time.Time
	thaw := func() {}
	var failed, left bool
	for lines := bufio.NewScanner(pipe); lines.Scan(); {
		line := lines.Text()
		t.Log(line)
		if frozen.IsZero() && strings.Contains(line, "phase=copy") {
			thaw, frozen = cluster.Freeze(t, "osd.0"), time.Now()
		}
		failed = failed || strings.Contains(line, "level=ERROR") && strings.Contains(line, "did not answer in time")
		left = left || strings.Contains(line, "level=ERROR") && strings.Contains(line, "could not be removed, the next run will do so")
	}
	_ = run.Wait() // the status is looked at below
	if took := time.Since(frozen); run.ProcessState.ExitCode() != 1 || took > bound {
		t.Errorf("%v, %v after the OSD froze, want status 1 within %v", run.ProcessState, took, bound)
	}
	if !failed || !left {
		t.Error("want a line on the cluster that does not answer, and in it the snapshot that stays behind")
	}

	r := program.Run(t, programtest.BackupArgs(pool, d.dir, "--timeout", "3s")...)
	wantComplaint(t, r, 1, "list images of "+pool.Name+": the cluster did not answer in time")
	thaw()
	pool.Images(t) // waits: an OSD that has missed a map needs a while to get it
	d.wantSound(t, d.backup(t))
}
