package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/programtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
	"github.com/rbd2qcow2/rbd2qcow2/internal/verify"
)

// keyFile makes the file of a key whose digits are all the same.
func keyFile(t *testing.T, digit string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "key")
	must(t, os.WriteFile(name, []byte(strings.Repeat(digit, 64)+"\n"), 0o600))
	return name
}

// TestDigestKey follows a repository that gets a key, and another one.
func TestDigestKey(t *testing.T) {
	t.Parallel()
	d := newDisk(t, cephtest.Require(t).Pool(t), "vm", 4<<20)
	key := []string{"--digest-key-file", keyFile(t, "a")}
	var p []status.Point
	backup := func(writes string, more ...string) {
		t.Helper()
		d.pool.IO(t, "vm", writes)
		p = append(p, d.backup(t, more...).Points...)
	}
	backup("write -P 1 0 2M")
	d.pool.IO(t, "vm", "write -P 2 1M 64k")
	r := d.backup(t, key...)
	d.wantFull(t, r, "made without the key")
	p = append(p, r.Points...)
	backup("write -P 3 1M 4k", key...)
	backup("write -P 4 0 4k", key...)
	backup("write -P 5 128k 4k", key...)

	for _, point := range d.verify(t, 3, key...).Images[0].Points {
		want, status := repo.Proved, verify.Whole
		if point.Point == p[0].Point {
			want, status = "", verify.Failed
		}
		if point.Verdict != want || point.Status != status {
			t.Errorf("point %s is %s, %s, want %s", point.Point, point.Status, point.Verdict, want)
		}
	}
	d.verify(t, 3) // without the key nothing is proved, and nothing is damaged
	for _, image := range list(t, d.dir) {
		for _, point := range image.Points {
			if point.State != repo.Good || point.Verdict == repo.FoundDamaged {
				t.Errorf("point %s is %s, %s", point.Point, point.State, point.Verdict)
			}
		}
	}

	d.wantNoKey(t, p)
	d.prune(t, 3, "--keep-last", "2")
	if d.wantPoints(t, p[1:]...); !strings.Contains(d.log, "--digest-key-file") {
		t.Errorf("prune without the key does not say so:\n%s", d.log)
	}
	d.prune(t, 0, append([]string{"--keep-last", "2"}, key...)...)
	d.wantPoints(t, p[3], p[4])
	d.verify(t, 0, key...)
	for _, point := range p[3:] {
		d.wantRestored(t, point, key...)
		qemutest.Check(t, d.path(point))
	}

	r = d.backup(t, "--digest-key-file", keyFile(t, "b"))
	d.wantFull(t, r, "with another key")
}

// wantRestored has a point of 4 MiB restored, as it was when it was made.
func (d *disk) wantRestored(t *testing.T, p status.Point, args ...string) {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	r := program.Run(t, append([]string{"restore", d.dir, d.image + "@" + string(p.Point), raw}, args...)...)
	if r.Code != 0 || readContent(t, raw, 4<<20) != d.truth[p.File] {
		t.Errorf("point %s: other content, or exit status %d\n%s", p.Point, r.Code, r.Stderr)
	}
}

// wantNoKey has done what needs the key, without it: each is refused in a line that tells what is missing, and nothing is changed.
func (d *disk) wantNoKey(t *testing.T, p []status.Point) {
	t.Helper()
	newest, raw := "vm@"+string(p[4].Point), filepath.Join(t.TempDir(), "raw")
	other := []string{"--digest-key-file", keyFile(t, "b")}
	for said, args := range map[string][]string{
		"none is given":           {"restore", d.dir, newest, raw},
		"another key":             append([]string{"restore", d.dir, newest, raw}, other...),
		"made with the key given": append([]string{"restore", d.dir, "vm@" + string(p[0].Point), raw}, other...),
		"--digest-key-file":       programtest.BackupArgs(d.pool, d.dir, "vm"),
		"must hold 64 hex digits": {"verify", "--digest-key-file", "/dev/null", d.dir},
	} {
		r := program.Run(t, args...)
		if r.Code == 0 || !strings.Contains(r.Stderr, said) {
			t.Errorf("%q: exit status %d, want %q in\n%s", args, r.Code, said, r.Stderr)
		}
	}
	if _, err := os.Stat(raw); err == nil {
		t.Error("there is something restored")
	}
	if r := program.Run(t, "restore", "--digest=false", d.dir, newest, raw); r.Code != 0 || readContent(t, raw, 4<<20) != d.truth[p[4].File] {
		t.Errorf("restore --digest=false: exit status %d\n%s", r.Code, r.Stderr)
	}
}
