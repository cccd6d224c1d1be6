package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
	"github.com/rbd2qcow2/rbd2qcow2/internal/verify"
)

// verify verifies the repository, with that exit status.
func (d *disk) verify(t *testing.T, code int, more ...string) (report verify.Report) {
	t.Helper()
	r := program.Run(t, append([]string{"verify", "--json", d.dir}, more...)...)
	d.log = r.Stderr
	if r.Code != code {
		t.Fatalf("verify %v: exit status %d, want %d\n%s%s", more, r.Code, code, r.Stdout, r.Stderr)
	}
	if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil {
		t.Fatalf("report: %v\n%s\n%s", err, r.Stdout, r.Stderr)
	}
	return report
}

// flip flips a bit of the first run of these bytes in a point's file, at that mtime: as a disk does that rots.
func (d *disk) flip(t *testing.T, p status.Point, of byte) {
	t.Helper()
	name := d.path(p)
	info, err := os.Stat(name)
	must(t, err)
	b, err := os.ReadFile(name)
	must(t, err)
	at := bytes.Index(b, bytes.Repeat([]byte{of}, 4096))
	if at < 0 {
		t.Fatalf("%s has no bytes %#x", name, of)
	}
	b[at+100] ^= 1
	must(t, os.Chmod(name, 0o600))
	must(t, os.WriteFile(name, b, 0o600))
	must(t, os.Chmod(name, info.Mode()))
	must(t, os.Chtimes(name, info.ModTime(), info.ModTime()))
}

// TestVerify finds a bit that has rotted in the middle of a chain, and keeps everybody from relying on it.
func TestVerify(t *testing.T) {
	t.Parallel()
	d := newDisk(t, cephtest.Require(t).Pool(t), "vm", 8<<20)
	var p []status.Point
	for _, writes := range []string{"write -P 1 0 1M", "write -P 2 64k 256k", "write -P 3 0 128k", "write -P 4 4M 64k"} {
		d.pool.IO(t, "vm", writes)
		p = append(p, d.backup(t, "--compress", "none", "--cluster-size", "64K").Points...)
	}
	for _, point := range d.verify(t, 0).Images[0].Points {
		if point.Verdict != repo.Proved || point.Status != verify.Whole {
			t.Errorf("point %s: %+v", point.Point, point)
		}
	}
	for _, point := range list(t, d.dir)[0].Points {
		if point.VerifiedAt == nil || point.Verdict != repo.Proved {
			t.Errorf("list does not know that %s was verified", point.Point)
		}
	}
	d.flip(t, p[1], 2) // in the part that the third point does not hide
	report := d.verify(t, 4)
	found := report.Images[0].Points[1]
	want := verify.Damage{What: "cluster", Start: 64 << 10, Length: 64 << 10}
	if len(found.Damages) != 1 || found.Verdict != repo.FoundDamaged || found.Damages[0].Start != want.Start || found.Damages[0].Length != want.Length {
		t.Fatalf("found %+v", found)
	}
	if reaches := found.Damages[0].Reaches; len(reaches) != 0 {
		t.Errorf("the third point hides it, but it reaches %v", reaches)
	}
}

// TestVerifyMarks has restores and backups heed what a verification has found.
func TestVerifyMarks(t *testing.T) {
	t.Parallel()
	d := newDisk(t, cephtest.Require(t).Pool(t), "vm", 8<<20)
	d.pool.IO(t, "vm", "write -P 1 0 1M")
	full := d.backup(t, "--compress", "none").Points[0]
	d.pool.IO(t, "vm", "write -P 2 4M 256k")
	next := d.backup(t).Points[0]
	d.flip(t, full, 1)
	r := program.Run(t, "verify", d.dir, "vm@"+string(next.Point))
	if lines := strings.Count(r.Stdout, "\n"); r.Code != 4 || lines != 1 || !strings.Contains(r.Stdout, "vm@"+string(full.Point)+": damaged: guest bytes 0 to ") ||
		!strings.Contains(r.Stdout, "reaches "+string(next.Point)) {
		t.Fatalf("exit status %d:\n%s", r.Code, r.Stdout)
	}
	if got := list(t, d.dir)[0].Points[0].Verdict; got != repo.FoundDamaged {
		t.Errorf("list says %q", got)
	}
	target := filepath.Join(t.TempDir(), "raw")
	r = program.Run(t, "restore", d.dir, "vm", target)
	wantComplaint(t, r, 1, "--force restores it all the same")
	r = program.Run(t, "restore", "--force", d.dir, "vm", target)
	wantComplaint(t, r, 1, "other content than was stored")
	if r = program.Run(t, "restore", "--force", "--digest=false", d.dir, "vm", target); r.Code != 0 {
		t.Errorf("exit status %d\n%s", r.Code, r.Stderr)
	}
	made := d.backup(t)
	if p := made.Points[0]; p.Kind != "full" || !strings.Contains(made.Reason, "was found damaged") {
		t.Errorf("the next point is %s: %s", p.Kind, made.Reason)
	}
	d.forget(full, next)
	d.verify(t, 4)
	d.verify(t, 0, "vm@"+string(made.Points[0].Point))
	d.check(t)
}

// TestVerifyChanged tells what another program has written from what has rotted.
func TestVerifyChanged(t *testing.T) {
	t.Parallel()
	d := newDisk(t, cephtest.Require(t).Pool(t), "vm", 8<<20)
	d.pool.IO(t, "vm", "write -P 1 0 1M")
	p := d.backup(t, "--compress", "none").Points[0]
	must(t, os.Chmod(d.path(p), 0o600))
	qemutest.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 9 0 64k", d.path(p))
	later := p.Time.Add(time.Hour)
	must(t, os.Chtimes(d.path(p), later, later))
	if got := d.verify(t, 4).Images[0].Points[0]; got.Verdict != repo.FoundChanged {
		t.Errorf("found %+v", got)
	}
}

// TestVerifySource compares newest points with their snapshots.
func TestVerifySource(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "vm", 32<<20)
	d.month(t, 3)
	source := []string{"--source", pool.String(), "--id", pool.User, "--keyring", pool.Keyring}
	for _, p := range d.verify(t, 0, source...).Images[0].Points {
		if p.Verdict != repo.Proved || p.Verified == 0 {
			t.Errorf("point %+v", p)
		}
	}
	newest := list(t, d.dir)[0].Points
	snapshot := newest[len(newest)-1].Snapshot
	pool.RBD(t, "snap", "rm", pool.Spec("vm@"+snapshot))
	d.verify(t, 1, source...)
	if !strings.Contains(d.log, "is gone") {
		t.Errorf("log:\n%s", d.log)
	}
}
