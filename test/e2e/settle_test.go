package e2e

import (
	"bytes"
	"context"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/backup"
	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/programtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbdtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

// anotherSnapshot is in the log of a run that makes a second snapshot.
const anotherSnapshot = "making another snapshot"

// newGuest is newDisk for an image that this process has open, as a virtual machine would, until the end of the test.
func newGuest(t *testing.T, pool *cephtest.Pool, image string, layout rbdtest.Layout) (*disk, *rbdtest.Image) {
	t.Helper()
	guest, err := rbdtest.Connect(t, pool).Create(image, layout)
	must(t, err)
	t.Cleanup(func() { _ = guest.Close() }) // it may be closed already
	return &disk{pool: pool, image: image, dir: program.Init(t), truth: map[string]content{}}, guest
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestOpenedDuringSnapshot: a client that opens the image when its snapshot is made reads the list of snapshots before, and
// watches the image after. It goes on writing into the snapshot until the program makes it look again, and so does what it has in
// its cache then until it is asked for a snapshot.
func TestOpenedDuringSnapshot(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d, guest := newGuest(t, pool, "vm", rbdtest.Layout{Size: 16 << 20, Order: 20})
	var parent status.Point
	var client *rbdtest.Paused
	for client == nil {
		pool.IO(t, "vm", "write -P 1 0 16M", "write -P 2 6M 1M") // the client writes one byte again and again, which may be either
		parent = d.backup(t).Points[0]
		client = pauseOpening(t, guest)
	}
	updates := make(chan struct{}, 16)
	var heard atomic.Int32
	resumed := false
	defer func() {
		if !resumed {
			_ = client.Resume()
		}
	}()
	watch, err := guest.UpdateWatch(func(any) { heard.Add(1); updates <- struct{}{} }, nil)
	must(t, err)
	run := startBackup(t, d)
	select {
	case <-updates: // librbd tells of the snapshot all who watch the image now
	case <-time.After(time.Minute):
		t.Fatal("no snapshot was made")
	}
	must(t, run.Process.Signal(syscall.SIGSTOP)) // or the client would have to be quick
	before := watchers(t, guest)
	ended := make(chan error, 1)
	resumed = true
	go func() { ended <- client.Resume() }()
	for !slices.ContainsFunc(watchers(t, guest), func(id int64) bool { return !slices.Contains(before, id) }) {
		select {
		case err := <-ended:
			t.Fatalf("the client ended without watching the image: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	if n := heard.Load(); n != 1 {
		t.Fatalf("the program was stopped too late: it has sent %d notifications", n)
	}
	must(t, run.Process.Signal(syscall.SIGCONT))
	during := d.finish(t, run)
	must(t, <-ended)
	must(t, watch.Unwatch())

	if !strings.Contains(d.log, "a client has just opened the image") {
		t.Errorf("the program did not notice that the client has opened the image:\n%s", d.log)
	}
	d.wantIncrement(t, during, parent.Point)
	point := during.Points[0]
	d.truth[point.File] = d.contentAt(t, point.Snapshot) // now that nobody writes any more
	if d.truth[point.File] == d.contentAt(t, "") {
		t.Error("the client wrote nothing after it had heard of the snapshot")
	}
	if d.truth[point.File] == d.truth[parent.File] {
		t.Log("the client wrote nothing before it had heard of the snapshot")
	}
	d.wantIncrement(t, d.backup(t), point.Point)
	d.check(t)
}

// pauseOpening starts a client that writes to the first half of the image, so that the marks of the other one still prove that nobody
// rolled back, and stops it when it knows the snapshots but does not watch the image; nil: that was too late. It has hundreds of
// writes in its cache. The guest is open again.
func pauseOpening(t *testing.T, guest *rbdtest.Image) *rbdtest.Paused {
	t.Helper()
	client, err := guest.PauseAt("handle_v2_get_mutable_metadata", "bench", "--io-type=write", "--io-size=512", "--io-threads=1",
		"--io-total=8M", guest.Spec(""))
	must(t, err)
	must(t, guest.Open())
	if len(watchers(t, guest)) == 1 {
		return client
	}
	t.Log("the client was stopped too late")
	must(t, client.Resume())
	return nil
}

// watchers are the clients that watch the image.
func watchers(t *testing.T, guest *rbdtest.Image) (ids []int64) {
	t.Helper()
	list, err := guest.ListWatchers()
	must(t, err)
	for _, w := range list {
		ids = append(ids, w.Id)
	}
	return ids
}

// startBackup starts a backup of the image.
func startBackup(t *testing.T, d *disk) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	run := program.Command(ctx, programtest.BackupArgs(d.pool, d.dir, "--json", "--verbose", "--", d.image)...)
	must(t, run.Start())
	return run
}

// finish waits for a backup that must succeed.
func (d *disk) finish(t *testing.T, run *exec.Cmd) backup.ImageReport {
	t.Helper()
	err := run.Wait()
	r := programtest.Result{Stdout: run.Stdout.(*bytes.Buffer).String(), Stderr: run.Stderr.(*bytes.Buffer).String()}
	d.log = r.Stderr
	if err != nil {
		t.Fatalf("backup: %v\n%s", err, d.log)
	}
	return r.Report(t).Images[0]
}

// TestSettlingSnapshot: where it can't be shown that nobody rolls back, there is a second snapshot if somebody has the image open.
func TestSettlingSnapshot(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d, guest := newGuest(t, pool, "vm", rbdtest.Layout{Size: 8 << 20})
	pool.IO(t, "vm", "write -P 1 0 8M")
	newest := d.backup(t).Points[0]
	for _, c := range []struct {
		write, open bool
		another     bool
	}{
		{write: true, open: true},
		{open: true}, // what was written lies before the snapshot of which nothing else tells
		{open: true, another: true},
		{another: false},
	} {
		if !c.open {
			must(t, guest.Close())
		}
		if c.write {
			pool.IO(t, "vm", "write -P 2 1M 4K")
		}
		r := d.backup(t, "--verbose")
		d.wantIncrement(t, r, newest.Point)
		newest = r.Points[0]
		name := newest.Snapshot + "-settled"
		removed := strings.Contains(d.log, "snapshot="+name)
		if made := strings.Contains(d.log, anotherSnapshot); made != c.another || removed != c.another {
			t.Errorf("%+v: another snapshot: made %t, removed %t\n%s", c, made, removed, d.log)
		}
		if len(r.Warnings) > 0 {
			t.Errorf("%+v: warnings %q", c, r.Warnings)
		}
		d.checkSnapshot(t, newest)
	}
	d.check(t)
}

// TestLeftSettlingSnapshot: a second snapshot that a killed run has left is nobody's base.
func TestLeftSettlingSnapshot(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "vm", 8<<20)
	leave := func(name string) string {
		name += "-settled"
		pool.CreateSnapshot(t, "vm@"+name)
		pool.IO(t, "vm", "write -P 3 2M 4K")
		return name
	}
	removedBefore := func(name string) {
		t.Helper()
		if removed := strings.Index(d.log, "snapshot="+name); removed < 0 || removed > strings.Index(d.log, "found changes") {
			t.Errorf("%s was not removed before the new snapshot:\n%s", name, d.log)
		}
	}
	pool.IO(t, "vm", "write -P 1 0 8M")
	r, err := repo.Open(d.dir)
	must(t, err)
	stray := leave(r.SnapshotPrefix() + "20200102T030405Z")
	first := d.backup(t, "--verbose")
	d.wantFull(t, first, "first backup")
	removedBefore(stray)

	pool.IO(t, "vm", "write -P 2 1M 4K") // in no point, but in what is left
	stray = leave(first.Points[0].Snapshot)
	second := d.backup(t, "--verbose")
	d.wantIncrement(t, second, first.Points[0].Point)
	removedBefore(stray)
	d.checkSnapshot(t, second.Points[0])
	d.check(t)
}

// TestNoRoomToSettle: with no room for a second snapshot there is a point and a warning.
func TestNoRoomToSettle(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d, _ := newGuest(t, pool, "vm", rbdtest.Layout{Size: 8 << 20, Features: rbdtest.AllFeatures &^ rbdtest.Tracking})
	pool.IO(t, "vm", "write -P 1 0 8M")
	parent := d.backup(t).Points[0]
	pool.IO(t, "vm", "write -P 2 1M 4K")
	pool.RBD(t, "snap", "limit", "set", "--limit=2", pool.Spec("vm")) // the newest point's, and one more
	r := d.backup(t)
	d.wantIncrement(t, r, parent.Point)
	const warning = "can't make another snapshot"
	if len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], warning) || !strings.Contains(d.log, warning) {
		t.Errorf("warnings %q, want %q alone, in the log too:\n%s", r.Warnings, warning, d.log)
	}
	d.checkSnapshot(t, r.Points[0])
	d.check(t)
}
