package e2e

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/backup"
	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/programtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

const nameSize = 1 << 20

// strangeNames are names that librbd accepts.
func strangeNames() []string {
	return []string{
		"plain", "with space", "per%cent", "per%25cent", "two\nlines", ".hidden", "..", "-dash", "--json", "colon:name",
		"*", "[a]", `back\slash`, "Größe-日本", "\xff\xfe", "a@b", "dir/name", "../../up", "vm@20261122T065012Z.qcow2",
		"UPPER", "upper", "lost+found", ".state", "rbd2qcow2.json",
		strings.Repeat("L", 255), strings.Repeat("L", 254) + "M", strings.Repeat("%", 255),
	}
}

// TestNames backs up images with names that are no file names, and finds them again.
func TestNames(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	names := strangeNames()
	for i, name := range names {
		pool.CreateImage(t, "new", nameSize)
		pool.IO(t, "new", fmt.Sprintf("write -P %d 4k 4k", i+1))
		rename(t, pool, "new", name)
	}
	dir := program.Init(t)
	program.Backup(t, pool, dir)
	program.Backup(t, pool, dir)

	listed := list(t, dir)
	if len(listed) != len(names) {
		t.Errorf("%d images are listed, want %d", len(listed), len(names))
	}
	for i, name := range names {
		at := slices.IndexFunc(listed, func(image status.Image) bool { return image.Name == jsonName(name) })
		if at < 0 || len(listed[at].Points) != 2 || listed[at].Points[1].Kind != "incremental" {
			t.Errorf("image %q is not listed with a full point and an increment", name)
			continue
		}
		newest := listed[at].Points[1].File
		if folder := filepath.Dir(newest); filepath.Dir(folder) != "." || folder == ".." {
			t.Errorf("image %q: file %q is not in a folder of the repository", name, newest)
		}
		qemutest.Check(t, filepath.Join(dir, newest))
		qemutest.IO(t, filepath.Join(dir, newest), fmt.Sprintf("read -P %d 4k 4k", i+1))
	}
	// Each can be asked for.
	for _, name := range []string{"per%25cent", "a@b", "dir/name", "--json", "[a]", "*", "two\nlines", "../../up"} {
		if images := list(t, dir, "--", name); len(images) != 1 || images[0].Name != name {
			t.Errorf("list %q gives %+v", name, images)
		}
		r := program.Backup(t, pool, dir, "--", name)
		found := slices.ContainsFunc(r.Images, func(i backup.ImageReport) bool { return i.Name == name })
		if !found || len(r.Images) > 1 && name != "*" { // a pattern too
			t.Errorf("backup of %q: %+v", name, r)
		}
	}
}

// jsonName is a name as JSON carries it: a byte that is not UTF-8 comes out as U+FFFD.
func jsonName(name string) string { return strings.ToValidUTF8(name, "\ufffd\ufffd") }

// rename gives an image any name. The rbd program takes "/" and "@" for separators, so this changes what librbd keeps of
// names: the object rbd_id.NAME and two keys of the pool's directory, each with a string behind its length.
func rename(t *testing.T, pool *cephtest.Pool, image, name string) {
	t.Helper()
	id := pool.Info(t, image).ID
	file := func(s string) string {
		f := filepath.Join(t.TempDir(), "value")
		if err := os.WriteFile(f, append(binary.LittleEndian.AppendUint32(nil, uint32(len(s))), s...), 0o600); err != nil {
			t.Fatal(err)
		}
		return f
	}
	pool.Rados(t, "put", "rbd_id."+name, file(id))
	pool.Rados(t, "setomapval", "rbd_directory", "name_"+name, "--input-file", file(id))
	pool.Rados(t, "setomapval", "rbd_directory", "id_"+id, "--input-file", file(name))
	pool.Rados(t, "rmomapkey", "rbd_directory", "name_"+image)
	pool.Rados(t, "rm", "rbd_id."+image)
}

