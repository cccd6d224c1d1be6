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
	restore := func(image string, more ...string) (int, string) {
		r := program.Run(t, d.restoreArgs(p.Point, "rbd:"+other.Spec(image), append(more, "--quiet")...)...)
		return r.Code, r.Stderr
	}
	// Two images are too much, but the monitor notices late. QEMU's tools must not write here: on a full pool they hang.
	code, said, image := 0, "", ""
	for i := 0; code == 0 && i < 400; i++ {
		image = []string{"one", "two"}[i%2]
		code, said = restore(image, "--overwrite")
	}
	if code != 1 || !strings.Contains(said, "the quota of the pool is reached") || strings.Count(said, "\n") != 1 {
		t.Fatalf("exit status %d:\n%s", code, said)
	}
	quota("0")
	mode := "--overwrite"
	if _, err := other.TryRBD("image-meta", "get", other.Spec(image), repo.UnfinishedKey); err == nil {
		mode = "--resume"
	}
	for i := 0; i < 200; i++ {
		if code, said = restore(image, mode); code == 0 {
			break
		}
	}
	if code != 0 {
		t.Fatalf("with room again: exit status %d:\n%s", code, said)
	}
	(&disk{pool: other}).wantImage(t, image, d.truth[p.File])
}
