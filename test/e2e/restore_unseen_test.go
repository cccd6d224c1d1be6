package e2e

import (
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

// TestRestoreOverUnseenObjects: after a rollback to a snapshot without an object map the head's map has no objects, and librbd
// reads zeroes. What is behind them comes back where an object is written to, however little, and everywhere when the map is
// repaired: a restored image must not have it. Until the map is repaired, nothing is restored there.
func TestRestoreOverUnseenObjects(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	for name, c := range map[string]struct {
		option string
		lose   bool // the newest point's snapshot
	}{
		"diff":      {option: "--in-place"},
		"compare":   {option: "--in-place", lose: true},
		"overwrite": {option: "--overwrite"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDisk(t, pool, "vm-"+name, 16<<20, "--image-feature=layering,exclusive-lock")
			pool.IO(t, d.image, "write -P 1 0 4K")
			p := d.backup(t).Points[0]
			d.loseSight(t, p, c.lose)
			rebuild := []string{"object-map", "rebuild", pool.Spec(d.image)}
			d.wantRefused(t, "repair it first: rbd "+strings.Join(rebuild, " "), d.restoreArgs(p.Point, d.target(d.image), c.option))
			pool.RBD(t, append(rebuild, "--no-progress")...)
			d.restore(t, p.Point, d.target(d.image), c.option)
			d.wantImage(t, d.image, d.truth[p.File])
		})
	}
}

// loseSight writes what librbd does not see afterwards.
func (d *disk) loseSight(t *testing.T, p status.Point, lose bool) {
	t.Helper()
	spec := d.pool.Spec(d.image)
	d.pool.IO(t, d.image, "write -P 2 4K 9M")
	d.pool.CreateSnapshot(t, d.image+"@old")
	d.pool.RBD(t, "feature", "enable", spec, "object-map", "fast-diff")
	d.pool.RBD(t, "object-map", "rebuild", "--no-progress", spec)
	d.pool.Rollback(t, d.image+"@old")
	if lose {
		d.pool.RemoveSnapshot(t, d.image+"@"+p.Snapshot)
	}
}
