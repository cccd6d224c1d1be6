package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

// brokenMaps are images whose object maps are missing, invalid, damaged or false.
func brokenMaps() []trackedCase {
	write := func(pattern int) func(*testing.T, *disk, status.Point) {
		return writes(fmt.Sprintf("write -P %d 3M 4k", pattern))
	}
	const invalid = "object map and fast diff invalid" // librbd finds that when it looks at the snapshot
	narrowed := trackedStep{change: write(9), method: "narrowed", reason: "object maps"}
	const lost = "was read by is gone" // and with it what the base was read by
	gone := func(damage func(*testing.T, *disk, status.Point)) []trackedStep {
		return []trackedStep{{change: all(write(2), damage), method: "full", reason: lost}, narrowed}
	}
	// With its snapshot removed, a map that can't be decoded leaves its flag to the next one, which is the next base,
	// and so on until somebody has the map of that rebuilt.
	damaged := func(damage func(*testing.T, *disk, status.Point)) []trackedStep {
		return []trackedStep{
			{change: all(write(2), damage), method: "full", reason: lost},
			{change: write(3), method: "precise", reason: invalid},
			{change: all(rebuildNewest, write(4)), method: "narrowed", reason: "object maps"},
		}
	}
	return []trackedCase{
		{name: "no object map", options: []string{"--image-feature=layering"}, steps: []trackedStep{
			{change: write(2), method: "precise", reason: "has no object map"},
		}},
		{name: "object map off and on", steps: []trackedStep{
			{change: all(admin("feature disable %s object-map fast-diff"), write(2)), method: "full", reason: lost},
			{change: all(admin("feature enable %s object-map fast-diff"), write(3)), method: "precise", reason: invalid},
			{change: all(admin("object-map rebuild --no-progress %s"), write(4)), method: "precise", reason: invalid},
			{change: all(rebuildNewest, write(5)), method: "narrowed", reason: "object maps"},
		}},
		{name: "base's map removed", steps: gone(removeMap)},
		{name: "base's map empty", steps: gone(editMap(func([]byte) []byte { return nil }))},
		{name: "base's map truncated", steps: damaged(editMap(func(b []byte) []byte { return b[:len(b)-1] }))},
		{name: "base's map flipped", steps: damaged(editMap(func(b []byte) []byte { b[18] ^= 0x40; return b }))},
		{name: "head's map removed", steps: []trackedStep{{change: all(write(2), func(t *testing.T, d *disk, _ status.Point) {
			d.pool.Rados(t, "rm", d.mapObject(t, ""))
		}, write(3)), method: "precise", reason: invalid}}},
		{name: "head's map truncated", steps: []trackedStep{{change: all(write(2), func(t *testing.T, d *disk, _ status.Point) {
			b := d.getMap(t, "")
			d.putMap(t, "", b[:len(b)-1])
		}), method: "precise", reason: invalid}}},
		{
			// An object that is there, so that a spot check finds the change.
			name: "head's map put back", steps: []trackedStep{narrowed, {change: func(t *testing.T, d *disk, _ status.Point) {
				before := d.getMap(t, "")
				d.pool.IO(t, d.image, "write -P 2 5M 4k")
				d.putMap(t, "", before)
			}, method: "precise", reason: "the object map lied"}, narrowed},
		},
	}
}

// TestVerifyUnchanged: an object map is false in a way that hardly any spot check finds. A full comparison does.
func TestVerifyUnchanged(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "vm", 16<<20, "--object-size=4K")
	pool.IO(t, "vm", "write -P 1 0 16M")
	d.backup(t)
	pool.IO(t, "vm", "write -P 1 0 4K")
	d.backup(t)
	for pattern := 2; pattern < 5; pattern++ {
		before := d.getMap(t, "")
		pool.IO(t, "vm", fmt.Sprintf("write -P %d 5M 4K", pattern))
		d.putMap(t, "", before)
		r := d.backup(t, "--verify-unchanged=100")
		if r.Method != "precise" { // by a spot check, once in 64 runs
			d.wantFull(t, r, "change tracking lied")
			d.check(t)
			return
		}
	}
	t.Error("spot checks find everything")
}

func rebuildNewest(t *testing.T, d *disk, newest status.Point) {
	d.pool.RBD(t, "object-map", "rebuild", "--no-progress", d.pool.Spec(d.image+"@"+newest.Snapshot))
}

func removeMap(t *testing.T, d *disk, newest status.Point) {
	d.pool.Rados(t, "rm", d.mapObject(t, newest.Snapshot))
}

// editMap changes the RADOS object of the newest point's object map.
func editMap(edit func([]byte) []byte) func(*testing.T, *disk, status.Point) {
	return func(t *testing.T, d *disk, newest status.Point) {
		d.putMap(t, newest.Snapshot, edit(d.getMap(t, newest.Snapshot)))
	}
}

// mapObject names the object map of a snapshot, or, with an empty name, of the head.
func (d *disk) mapObject(t *testing.T, snapshot string) string {
	t.Helper()
	name := "rbd_object_map." + d.pool.Info(t, d.image).ID
	if snapshot == "" {
		return name
	}
	for _, s := range d.pool.Snapshots(t, d.image) {
		if s.Name == snapshot {
			return fmt.Sprintf("%s.%016x", name, s.ID)
		}
	}
	t.Fatalf("no snapshot %s", snapshot)
	return ""
}

func (d *disk) getMap(t *testing.T, snapshot string) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "map")
	d.pool.Rados(t, "get", d.mapObject(t, snapshot), file)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (d *disk) putMap(t *testing.T, snapshot string, b []byte) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "map")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	d.pool.Rados(t, "put", d.mapObject(t, snapshot), file)
}
