package e2e

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/prune"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

// TestPruneFullDisk removes a point on a disk with too little room for that, down to a page: nothing is lost.
func TestPruneFullDisk(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	for method, writes := range map[prune.Method][]string{
		prune.IntoBacking: {"0 1M", "2M 150k", "100k 60k"},
		prune.IntoChild:   {"2M 150k", "0 1M", "2100k 60k"},
	} {
		t.Run(string(method), func(t *testing.T) {
			t.Parallel()
			d := newDisk(t, pool, string(method), diskSize)
			room := newSmallDisk(t, d)
			var p []status.Point
			for i, where := range writes {
				pool.IO(t, d.image, fmt.Sprintf("write -P %d %s", i+1, where), fmt.Sprintf("write -P %d 5M 4k", i+1))
				p = append(p, d.backup(t, "--compress", "none").Points...)
			}
			if got := d.prune(t, 0, "--keep-last=2", "--dry-run").Images[0].Points[0].Method; got != method {
				t.Errorf("planned %s", got)
			}
			saved := t.TempDir()
			qemutest.Run(t, "cp", "-a", d.dir, saved)

			fits := func(pages int) bool {
				room.leave(t, diskSize)
				must(t, os.RemoveAll(d.dir))
				qemutest.Run(t, "cp", "-a", filepath.Join(saved, filepath.Base(d.dir)), d.dir)
				room.leave(t, int64(pages)*4096)
				r := program.Run(t, "prune", "--keep-last=2", d.dir)
				if r.Code == 0 {
					return true
				}
				wantComplaint(t, r, 1, "no space left on device")
				t.Logf("%d pages: %s", pages, complaints(r))
				d.wantPoints(t, p...)
				d.check(t)
				return false
			}
			needed := sort.Search(1<<10, fits)
			t.Logf("%d pages are needed", needed)
			for _, lacking := range []int{2, 3, 5, 9, 17, 20, 33, needed} { // one less was tried already
				if lacking <= needed && fits(needed-lacking) {
					t.Errorf("%d pages are needed, but %d are enough", needed, needed-lacking)
				}
			}
			room.leave(t, diskSize)
			d.prune(t, 0, "--keep-last=2")
			d.wantPoints(t, p[1:]...)
			d.check(t)
			next := d.backup(t)
			d.wantIncrement(t, next, p[2].Point)
			d.wantSound(t, next)
		})
	}
}

// TestPruneLeavesFullDisk unlinks points on a disk that has no room at all: that is when it is wanted.
func TestPruneLeavesFullDisk(t *testing.T) {
	t.Parallel()
	d := newDisk(t, cephtest.Require(t).Pool(t), "vm", diskSize)
	room := newSmallDisk(t, d)
	d.month(t, 3)
	newest := d.backup(t, "--full").Points[0]
	room.leave(t, 0)
	d.prune(t, 0, "--keep-last=1")
	d.wantPoints(t, newest)
	d.check(t)
	d.wantIncrement(t, d.backup(t), newest.Point)
	d.check(t)
}

// smallDisk is a file system of 24 MiB with a file that takes what shall not be free.
type smallDisk struct{ filler *os.File }

// newSmallDisk puts an empty repository for an image on a small disk.
func newSmallDisk(t *testing.T, d *disk) *smallDisk {
	t.Helper()
	if os.Geteuid() != 0 {
		qemutest.Missing(t, "only root can mount a file system")
	}
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=24M"))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount tmpfs: %v", err)
		}
	})
	filler, err := os.Create(filepath.Join(dir, "filler"))
	must(t, err)
	t.Cleanup(func() { filler.Close() }) // before the unmount
	d.dir = filepath.Join(dir, "repository")
	if r := program.Run(t, "init", d.dir); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	return &smallDisk{filler}
}

// leave leaves so many bytes free, which there must be.
func (s *smallDisk) leave(t *testing.T, bytes int64) {
	t.Helper()
	must(t, s.filler.Truncate(0))
	_, err := s.filler.Seek(0, io.SeekStart)
	must(t, err)
	for err == nil {
		_, err = s.filler.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	size, err := s.filler.Seek(0, io.SeekCurrent)
	must(t, err)
	if size < bytes {
		t.Fatalf("there are but %d bytes, not %d", size, bytes)
	}
	must(t, s.filler.Truncate(size-bytes))
}
