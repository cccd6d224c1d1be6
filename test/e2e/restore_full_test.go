package e2e

import (
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// TestRestoreFullPool: a pool that has no room ends a restore at once, before it has begun or in the middle, in one line.
func TestRestoreFullPool(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "vm", 32<<20)
	pool.IO(t, "vm", "write -P 1 0 32M")
	p := d.backup(t).Points[0]
	other := cephtest.Require(t).Pool(t)
	quota := func(bytes string) { other.Ceph(t, "osd", "pool", "set-quota", other.Name, "max_bytes", bytes) }
	quota("40M")
	target := "rbd:" + other.Spec("new")
	restore := func(more ...string) (int, string) {
		r := program.Run(t, d.restoreArgs(p.Point, target, append(more, "--quiet")...)...)
		return r.Code, r.Stderr
	}
	// The monitor notices late that there is too much.
	code, said := 0, ""
	for i := 0; code == 0 && i < 200; i++ {
		code, said = restore("--overwrite")
		other.IO(t, "new", "discard 0 32M")
		if _, err := other.TryRBD("create", "--size=32M", other.Spec("filler")); err == nil {
			_, _ = other.TryIO("filler", "write -P 2 0 32M")
		}
	}
	if code != 1 || !strings.Contains(said, "the quota of the pool is reached") || strings.Count(said, "\n") != 1 {
		t.Fatalf("exit status %d:\n%s", code, said)
	}
	quota("0")
	mode := "--overwrite"
	if _, err := other.TryRBD("image-meta", "get", other.Spec("new"), repo.UnfinishedKey); err == nil {
		mode = "--resume"
	}
	for i := 0; i < 200; i++ {
		if code, said = restore(mode); code == 0 {
			break
		}
	}
	if code != 0 {
		t.Fatalf("with room again: exit status %d:\n%s", code, said)
	}
	(&disk{pool: other}).wantImage(t, "new", d.truth[p.File])
}
