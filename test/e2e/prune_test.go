package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/programtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/prune"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

// prune prunes the repository, with that exit status, and forgets what was removed.
func (d *disk) prune(t *testing.T, code int, more ...string) prune.Report {
	t.Helper()
	r := program.Run(t, append([]string{"prune", "--json", d.dir}, more...)...)
	d.log = r.Stderr
	if r.Code != code {
		t.Fatalf("prune %v: exit status %d, want %d\n%s%s", more, r.Code, code, r.Stdout, r.Stderr)
	}
	return d.pruned(t, r)
}

func (d *disk) pruned(t *testing.T, r programtest.Result) (report prune.Report) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil {
		t.Fatalf("report: %v\n%s\n%s", err, r.Stdout, r.Stderr)
	}
	for _, image := range report.Images {
		if image.Status != prune.Planned {
			d.forgetPruned(image)
		}
	}
	return report
}

func (d *disk) forgetPruned(image prune.ImageReport) {
	for _, p := range image.Points {
		if p.Action == prune.Remove && p.Error == "" {
			delete(d.truth, filepath.Join(image.Folder, image.Folder+"@"+string(p.Point)+".qcow2"))
		}
	}
}

// wantPoints fails the test unless the repository has these points of the image, all good, and no other file.
func (d *disk) wantPoints(t *testing.T, want ...status.Point) {
	t.Helper()
	var got []repo.PointName
	for _, image := range list(t, d.dir) {
		for _, p := range image.Points {
			got = append(got, p.Point)
			if p.State != repo.Good {
				t.Errorf("point %s is %s: %s", p.Point, p.State, p.Error)
			}
		}
	}
	var names []repo.PointName
	for _, p := range want {
		names = append(names, p.Point)
	}
	if !slices.Equal(got, names) {
		t.Errorf("points %v, want %v", got, names)
	}
	files, err := filepath.Glob(filepath.Join(d.dir, "*", "[^.]*"))
	if err != nil || len(files) != len(want) {
		t.Errorf("files %q (%v), want %d", files, err, len(want))
	}
}

// month backs up an image that lives: it is written to, discarded, shrunk and grown.
func (d *disk) month(t *testing.T, n int) (points []status.Point) {
	t.Helper()
	for i := range n {
		d.pool.IO(t, d.image, fmt.Sprintf("write -P %d %dk 300k", i+1, 700*i), fmt.Sprintf("write -P %d 4M 5k", i+1),
			fmt.Sprintf("write -P %d 5M 1M", i+101), fmt.Sprintf("discard %dk 64k", 64*(i%7)), fmt.Sprintf("write -z %dk 4k", 650*i))
		switch i % 5 {
		case 2:
			d.pool.Resize(t, d.image, diskSize-2<<20)
		case 3:
			d.pool.Resize(t, d.image, diskSize+1000)
		}
		compression := []string{"zstd", "none", "zlib"}[i%3]
		points = append(points, d.backup(t, "--compress", compression).Points...)
	}
	return points
}

// TestPrune removes points of a chain, from its full point to the one below the newest, and goes on with the chain.
func TestPrune(t *testing.T) {
	t.Parallel()
	d := newDisk(t, cephtest.Require(t).Pool(t), "vm", diskSize)
	p := d.month(t, 9)
	d.check(t)

	before := tree(t, d.dir)
	planned := d.prune(t, 0, "--keep-last", "2", "--dry-run").Images[0]
	if after := tree(t, d.dir); after != before {
		t.Errorf("a dry run changed\n%s\nto\n%s", before, after)
	}
	if planned.Status != prune.Planned || planned.Removed != 7 || planned.Kept != 2 || planned.Written <= 0 || planned.Freed <= 0 {
		t.Errorf("plan: %+v", planned)
	}
	shown := program.Run(t, "prune", "--keep-last=2", "--dry-run", d.dir)
	if shown.Code != 0 || strings.Count(shown.Stdout, "no rule keeps it") != 7 {
		t.Errorf("plan, exit status %d:\n%s%s", shown.Code, shown.Stdout, shown.Stderr)
	}

	if r := program.Run(t, "pin", d.dir, "--comment", "a good one", "vm@"+string(p[3].Point)); r.Code != 0 {
		t.Fatalf("pin: exit status %d\n%s", r.Code, r.Stderr)
	}
	used := diskUsage(t, d.dir)
	r := d.prune(t, 0, "--keep-last", "2").Images[0]
	if r.Status != prune.Done || r.Removed != 6 || r.Kept != 3 || r.Written <= 0 {
		t.Errorf("report: %+v", r)
	}
	if freed := used - diskUsage(t, d.dir); freed <= 0 || r.Freed < freed-64<<10 || r.Freed > freed+64<<10 {
		t.Errorf("freed %d by the report, %d by du", r.Freed, freed)
	}
	left := []status.Point{p[3], p[7], p[8]}
	d.wantPoints(t, left...)
	d.check(t)
	listed := list(t, d.dir)[0].Points
	if !listed[0].Pinned || listed[0].PinComment != "a good one" || listed[0].Kind != "full" || listed[1].Pinned {
		t.Errorf("list: %+v", listed)
	}
	if r := program.Run(t, "list", d.dir); !strings.Contains(r.Stdout, "good,pinned") {
		t.Errorf("list:\n%s", r.Stdout)
	}
	d.checkRestores(t, left...)

	next := d.backup(t)
	d.wantIncrement(t, next, p[8].Point)
	d.check(t)
	d.checkSnapshot(t, next.Points[0])
	if r := program.Run(t, "unpin", d.dir, "vm@"+string(p[3].Point)); r.Code != 0 {
		t.Fatalf("unpin: exit status %d\n%s", r.Code, r.Stderr)
	}
	d.prune(t, 0, "--max-chain", "1")
	d.wantPoints(t, next.Points[0])
	d.check(t)
	last := d.backup(t)
	d.wantIncrement(t, last, next.Points[0].Point)
	d.check(t)
}

