package e2e

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/programtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

// restoreArgs are the arguments of a restore.
func (d *disk) restoreArgs(point repo.PointName, target string, more ...string) []string {
	args := []string{"restore", "--conf", d.pool.Conf, "--timeout", "20s"}
	return append(append(args, more...), d.dir, d.folder(point), target)
}

// folder names a point by its folder, which has but one name.
func (d *disk) folder(point repo.PointName) string {
	for file := range d.truth {
		if base, ok := strings.CutSuffix(filepath.Base(file), "@"+string(point)+".qcow2"); ok {
			return base + "@" + string(point)
		}
	}
	return d.image + "@" + string(point)
}

// restore restores a point. It must succeed.
func (d *disk) restore(t *testing.T, point repo.PointName, target string, more ...string) programtest.Result {
	t.Helper()
	r := program.Run(t, d.restoreArgs(point, target, more...)...)
	if r.Code != 0 {
		t.Fatalf("restore %s to %s %v: exit status %d\n%s", point, target, more, r.Code, r.Stderr)
	}
	return r
}

func (d *disk) target(image string) string { return "rbd:" + d.pool.Spec(image) }

// checkRestores restores points to every kind of target, new and full of garbage, and compares them with the truth.
func (d *disk) checkRestores(t *testing.T, points ...status.Point) {
	t.Helper()
	garbage := filepath.Join(t.TempDir(), "garbage.raw")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("garbage!", 1<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	old := d.image + "-old"
	d.pool.ImportFile(t, garbage, old)
	for _, p := range points {
		want, ok := d.truth[p.File]
		if !ok {
			t.Fatalf("nothing is known of %s", p.File)
		}
		d.checkFileRestores(t, p, want)
		fresh := d.image + "-restored"
		d.restore(t, p.Point, d.target(fresh))
		d.wantImage(t, fresh, want)
		d.wantThin(t, p, fresh)
		d.pool.Remove(t, fresh)
		d.restore(t, p.Point, d.target(old), "--overwrite")
		d.wantImage(t, old, want)
	}
	for _, p := range points { // each time over what another one left
		d.restore(t, p.Point, d.target(old), "--in-place", "--no-safety-snapshot")
		d.wantImage(t, old, d.truth[p.File])
	}
	d.pool.Remove(t, old)
}

func (d *disk) checkFileRestores(t *testing.T, p status.Point, want content) {
	t.Helper()
	raw, alone := filepath.Join(t.TempDir(), "restored.raw"), filepath.Join(t.TempDir(), "restored.qcow2")
	d.restore(t, p.Point, raw)
	if info, err := os.Stat(raw); err != nil || info.Size() != want.size {
		t.Errorf("raw file of %s: %v, %v, want %d bytes", p.File, info, err, want.size)
	}
	wantFile(t, raw, want)
	d.restore(t, p.Point, raw, "--overwrite", "--parallel=1")
	wantFile(t, raw, want)
	d.restore(t, p.Point, alone, "--compress", []string{"none", "zlib", "zstd"}[rand.IntN(3)])
	qemutest.Check(t, alone)
	if backing := qemutest.Info(t, alone).BackingFile; backing != "" {
		t.Errorf("%s needs %q", alone, backing)
	}
	wantFile(t, qemutest.Convert(t, alone), want)
	wantSparse(t, raw, alone)
	d.wantStream(t, p, want)
}

// wantStream compares what a restore writes to standard output.
func (d *disk) wantStream(t *testing.T, p status.Point, want content) {
	t.Helper()
	c := exec.CommandContext(t.Context(), program.Path, d.restoreArgs(p.Point, "-")...)
	hash := sha256.New()
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(hash, out)
	if err != nil || c.Wait() != nil {
		t.Fatalf("stream of %s: %v, %v", p.File, err, c.ProcessState)
	}
	if got := (content{n, [sha256.Size]byte(hash.Sum(nil))}); got != want {
		t.Errorf("stream of %s is %+v, want %+v", p.File, got, want)
	}
}

func wantFile(t *testing.T, file string, want content) {
	t.Helper()
	if got := readContent(t, file, want.size); got != want {
		t.Errorf("%s has %x, want %x", file, got.sha256, want.sha256)
	}
}

// wantImage compares an image of the pool.
func (d *disk) wantImage(t *testing.T, image string, want content) {
	t.Helper()
	other := &disk{pool: d.pool, image: image}
	if got := other.contentAt(t, ""); got != want {
		t.Errorf("image %s is %+v, want %+v", image, got, want)
	}
	if value, err := d.pool.TryRBD("image-meta", "get", d.pool.Spec(image), repo.UnfinishedKey); err == nil {
		t.Errorf("image %s is marked: %s", image, value)
	}
}

// wantThin compares the objects of a restored image with those of the snapshot that its point was read from, if that is
// there still and has no parent.
func (d *disk) wantThin(t *testing.T, p status.Point, image string) {
	t.Helper()
	snapshot := d.image + "@" + p.Snapshot
	if _, err := d.pool.TryRBD("info", d.pool.Spec(snapshot)); err != nil {
		return
	}
	if now, then := d.pool.DataBytes(t, image), d.pool.DataBytes(t, snapshot); now > then {
		t.Errorf("the image restored from %s has %d bytes of data, the original %d", p.File, now, then)
	}
}

// TestRestoreLayout: a new image is made as the old one was, or as asked for.
func TestRestoreLayout(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	dataPool := pool.DataPool(t)
	d := newDisk(t, pool, "vm", 5<<20+1, "--object-size=64K", "--stripe-unit=16K", "--stripe-count=3", "--data-pool="+dataPool,
		"--image-feature=layering,exclusive-lock")
	pool.IO(t, "vm", "write -P 1 0 3M")
	pool.SetMetadata(t, "vm", "owner", "somebody")
	p := d.backup(t).Points[0]
	d.restore(t, p.Point, d.target("same"))
	d.wantImage(t, "same", d.truth[p.File])
	was, is := pool.Info(t, "vm"), pool.Info(t, "same")
	if is.Size != was.Size || is.ObjectSize != was.ObjectSize || is.DataPool != dataPool || fmt.Sprint(is.Features) != fmt.Sprint(was.Features) {
		t.Errorf("restored as %+v, was %+v", is, was)
	}
	if owner := strings.TrimSpace(string(pool.RBD(t, "image-meta", "get", pool.Spec("same"), "owner"))); owner != "somebody" {
		t.Errorf("metadata: owner %q", owner)
	}
	d.restore(t, p.Point, d.target("other"), "--object-size=1M", "--data-pool="+pool.Name, "--image-feature=layering")
	d.wantImage(t, "other", d.truth[p.File])
	if other := pool.Info(t, "other"); other.ObjectSize != 1<<20 || other.DataPool != "" || fmt.Sprint(other.Features) != "[layering striping]" {
		t.Errorf("restored as %+v", other)
	}
	// By a user who may do it, and by one who may not.
	user, keyring := pool.RestoreUser(t)
	d.restore(t, p.Point, d.target("mine"), "--id", user, "--keyring", keyring, "--data-pool="+pool.Name)
	r := program.Run(t, d.restoreArgs(p.Point, d.target("forbidden"), "--id", pool.User, "--keyring", pool.Keyring)...)
	if r.Code != 1 || !strings.Contains(r.Stderr, "permission denied") {
		t.Errorf("without permission: exit status %d\n%s", r.Code, r.Stderr)
	}
}
