package e2e

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repair"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

func (d *disk) repairArgs() []string {
	return []string{
		"verify", "--repair", "--json", "--source", d.pool.String(), "--id", d.pool.User, "--keyring", d.pool.Keyring, d.dir,
	}
}

// repair mends the repository, with that exit status.
func (d *disk) repair(t *testing.T, code int) (report repair.ImageReport) {
	t.Helper()
	r := program.Run(t, d.repairArgs()...)
	if r.Code != code {
		t.Fatalf("repair: exit status %d, want %d\n%s%s", r.Code, code, r.Stdout, r.Stderr)
	}
	var all repair.Report
	if err := json.Unmarshal([]byte(r.Stdout), &all); err != nil || len(all.Images) != 1 {
		t.Fatalf("report: %v\n%s\n%s", err, r.Stdout, r.Stderr)
	}
	return all.Images[0]
}

// damage changes bytes of a point's file, at its mtime.
func (d *disk) damage(t *testing.T, p status.Point, change func(b []byte, h *qcow2.Header)) {
	t.Helper()
	name := d.path(p)
	info, err := os.Stat(name)
	must(t, err)
	b, err := os.ReadFile(name)
	must(t, err)
	file, err := os.Open(name)
	must(t, err)
	defer file.Close()
	h, err := qcow2.ReadHeader(file, info.Size())
	must(t, err)
	change(b, h)
	must(t, os.Chmod(name, 0o600))
	must(t, os.WriteFile(name, b, 0o600))
	must(t, os.Chmod(name, info.Mode()))
	must(t, os.Chtimes(name, info.ModTime(), info.ModTime()))
}

// firstTable is where the L2 table of the first L1 entry lies.
func firstTable(b []byte, h *qcow2.Header) int64 {
	return int64(binary.BigEndian.Uint64(b[h.L1Offset:]) & 0x00fffffffffffe00)
}

// repairDisk makes three points of an image of 32 MiB.
func repairDisk(t *testing.T, pool *cephtest.Pool, image string, more ...string) (d *disk, points []status.Point) {
	t.Helper()
	d = newDisk(t, pool, image, 32<<20)
	for _, write := range []string{"write -P 1 0 4M", "write -P 2 8M 1M", "write -P 3 1M 128k"} {
		pool.IO(t, image, write)
		points = append(points, d.backup(t, append(more, "--cluster-size", "64K")...).Points...)
	}
	return d, points
}

// TestRepair mends what has rotted, from the snapshot of the newest point.
func TestRepair(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	for _, test := range []struct {
		name, compression string
		point             int
		change            func(b []byte, h *qcow2.Header)
	}{
		{"newest", "none", 2, func(b []byte, h *qcow2.Header) { b[h.ClusterSize()+5] ^= 1 }},
		{"older", "none", 0, func(b []byte, h *qcow2.Header) { b[h.ClusterSize()+5] ^= 1 }},
		{"compressed", "zstd", 1, func(b []byte, h *qcow2.Header) { b[h.ClusterSize()+5] ^= 1 }},
		{"l2-table", "none", 2, func(b []byte, h *qcow2.Header) { clear(b[firstTable(b, h):][:h.ClusterSize()]) }},
		{"l2-entry", "none", 0, func(b []byte, h *qcow2.Header) { b[firstTable(b, h)+1] ^= 0x40 }},
		{"refcounts", "none", 1, func(b []byte, h *qcow2.Header) {
			clear(b[h.RefTableOffset+int64(h.RefTableClusters)*h.ClusterSize():][:512])
		}},
		{"digests", "none", 0, func(b []byte, h *qcow2.Header) { b[h.Record.DirectoryOffset+h.Record.DirectoryLength+20] ^= 1 }},
	} {
		t.Run(test.name, func(t *testing.T) {
			d, points := repairDisk(t, pool, test.name, "--compress", test.compression)
			d.damage(t, points[test.point], test.change)
			d.verify(t, 4)
			report := d.repair(t, 0)
			if len(report.Damages) == 0 || len(report.Replaced) != 1 || report.Replaced[0] != points[test.point].Point {
				t.Errorf("report %+v", report)
			}
			d.verify(t, 0)
			d.check(t)
			pool.IO(t, test.name, "write -P 9 20M 64k")
			if next := d.backup(t); next.Points[0].Kind != "incremental" {
				t.Errorf("the next point is %s: %s", next.Points[0].Kind, next.Reason)
			}
			d.check(t)
		})
	}
}

