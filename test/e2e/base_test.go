package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

const diskSize = 8 << 20

// baseCase is something that happens to an image or to its points between two backups.
type baseCase struct {
	name   string
	reason string // for a full point; "": the chain goes on
	change func(t *testing.T, d *disk, first, newest status.Point)
}

// TestBase makes two points, lets something happen, and makes a third: an increment only if the newest point and its
// snapshot are still what they were.
func TestBase(t *testing.T) {
	pool := cephtest.Require(t).Pool(t)
	for i, c := range baseCases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := newDisk(t, pool, fmt.Sprintf("vm%d", i), diskSize)
			pool.IO(t, d.image, "write -P 1 0 128k", "write -P 1 6M 64k")
			first := d.backup(t, "--compress=none").Points[0]
			pool.IO(t, d.image, "write -P 2 1M 128k", "write -P 2 6M 64k")
			newest := d.backup(t, "--compress=none").Points[0]

			c.change(t, d, first, newest)
			pool.IO(t, d.image, "write -P 9 5M 64k", "write -z 1M 64k")
			r := d.backup(t)
			if c.reason == "" {
				d.wantIncrement(t, r, newest.Point)
			} else {
				d.wantFull(t, r, c.reason)
			}
			d.check(t)
			d.checkSnapshot(t, r.Points[0])

			pool.IO(t, d.image, "write -P 10 5M 4k")
			d.wantIncrement(t, d.backup(t), r.Points[0].Point)
			d.check(t)
		})
	}
}

func baseCases() []baseCase {
	return []baseCase{
		{"snapshot removed", "is gone", func(t *testing.T, d *disk, _, newest status.Point) {
			d.pool.RemoveSnapshot(t, d.image+"@"+newest.Snapshot)
		}},
		{"snapshot made anew", "was made anew: its id is", func(t *testing.T, d *disk, _, newest status.Point) {
			d.pool.RemoveSnapshot(t, d.image+"@"+newest.Snapshot)
			d.pool.IO(t, d.image, "write -P 7 3M 64k")
			d.pool.CreateSnapshot(t, d.image+"@"+newest.Snapshot)
		}},
		{"image made anew", "the image was made anew under its name", func(t *testing.T, d *disk, _, newest status.Point) {
			d.pool.RemoveSnapshot(t, d.image+"@"+newest.Snapshot)
			d.pool.Remove(t, d.image)
			d.pool.CreateImage(t, d.image, diskSize)
			d.pool.CreateSnapshot(t, d.image+"@"+newest.Snapshot)
		}},
		{"newest file removed", "is gone", func(t *testing.T, d *disk, _, newest status.Point) {
			remove(t, d, newest)
		}},
		{"all files removed", "first backup of this image", func(t *testing.T, d *disk, first, newest status.Point) {
			remove(t, d, first, newest)
		}},
		{"file missing below", "chain of newest point", func(t *testing.T, d *disk, _, newest status.Point) {
			d.forget(newest, d.backup(t).Points[0])
			remove(t, d, newest)
		}},
		{"truncated", "is damaged", func(t *testing.T, d *disk, _, newest status.Point) {
			edit(t, d, newest, func(b []byte) []byte { return b[:len(b)-1] })
			d.forget(newest)
		}},
		{"empty", "is damaged", func(t *testing.T, d *disk, _, newest status.Point) {
			edit(t, d, newest, func([]byte) []byte { return nil })
			d.forget(newest)
		}},
		{"header damaged", "is damaged", func(t *testing.T, d *disk, _, newest status.Point) {
			edit(t, d, newest, func(b []byte) []byte { b[30] ^= 1; return b }) // of the size
			d.forget(newest)
		}},
		{"record damaged", "is damaged", func(t *testing.T, d *disk, _, newest status.Point) {
			edit(t, d, newest, func(b []byte) []byte { b[bytes.Index(b, []byte("RBD2QCOW"))+20] ^= 1; return b })
			d.forget(newest)
		}},
		{"identity damaged", "is damaged", func(t *testing.T, d *disk, _, newest status.Point) {
			edit(t, d, newest, func(b []byte) []byte { b[bytes.Index(b, []byte(`"snap_seq"`))] ^= 1; return b })
			d.forget(newest)
		}},
		{"L2 table damaged", "can't be used", func(t *testing.T, d *disk, _, newest status.Point) {
			edit(t, d, newest, func(b []byte) []byte { b[l2Table(b)+7] ^= 1; return b }) // data becomes zeroes
			touch(t, d, newest)
			d.forget(newest)
		}},
		{"data damaged", "can't be used", func(t *testing.T, d *disk, _, newest status.Point) {
			edit(t, d, newest, func(b []byte) []byte { b[bytes.Index(b, bytes.Repeat([]byte{2}, 4096))] ^= 1; return b })
			touch(t, d, newest)
			d.forget(newest)
		}},
		{"data damaged below", "can't be used", func(t *testing.T, d *disk, first, newest status.Point) {
			edit(t, d, first, func(b []byte) []byte { b[bytes.Index(b, bytes.Repeat([]byte{1}, 4096))] ^= 1; return b })
			touch(t, d, first)
			d.forget(first, newest)
		}},
		{"touched", "", func(t *testing.T, d *disk, _, newest status.Point) {
			touch(t, d, newest)
		}},
		{"all touched", "", func(t *testing.T, d *disk, first, newest status.Point) {
			touch(t, d, first, newest)
		}},
	}
}

func remove(t *testing.T, d *disk, points ...status.Point) {
	t.Helper()
	for _, p := range points {
		if err := os.Remove(d.path(p)); err != nil {
			t.Fatal(err)
		}
	}
	d.forget(points...)
}

// edit changes a point's file behind the program's back: mode and mtime stay.
func edit(t *testing.T, d *disk, p status.Point, change func([]byte) []byte) {
	t.Helper()
	path := d.path(p)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []func() error{
		func() error { return os.Chmod(path, 0o600) },
		func() error { return os.WriteFile(path, change(b), 0o600) },
		func() error { return os.Chmod(path, info.Mode()) },
		func() error { return os.Chtimes(path, info.ModTime(), info.ModTime()) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
}

// touch gives points another mtime, as a copy has it.
func touch(t *testing.T, d *disk, points ...status.Point) {
	t.Helper()
	for _, p := range points {
		now := time.Now().Add(time.Hour)
		if err := os.Chtimes(d.path(p), now, now); err != nil {
			t.Fatal(err)
		}
	}
}

// l2Table finds the first L2 table of a qcow2 file; section "Cluster mapping" of the specification.
func l2Table(file []byte) uint64 {
	const offset = 0x00fffffffffffe00
	for l1 := file[binary.BigEndian.Uint64(file[40:]):]; ; l1 = l1[8:] {
		if table := binary.BigEndian.Uint64(l1) & offset; table != 0 {
			return table
		}
	}
}
