package e2e

import (
	"bufio"
	"io"
	"os/exec"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
)

// TestBackupDuringRollback: librbd's rollback goes on writing into snapshots that are made after it has begun.
func TestBackupDuringRollback(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "vm", 64<<20, "--object-size=4K") // many objects: it takes seconds
	pool.IO(t, "vm", "write -P 1 0 64M")
	pool.CreateSnapshot(t, "vm@old")
	pool.IO(t, "vm", "write -P 2 0 64M")
	parent := d.backup(t).Points[0]

	ended := startRollback(t, pool, "vm@old")
	d.wantIncrement(t, d.run(t, "--", "vm").Images[0], parent.Point)
	select {
	case <-ended:
		t.Error("the rollback was over before the backup")
	default:
	}
	<-ended
	// Now that nothing changes any more, the snapshot tells the truth about the point.
	points := list(t, d.dir)[0].Points
	during := points[len(points)-1]
	d.truth[during.File] = d.contentAt(t, during.Snapshot)
	d.wantIncrement(t, d.backup(t), during.Point)
	d.check(t)
}

// startRollback rolls back and returns when that has begun. The channel is closed when it has ended.
func startRollback(t *testing.T, pool *cephtest.Pool, snapshot string) (ended <-chan struct{}) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "rbd", "--conf", pool.Conf, "--rbd-concurrent-management-ops=1", "snap", "rollback",
		pool.Spec(snapshot))
	stderr, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	progress := bufio.NewReader(stderr)
	if _, err := progress.ReadString('%'); err != nil {
		t.Fatalf("rollback: %v", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(io.Discard, progress) // Wait would close the pipe under it
		if err := c.Wait(); err != nil {
			t.Errorf("rollback: %v", err)
		}
	}()
	return done
}

// TestUnseenObjects: librbd gives the head a map without any object when it rolls back to a snapshot whose map is
// invalid, and reads zeroes. When the map is rebuilt, the data are back, though nothing was written.
func TestUnseenObjects(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "vm", 16<<20, "--image-feature=layering,exclusive-lock")
	pool.IO(t, "vm", "write -P 1 0 9M")
	pool.CreateSnapshot(t, "vm@old")
	pool.RBD(t, "feature", "enable", pool.Spec("vm"), "object-map", "fast-diff")
	pool.RBD(t, "object-map", "rebuild", "--no-progress", pool.Spec("vm"))
	pool.Rollback(t, "vm@old")
	parent := d.backup(t).Points[0].Point
	pool.RBD(t, "object-map", "rebuild", "--no-progress", pool.Spec("vm"))
	d.wantIncrement(t, d.backup(t), parent)
	d.check(t)
}