// TestRepairLeft mends what it can, and says what is left.
func TestRepairLeft(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d, points := repairDisk(t, pool, "vm", "--compress", "none")
	d.damage(t, points[0], func(b []byte, h *qcow2.Header) {
		b[h.ClusterSize()+5] ^= 1    // that nobody has changed since
		b[h.ClusterSize()*18+5] ^= 1 // the second 64 KiB of the second MiB, which the third point has changed
	})
	report := d.repair(t, 4)
	if report.Left() != 1 || len(report.Damages) != 2 || !report.Damages[1].Hidden || report.Damages[1].Start != 17*64<<10 {
		t.Errorf("report %+v", report)
	}
	d.forget(points[0], points[1])
	d.check(t) // the newest one
	raw := filepath.Join(t.TempDir(), "raw")
	if r := program.Run(t, "restore", d.dir, "vm", raw); r.Code != 0 {
		t.Errorf("restore: exit status %d\n%s", r.Code, r.Stderr)
	}
	wantComplaint(t, program.Run(t, "restore", d.dir, "vm@"+string(points[1].Point), raw+"2"), 1, "--force restores it all the same")
	pool.IO(t, "vm", "write -P 9 20M 64k")
	next := d.backup(t)
	d.wantIncrement(t, next, points[2].Point)
	d.check(t)
	newest := next.Points[0]
	d.damage(t, newest, func(b []byte, _ *qcow2.Header) { b[5] ^= 1 })
	if damages := d.repair(t, 4).Damages; !strings.Contains(damages[0].Reason, "next backup makes a full one") {
		t.Errorf("damages %+v", damages)
	}
	d.forget(points[2], newest)
	if full := d.backup(t); full.Points[0].Kind != "full" {
		t.Errorf("the next point is %s: %s", full.Points[0].Kind, full.Reason)
	}
	d.check(t)
}

// TestRepairKilled kills repairs at any time: what is there is the old file or the new one.
func TestRepairKilled(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d, points := repairDisk(t, pool, "vm", "--compress", "none")
	d.damage(t, points[0], func(b []byte, h *qcow2.Header) { b[h.ClusterSize()+5] ^= 1 })
	damaged, err := os.ReadFile(d.path(points[0]))
	must(t, err)
	killed := 0
	for delay := 300 * time.Millisecond; ; delay += 20 * time.Millisecond {
		ctx, cancel := context.WithTimeout(t.Context(), delay)
		err := program.Command(ctx, d.repairArgs()...).Run() // which kills it then
		cancel()
		now, readErr := os.ReadFile(d.path(points[0]))
		must(t, readErr)
		if err == nil {
			break
		}
		if killed++; killed > 200 {
			t.Fatal("it never comes to an end")
		}
		if string(now) != string(damaged) {
			t.Logf("mended when killed after %s", delay)
			break
		}
	}
	t.Logf("killed %d times", killed)
	d.repair(t, 0)
	d.verify(t, 0)
	d.check(t)
	left, err := filepath.Glob(filepath.Join(d.dir, "*", ".rbd2qcow2-tmp-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestRepairUsage refuses what makes no sense.
func TestRepairUsage(t *testing.T) {
	t.Parallel()
	dir := program.Init(t)
	for _, args := range [][]string{{"--sample", "5"}, {"--max-time", "1h"}, {"vm@20261122T065012Z"}} {
		r := program.Run(t, append([]string{"verify", "--repair", dir}, args...)...)
		if r.Code != 2 {
			t.Errorf("%v: exit status %d\n%s", args, r.Code, r.Stderr)
		}
	}
}