func list(t *testing.T, dir string, more ...string) []status.Image {
	t.Helper()
	r := program.Run(t, append([]string{"list", "--json", dir}, more...)...)
	var listed struct{ Images []status.Image }
	if err := json.Unmarshal([]byte(r.Stdout), &listed); err != nil || r.Code != 0 {
		t.Fatalf("list: exit status %d, %v\n%s%s", r.Code, err, r.Stdout, r.Stderr)
	}
	return listed.Images
}

// TestFastRuns makes points faster than their names can tell by the clock: they still have names of their own, in order.
func TestFastRuns(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "vm", nameSize)
	var points []repo.PointName
	for range 4 {
		points = append(points, d.backup(t).Points[0].Point)
	}
	if !slices.IsSorted(points) || len(slices.Compact(slices.Clone(points))) != 4 {
		t.Errorf("points %q", points)
	}
	d.check(t)
}

// TestSelection asks for some images, in all the ways that there are.
func TestSelection(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	for _, name := range []string{"db-1", "db-2", "web", "skipped"} {
		pool.CreateImage(t, name, nameSize)
	}
	pool.SetMetadata(t, "skipped", "backup-skip", "1")
	for _, c := range []struct {
		args    string
		code    int
		outcome string // of each image in the report
		message string // on standard error
	}{
		{args: "", outcome: "db-1:done db-2:done skipped:skipped web:done"},
		{args: "--exclude web", outcome: "db-1:done db-2:done skipped:skipped"},
		{args: "--exclude db-* --exclude s*", outcome: "web:done"},
		{args: "db-*", outcome: "db-1:done db-2:done"},
		{args: "db-[2-9] web", outcome: "db-2:done web:done"},
		{args: "web web we*", outcome: "web:done"},
		{args: "db-* --exclude db-1", outcome: "db-2:done"},
		{args: "skipped", outcome: "skipped:skipped"},
		{args: "web missing", code: 3, outcome: "missing:failed web:done", message: "missing"},
		{args: "missing", code: 1, outcome: "missing:failed", message: "missing"},
		{args: "missing skipped", code: 1, outcome: "missing:failed skipped:skipped", message: "missing"},
		{args: "x*", code: 1, message: `no image matches "x*"`},
		{args: "web x*", code: 3, outcome: "web:done x*:failed", message: "no image matches"},
		{args: "web --exclude web", code: 1, message: "no image matches"},
		{args: "--exclude *", code: 1, message: "no image matches"},
		{args: "[", code: 2, message: "["},
	} {
		t.Run(c.args, func(t *testing.T) {
			t.Parallel()
			args := append([]string{"--json"}, strings.Fields(c.args)...)
			r := program.Run(t, programtest.BackupArgs(pool, program.Init(t), args...)...)
			if r.Code != c.code || !strings.Contains(r.Stderr, c.message) {
				t.Errorf("exit status %d, want %d and %q\n%s", r.Code, c.code, c.message, r.Stderr)
			}
			var outcome []string
			if r.Stdout != "" {
				for _, i := range r.Report(t).Images {
					outcome = append(outcome, i.Name+":"+string(i.Status))
				}
			}
			if got := strings.Join(outcome, " "); got != c.outcome {
				t.Errorf("outcome %q, want %q", got, c.outcome)
			}
		})
	}
}

// TestDryRun says what would be done, on an empty repository and on one with points, and changes nothing anywhere.
func TestDryRun(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "vm", diskSize)
	pool.IO(t, "vm", "write -P 1 0 1M")
	for _, method := range []string{"full", "narrowed"} {
		before := tree(t, d.dir) + strings.Join(d.snapshots(t), " ")
		r := d.run(t, "--dry-run").Images[0]
		if after := tree(t, d.dir) + strings.Join(d.snapshots(t), " "); after != before {
			t.Errorf("changed\n%s\nto\n%s", before, after)
		}
		if r.Status != backup.Planned || r.Method != method || len(r.Points) != 0 || r.ReadBytes == 0 {
			t.Errorf("report %+v, want a %s point to be planned", r, method)
		}
		if method == "full" {
			touch(t, d, d.backup(t).Points[0])
			pool.IO(t, "vm", "write -P 2 64k 64k")
		}
	}
}