// diskUsage is what the files below a directory take on disk, in bytes.
func diskUsage(t *testing.T, dir string) (bytes int64) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "du", "-s", "-B1", dir).Output()
	if err == nil {
		_, err = fmt.Sscan(string(out), &bytes)
	}
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

// TestBackupPrunes backs up with rules: the chain keeps its length.
func TestBackupPrunes(t *testing.T) {
	t.Parallel()
	d := newDisk(t, cephtest.Require(t).Pool(t), "vm", diskSize)
	var points []status.Point
	for i := range 9 {
		d.pool.IO(t, d.image, fmt.Sprintf("write -P %d %dk 100k", i+1, 90*i))
		more := []string{"--keep-last=3"}
		if i == 5 {
			more = append(more, "--full") // what was there then goes without a fold, as it gets old
		}
		r := d.backup(t, more...)
		points = append(points, r.Points...)
		if r.Pruned == nil || r.Pruned.Status != prune.Done || r.Pruned.Kept != min(i+1, 3) || r.Pruned.Removed != max(0, min(1, i-2)) {
			t.Fatalf("run %d: %+v", i, r.Pruned)
		}
		d.forgetPruned(*r.Pruned)
		d.wantPoints(t, points[max(0, len(points)-3):]...)
		d.check(t)
		d.checkSnapshot(t, r.Points[0])
	}
}

// TestPruneGone removes an image from the pool: its points stay until that is asked for.
func TestPruneGone(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "vm", diskSize)
	pool.CreateImage(t, "old", diskSize)
	for i := range 2 {
		pool.IO(t, "old", fmt.Sprintf("write -P %d 0 64k", i+1))
		d.run(t)
	}
	pool.RBD(t, "snap", "purge", "--no-progress", pool.Spec("old"))
	pool.Remove(t, "old")
	start := time.Now().Add(-time.Second)
	d.run(t, "--", "vm")
	images := list(t, d.dir)
	if images[0].GoneSince == nil || images[0].GoneSince.Before(start.Truncate(time.Second)) || images[1].GoneSince != nil {
		t.Fatalf("list: %+v", images)
	}
	if r := program.Run(t, "list", d.dir); strings.Count(r.Stdout, "image gone since") != 1 {
		t.Errorf("list:\n%s", r.Stdout)
	}
	r := d.prune(t, 0, "--keep-last=1")
	old, vm := r.Images[0], r.Images[1]
	if old.Status != prune.Skipped || old.Removed != 0 || vm.Status != prune.Done || vm.Removed != 2 {
		t.Errorf("report: %+v", r)
	}
	if r := d.prune(t, 0, "--keep-last=1", "--gone", "old"); len(r.Images) != 1 || r.Images[0].Removed != 1 {
		t.Errorf("report: %+v", r)
	}
	pool.CreateImage(t, "old", diskSize)
	d.run(t)
	if images := list(t, d.dir); images[0].GoneSince != nil || len(images[0].Points) != 2 {
		t.Errorf("list: %+v", images)
	}
}
