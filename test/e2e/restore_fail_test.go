package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbdtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// wantRefused fails the test unless a restore fails with one line that says so much.
func (d *disk) wantRefused(t *testing.T, said string, args []string) {
	t.Helper()
	r := program.Run(t, append(args, "--quiet")...)
	if r.Code != 1 || !strings.Contains(r.Stderr, said) || strings.Count(r.Stderr, "\n") != 1 {
		t.Errorf("%v: exit status %d, want 1 and one line with %q:\n%s", args, r.Code, said, r.Stderr)
	}
}

// wantNoFiles fails the test if there is anything in a folder.
func wantNoFiles(t *testing.T, dir string) {
	t.Helper()
	if files, err := os.ReadDir(dir); err != nil || len(files) > 0 {
		t.Errorf("%s has %v, %v", dir, files, err)
	}
}

// TestRestoreDamaged: a chain that is not what it was gives no disk that looks whole.
func TestRestoreDamaged(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "vm", 8<<20)
	pool.IO(t, "vm", "write -P 1 0 8M")
	base := d.backup(t, "--compress=none").Points[0]
	pool.IO(t, "vm", "write -P 2 1M 64K")
	newest := d.backup(t).Points[0]
	out := t.TempDir()
	flip := func() {
		b, err := os.ReadFile(d.path(base))
		must(t, err)
		b[5<<20+100] ^= 1
		must(t, os.Chmod(d.path(base), 0o600))
		must(t, os.WriteFile(d.path(base), b, 0o600))
		must(t, os.Chtimes(d.path(base), base.Time, base.Time))
	}
	flip()
	for _, file := range []string{"disk.raw", "disk.qcow2"} {
		d.wantRefused(t, "corrupt cluster", d.restoreArgs(newest.Point, filepath.Join(out, file)))
	}
	wantNoFiles(t, out)
	d.wantRefused(t, "is marked as unfinished", d.restoreArgs(newest.Point, d.target("new")))
	d.wantRefused(t, "--resume goes on, --overwrite starts over", d.restoreArgs(newest.Point, d.target("new")))
	r := program.Run(t, d.restoreArgs(newest.Point, filepath.Join(out, "unproved.raw"), "--digest=false")...)
	if r.Code != 0 {
		t.Errorf("without a look at digests: %s", r.Stderr)
	}
	must(t, os.Remove(filepath.Join(out, "unproved.raw")))
	flip()
	d.restore(t, newest.Point, d.target("new"), "--resume")
	d.wantImage(t, "new", d.truth[newest.File])

	must(t, os.Rename(d.path(base), d.path(base)+".gone"))
	d.wantRefused(t, "no such file", d.restoreArgs(newest.Point, filepath.Join(out, "disk.raw")))
	d.wantRefused(t, "there is no", d.restoreArgs("20200101T000000Z", filepath.Join(out, "disk.raw")))
	wantNoFiles(t, out)
}

// TestRestoreRefuses: what exists, and what is in use, stays as it is.
func TestRestoreRefuses(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d, guest := newGuest(t, pool, "vm", rbdtest.Layout{Size: 4 << 20, Order: 20})
	pool.IO(t, "vm", "write -P 1 0 4M")
	p := d.backup(t).Points[0]
	now := d.contentAt(t, "")
	file := filepath.Join(t.TempDir(), "exists")
	must(t, os.WriteFile(file, []byte("mine"), 0o600))
	d.wantRefused(t, "--overwrite replaces it", d.restoreArgs(p.Point, file))
	lost := filepath.Join(t.TempDir(), "lost")
	must(t, os.Symlink("nothing", lost))
	d.wantRefused(t, "it is a symbolic link to nothing", d.restoreArgs(p.Point, lost))
	d.wantRefused(t, "it is a directory", d.restoreArgs(p.Point, filepath.Dir(file), "--overwrite"))
	d.wantRefused(t, "that is a point of the repository", d.restoreArgs(p.Point, d.path(p), "--overwrite"))
	d.wantRefused(t, "no such file", d.restoreArgs(p.Point, "/nowhere/disk.raw"))
	d.wantRefused(t, "not found", d.restoreArgs(p.Point, "rbd:nosuchpool/vm"))
	d.wantRefused(t, "exists already", d.restoreArgs(p.Point, d.target("vm")))
	d.wantRefused(t, "it is in use, by", d.restoreArgs(p.Point, d.target("vm"), "--overwrite"))
	d.wantRefused(t, "it is in use, by", d.restoreArgs(p.Point, d.target("vm"), "--in-place"))
	must(t, guest.Close())
	d.wantRefused(t, "it has no mark", d.restoreArgs(p.Point, d.target("vm"), "--resume"))
	if d.contentAt(t, "") != now {
		t.Error("the image has changed")
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "mine" {
		t.Errorf("the file has %q, %v", b, err)
	}
	if len(pool.Images(t)) != 1 {
		t.Errorf("images %v", pool.Images(t))
	}
}

// TestRestoreInterrupted: an image that a restore was ended in is marked, is not backed up, and can be finished or started over.
func TestRestoreInterrupted(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "vm", 512<<20)
	noise := filepath.Join(t.TempDir(), "noise")
	must(t, os.WriteFile(noise, []byte(strings.Repeat("0123456789abcde\n", 1<<16)), 0o600))
	var writes []string
	for at := range 512 {
		writes = append(writes, fmt.Sprintf("write -s %s %dM 1M", noise, at))
	}
	pool.IO(t, "vm", writes...)
	pool.SetMetadata(t, "vm", "owner", "somebody")
	p := d.backup(t).Points[0]
	for name, c := range map[string]struct {
		signal syscall.Signal
		status int
		then   string
	}{
		"interrupted": {syscall.SIGINT, 130, "--resume"},
		"killed":      {syscall.SIGKILL, -1, "--resume"},
		"terminated":  {syscall.SIGTERM, 143, "--overwrite"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if status := d.interrupt(t, p.Point, name, c.signal); status != c.status {
				t.Fatalf("exit status %d, want %d: was it over before?", status, c.status)
			}
			if r := program.Run(t, "backup", "--conf", pool.Conf, pool.String(), program.Init(t), name); r.Code != 1 || !strings.Contains(r.Stderr, "not finished") {
				t.Errorf("backup of a marked image: exit status %d\n%s", r.Code, r.Stderr)
			}
			d.wantRefused(t, "it is unfinished", d.restoreArgs(p.Point, d.target(name)))
			d.restore(t, p.Point, d.target(name), c.then, "--timeout=1m")
			d.wantImage(t, name, d.truth[p.File])
			if owner := strings.TrimSpace(string(pool.RBD(t, "image-meta", "get", pool.Spec(name), "owner"))); owner != "somebody" {
				t.Errorf("metadata: owner %q", owner)
			}
		})
	}
}

