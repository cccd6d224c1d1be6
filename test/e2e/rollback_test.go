package e2e

import (
	"bufio"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
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

	ended := startSlow(t, pool, "snap", "rollback", pool.Spec("vm@old"))
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

// startSlow starts an rbd command that shows its progress, one object at a time, and returns when that has begun. The channel is
// closed when it has ended.
func startSlow(t *testing.T, pool *cephtest.Pool, args ...string) (ended <-chan struct{}) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "rbd", append([]string{"--conf", pool.Conf, "--rbd-concurrent-management-ops=1"}, args...)...)
	stderr, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	progress := bufio.NewReader(stderr)
	if _, err := progress.ReadString('%'); err != nil {
		t.Fatalf("rbd %v: %v", args, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(io.Discard, progress) // Wait would close the pipe under it
		if err := c.Wait(); err != nil {
			t.Errorf("rbd %v: %v", args, err)
		}
	}()
	return done
}

// TestUnseenObjects: librbd gives the head a map without any object when it rolls back to a snapshot whose map is
// invalid, and reads zeroes. When the map is repaired, in whatever way, the data are back, though nothing was written.
func TestUnseenObjects(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	for name, c := range map[string]struct {
		repair func(t *testing.T, d *disk, newest status.Point)
		full   bool // nothing tells any more what the point was read by
	}{
		"rebuilt": {repair: admin("object-map rebuild --no-progress %s")},
		// An object that the map knows again by a write has all its old data behind that.
		"written":                      {repair: writes("write -P 5 0 4K", "write -P 6 5M 4K")},
		"rebuilt with newest snapshot": {repair: all(admin("object-map rebuild --no-progress %s"), rebuildNewest), full: true},
		"without map":                  {repair: admin("feature disable %s object-map fast-diff"), full: true},
		"older snapshot removed":       {repair: admin("snap rm --no-progress %s@old", "object-map rebuild --no-progress %s")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			image := "vm-" + strings.ReplaceAll(name, " ", "-")
			d := newDisk(t, pool, image, 16<<20, "--image-feature=layering,exclusive-lock")
			pool.IO(t, image, "write -P 1 0 9M")
			pool.CreateSnapshot(t, image+"@old")
			pool.RBD(t, "feature", "enable", pool.Spec(image), "object-map", "fast-diff")
			pool.RBD(t, "object-map", "rebuild", "--no-progress", pool.Spec(image))
			pool.Rollback(t, image+"@old")
			parent := d.backup(t).Points[0]
			c.repair(t, d, parent)
			r := d.backup(t)
			if c.full {
				d.wantFull(t, r, "was read by")
			} else {
				d.wantIncrement(t, r, parent.Point)
			}
			d.check(t)
		})
	}
}

// TestBackupDuringShrink: like a rollback, a shrink goes on in snapshots that are made after it has begun; so does the first part of a
// rollback to a smaller snapshot.
func TestBackupDuringShrink(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	for name, args := range map[string][]string{
		"resize":   {"resize", "--allow-shrink", "--size=16M"},
		"rollback": {"snap", "rollback"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			image := "vm-" + name
			d := newDisk(t, pool, image, 16<<20, "--object-size=4K")
			pool.IO(t, image, "write -P 1 0 16M")
			pool.CreateSnapshot(t, image+"@old")
			pool.RBD(t, "resize", "--no-progress", "--size=48M", pool.Spec(image))
			pool.IO(t, image, "write -P 2 0 48M")
			parent := d.backup(t).Points[0]

			spec := pool.Spec(image)
			if name == "rollback" {
				spec += "@old"
			}
			ended := startSlow(t, pool, append(args, spec)...)
			d.wantIncrement(t, d.run(t, "--", image).Images[0], parent.Point)
			<-ended
			points := list(t, d.dir)[0].Points
			during := points[len(points)-1]
			d.truth[during.File] = d.contentAt(t, during.Snapshot)
			d.wantIncrement(t, d.backup(t), during.Point)
			d.check(t)
		})
	}
}
