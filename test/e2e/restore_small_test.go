package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
)

// wantSparse fails the test if the files that a point was restored to take more of their file system than a disk with that
// content needs, however thin the image was.
func wantSparse(t *testing.T, raw, qcow2 string) {
	t.Helper()
	for _, c := range []struct {
		file           string
		unit, metadata int64 // bytes: blocks or clusters, and what there is besides, of the file system or of qcow2
	}{
		{raw, 4 << 10, 64 << 10},
		{qcow2, 64 << 10, 512 << 10},
	} {
		var s syscall.Stat_t
		must(t, syscall.Stat(c.file, &s))
		if took, data := s.Blocks*512, unitsWithData(t, raw, c.unit); took > data+c.metadata {
			t.Errorf("%s takes %d bytes, and the disk has %d in units of %d", c.file, took, data, c.unit)
		}
	}
}

// unitsWithData is how many bytes the aligned units of a file have that are not zero.
func unitsWithData(t *testing.T, file string, unit int64) (size int64) {
	t.Helper()
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	b, zeros := make([]byte, unit), make([]byte, unit)
	for {
		n, err := io.ReadFull(f, b)
		if !bytes.Equal(b[:n], zeros[:n]) {
			size += unit
		}
		if err != nil {
			return size
		}
	}
}

// TestRestoreSparse: files have holes wherever the image has no data, or zeroes.
func TestRestoreSparse(t *testing.T) {
	t.Parallel()
	d := newDisk(t, cephtest.Require(t).Pool(t), "vm", 64<<20+512)
	scattered := []string{"write -P 1 52M 3M", "write -P 0 56M 6M"}
	for at := range 200 {
		scattered = append(scattered, fmt.Sprintf("write -P 2 %dK 4K", 256*at))
	}
	d.pool.IO(t, d.image, scattered...)
	full := d.backup(t).Points[0]
	d.checkFileRestores(t, full, d.truth[full.File])
	d.pool.IO(t, d.image, "discard 0 16M", "write -z 53M 1M", "write -P 3 63M 8K")
	newest := d.backup(t).Points[0]
	d.checkFileRestores(t, newest, d.truth[newest.File])
}

// TestRestoreStriping: objects of another size are striped as the old ones were, or it is said that they are not.
func TestRestoreStriping(t *testing.T) {
	t.Parallel()
	d := newDisk(t, cephtest.Require(t).Pool(t), "vm", 3<<20, "--object-size=64K", "--stripe-unit=16K", "--stripe-count=3")
	d.pool.IO(t, d.image, "write -P 1 100K 2M")
	p := d.backup(t).Points[0]
	for _, c := range []struct {
		image  string
		args   []string
		layout string // object size, stripe unit, stripe count; these are 0 where an image has no stripes
		says   string
	}{
		{"larger", []string{"--object-size=1M"}, "1048576 16384 3", ""},
		{"smaller", []string{"--object-size=8K"}, "8192 0 0", "the image was striped, and the new one is not"},
		{"given", []string{"--object-size=8K", "--stripe-unit=4K", "--stripe-count=2"}, "8192 4096 2", ""},
	} {
		r := d.restore(t, p.Point, d.target(c.image), c.args...)
		d.wantImage(t, c.image, d.truth[p.File])
		var info struct {
			ObjectSize  int64 `json:"object_size"`
			StripeUnit  int64 `json:"stripe_unit"`
			StripeCount int64 `json:"stripe_count"`
		}
		must(t, json.Unmarshal(d.pool.RBD(t, "info", "--format=json", d.pool.Spec(c.image)), &info))
		if got := fmt.Sprint(info.ObjectSize, info.StripeUnit, info.StripeCount); got != c.layout {
			t.Errorf("%s: layout %s, want %s", c.image, got, c.layout)
		}
		said := complaints(r)
		if len(said) > 1 || (len(said) == 0) != (c.says == "") || !strings.Contains(strings.Join(said, ""), c.says) {
			t.Errorf("%s: said %q, want %q", c.image, said, c.says)
		}
	}
}

// TestRestoreInPlaceReason: where the newest point can't tell what has changed, the reason is that it can't, and the log says how
// much of the disk was proved.
func TestRestoreInPlaceReason(t *testing.T) {
	t.Parallel()
	d := newDisk(t, cephtest.Require(t).Pool(t), "vm", 4<<20)
	d.pool.IO(t, d.image, "write -P 1 0 1M")
	older := d.backup(t).Points[0]
	d.pool.IO(t, d.image, "write -P 2 0 64K")
	newest := d.backup(t).Points[0]
	for _, c := range []struct {
		before                 func()
		method, reason, proved string
	}{
		{func() {}, "diff", "since the newest point's snapshot", `proved="what was compared"`},
		{
			func() { must(t, os.Truncate(d.path(newest), newest.FileSize-1)) },
			"compare", "the newest point, " + string(newest.Point) + ", is damaged", "proved=true",
		},
		{func() { must(t, os.Remove(d.path(newest))) }, "compare", "the newest point's snapshot is gone", "proved=true"},
	} {
		c.before()
		d.pool.IO(t, d.image, "write -P 3 8K 4K")
		r := d.restore(t, older.Point, d.target(d.image), "--in-place", "--no-safety-snapshot", "--json")
		var report struct{ Method, Reason string }
		must(t, json.Unmarshal([]byte(r.Stdout), &report))
		if report.Method != c.method || !strings.Contains(report.Reason, c.reason) {
			t.Errorf("%+v, want %s: %s", report, c.method, c.reason)
		}
		if !strings.Contains(r.Stderr, c.reason) || !strings.Contains(r.Stderr, c.proved) {
			t.Errorf("the log lacks %q or %q:\n%s", c.reason, c.proved, r.Stderr)
		}
		d.wantImage(t, d.image, d.truth[older.File])
	}
}

// TestLiveAbortWithoutChain: a live restore can be aborted when its point is damaged, or gone.
func TestLiveAbortWithoutChain(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(string) error{
		"damaged": func(path string) error { return os.Truncate(path, 1000) },
		"gone":    os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := cephtest.Require(t).Pool(t)
			d := newDisk(t, pool, "vm", 64<<20)
			pool.IO(t, "vm", "write -P 1 0 30M")
			p := d.backup(t).Points[0]
			r := d.live(t, p.Point, "new")
			r.awaits(t, usable)
			r.signals(t, syscall.SIGKILL)
			r.ends(t, -1)
			evict(t, pool, "new")
			must(t, spoil(d.path(p)))
			d.live(t, p.Point, "new", "--abort").ends(t, 0)
			if slices.Contains(pool.Images(t), "new") {
				t.Error("the image is still there")
			}
			d.wantNoJournal(t)
		})
	}
}