// interrupt restores to a new image, ends that in the middle, and gives the exit status.
func (d *disk) interrupt(t *testing.T, point repo.PointName, image string, signal syscall.Signal) int {
	t.Helper()
	c := program.Command(t.Context(), d.restoreArgs(point, d.target(image), "--parallel=1")...)
	must(t, c.Start())
	for {
		if out, err := d.pool.TryRBD("info", "--format=json", d.pool.Spec(image)); err == nil {
			var info struct {
				Size int64 `json:"size"`
			}
			must(t, json.Unmarshal(out, &info))
			if info.Size > 0 {
				break
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	must(t, c.Process.Signal(signal))
	_ = c.Wait()
	return c.ProcessState.ExitCode()
}

// TestRestoreInPlaceWritesLittle: of an image that has changed a little, little is written, to the newest and to an older point.
func TestRestoreInPlaceWritesLittle(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "vm", 1<<30)
	pool.IO(t, "vm", "write -P 1 0 96M", "write -P 2 512M 32M")
	older := d.backup(t).Points[0]
	var scattered []string
	for i := range 256 {
		scattered = append(scattered, fmt.Sprintf("write -P 3 %dK 4K", 300*i+i%7*4))
	}
	pool.IO(t, "vm", scattered...) // 1 MiB
	newest := d.backup(t).Points[0]
	for _, c := range []struct {
		name    string
		point   repo.PointName
		file    string
		differs int64
		before  func()
		method  string
	}{
		{"newest", newest.Point, newest.File, 256 * 4096, func() { pool.IO(t, "vm", repeat(scattered, "-P 3", "-P 9")...) }, "diff"},
		{"older", older.Point, older.File, 256 * 4096, func() {}, "diff"},
		{"by content", newest.Point, newest.File, 256 * 4096, func() {
			pool.RBD(t, "snap", "rm", "--no-progress", pool.Spec("vm@"+newest.Snapshot))
		}, "compare"},
	} {
		c.before()
		var report struct {
			Method   string `json:"method"`
			Snapshot string `json:"safety_snapshot"`
			Written  int64  `json:"written_bytes"`
		}
		r := d.restore(t, c.point, d.target("vm"), "--in-place", "--json")
		must(t, json.Unmarshal([]byte(r.Stdout), &report))
		if report.Method != c.method || report.Written > c.differs*13/10 || report.Written < c.differs {
			t.Errorf("%s: %+v, want method %s and about %d bytes written", c.name, report, c.method, c.differs)
		}
		d.wantImage(t, "vm", d.truth[c.file])
		if out, err := pool.TryRBD("info", report.Snapshot); err != nil {
			t.Errorf("%s: no safety snapshot %q: %s", c.name, report.Snapshot, out)
		}
	}
}

func repeat(commands []string, from, to string) []string {
	var again []string
	for _, c := range commands {
		again = append(again, strings.Replace(c, from, to, 1))
	}
	return again
}
