package e2e

import (
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
)

// TestFlattenedClone backs up clones that are flattened: the last snapshot that has a parent goes, and nothing stays in the image's trash.
func TestFlattenedClone(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	other := cephtest.Require(t).Pool(t)
	for _, test := range []struct {
		name, format string
		parents      *cephtest.Pool
	}{{"v1-same", "1", pool}, {"v2-same", "2", pool}, {"v1-other", "1", other}, {"v2-other", "2", other}} {
		parent := "parent-" + test.name
		test.parents.CreateImage(t, parent, 8<<20)
		test.parents.IO(t, parent, "write -P 1 0 4M")
		test.parents.CreateSnapshot(t, parent+"@s")
		test.parents.RBD(t, "snap", "protect", test.parents.Spec(parent+"@s"))
		pool.RBD(t, "clone", "--image-feature", "layering", "--rbd-default-clone-format", test.format, test.parents.Spec(parent+"@s"), pool.Spec(test.name))
	}
	pool.GrantRead(t, other.Name)
	pool.GrantClones(t, pool.Name)
	pool.GrantClones(t, other.Name)
	for _, name := range []string{"v1-same", "v2-same", "v1-other", "v2-other"} {
		d := &disk{pool: pool, image: name, dir: program.Init(t), truth: map[string]content{}}
		d.backup(t)
		pool.Flatten(t, name)
		d.backup(t)
		pool.IO(t, name, "write -P 2 1M 64k")
		r := d.backup(t)
		if len(r.Warnings) > 0 {
			t.Errorf("%s: warnings %q", name, r.Warnings)
		}
		d.checkSnapshot(t, r.Points[0])
		if snapshots := d.snapshots(t); len(snapshots) != 1 {
			t.Errorf("%s: snapshots %q", name, snapshots)
		}
		d.check(t)
	}
}
