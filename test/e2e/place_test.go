package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/programtest"
)

// TestRename renames an image, whose folder goes with it, and gives its old name to another, which gets a folder of its own.
func TestRename(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "old", diskSize)
	pool.IO(t, "old", "write -P 1 0 1M")
	first := d.backup(t).Points[0]

	pool.Rename(t, "old", "new")
	pool.IO(t, "new", "write -P 2 1M 64k")
	pool.CreateImage(t, "old", diskSize)
	pool.IO(t, "old", "write -P 3 2M 64k")

	d.image = "new"
	second := d.backup(t)
	d.wantIncrement(t, second, first.Point)
	d.image = "old"
	other := d.backup(t)
	d.wantFull(t, other, "first backup of this image")
	d.check(t)
	if a, b := filepath.Dir(first.File), filepath.Dir(second.Points[0].File); a != b {
		t.Errorf("the renamed image went from folder %s to %s", a, b)
	}
	if a, b := filepath.Dir(first.File), filepath.Dir(other.Points[0].File); a == b {
		t.Errorf("two images share folder %s", a)
	}

	// Both go on where they are.
	for image, newest := range map[string]string{"new": second.Points[0].File, "old": other.Points[0].File} {
		d.image = image
		r := d.backup(t)
		if got := r.Points[0]; got.Kind != "incremental" || filepath.Dir(got.File) != filepath.Dir(newest) {
			t.Errorf("image %s: %s point %s behind %s", image, got.Kind, got.File, newest)
		}
	}
	d.check(t)
}

// TestPoolMadeAnew removes a pool and makes it anew under its name: its images are others, whatever they are called.
func TestPoolMadeAnew(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "vm", diskSize)
	pool.IO(t, "vm", "write -P 1 0 1M")
	first := d.backup(t).Points[0]
	file := pool.Export(t, "vm")

	pool.Ceph(t, "osd", "pool", "delete", pool.Name, pool.Name, "--yes-i-really-really-mean-it")
	pool.Ceph(t, "osd", "pool", "create", pool.Name, "16")
	pool.RBD(t, "pool", "init", pool.Name)
	pool.ImportFile(t, file, "vm")
	pool.CreateSnapshot(t, "vm@"+first.Snapshot)

	r := d.backup(t)
	d.wantFull(t, r, "the pool was made anew")
	pool.IO(t, "vm", "write -P 2 1M 64k")
	d.wantIncrement(t, d.backup(t), r.Points[0].Point)
	d.check(t)
}

// TestOtherSource holds a repository against another pool, namespace and cluster than its own: one line, nothing done.
func TestOtherSource(t *testing.T) {
	t.Parallel()
	cluster := cephtest.Require(t)
	pool, other := cluster.Pool(t), cluster.Pool(t)
	namespace := pool.CreateNamespace(t, "ns")
	d := newDisk(t, pool, "vm", diskSize)
	for _, p := range []*cephtest.Pool{other, namespace} {
		p.CreateImage(t, "vm", diskSize)
	}
	d.backup(t)
	before := tree(t, d.dir)
	for _, p := range []*cephtest.Pool{other, namespace} {
		refused(t, p, d.dir)
	}
	if after := tree(t, d.dir); after != before {
		t.Errorf("repository before:\n%s\nafter:\n%s", before, after)
	}

	marker := filepath.Join(d.dir, "rbd2qcow2.json")
	b, err := os.ReadFile(marker)
	if err != nil {
		t.Fatal(err)
	}
	b = []byte(strings.ReplaceAll(string(b), cluster.FSID, "00000000-0000-4000-8000-000000000000"))
	if err := os.WriteFile(marker, b, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, pool, d.dir)
}

func refused(t *testing.T, pool *cephtest.Pool, dir string) {
	t.Helper()
	r := program.Run(t, programtest.BackupArgs(pool, dir)...)
	if r.Code != 1 || strings.Count(r.Stderr, "\n") != 1 || !strings.Contains(r.Stderr, "belongs to") {
		t.Errorf("backup of %s: exit status %d, want 1 and one line\n%s", pool, r.Code, r.Stderr)
	}
	if s := pool.Snapshots(t, "vm"); len(s) > 1 {
		t.Errorf("snapshots: %+v", s)
	}
}

// TestTwoRepositories backs up one pool into two repositories: each has a snapshot of its own and leaves the other's alone.
func TestTwoRepositories(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	a := newDisk(t, pool, "vm", diskSize)
	b := &disk{pool: pool, image: "vm", dir: program.Init(t), truth: map[string]content{}}
	pool.IO(t, "vm", "write -P 1 0 1M")
	firstA, firstB := a.backup(t).Points[0], b.backup(t).Points[0]
	pool.IO(t, "vm", "write -P 2 0 64k")
	secondA := a.backup(t)
	a.wantIncrement(t, secondA, firstA.Point)
	b.checkSnapshot(t, firstB)
	pool.IO(t, "vm", "write -P 3 64k 64k")
	secondB := b.backup(t)
	b.wantIncrement(t, secondB, firstB.Point)
	a.checkSnapshot(t, secondA.Points[0])
	b.checkSnapshot(t, secondB.Points[0])
	a.check(t)
	b.check(t)
	if n := len(pool.Snapshots(t, "vm")); n != 2 {
		t.Errorf("%d snapshots, want one of each repository", n)
	}
}

// tree lists a directory with sizes, modes and times.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var lines strings.Builder
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(&lines, path, info.Mode(), info.Size(), info.ModTime())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines.String()
}
