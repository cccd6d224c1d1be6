package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/backup"
	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/programtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

// trackedCase is an image of some kind, and what happens to it from one backup to the next.
type trackedCase struct {
	name    string
	size    int64                       // 0: diskSize
	options []string                    // of "rbd create" and "rbd clone"
	clone   bool                        // of a parent with data
	before  func(t *testing.T, d *disk) // happens before the first backup
	steps   []trackedStep
}

// trackedStep is a change, and how the backup after it must have found it.
type trackedStep struct {
	change func(t *testing.T, d *disk, newest status.Point)
	args   []string // of the backup
	method string
	reason string // part of it
}

// TestTracking backs up images whose changes are hard to find, or told wrongly.
func TestTracking(t *testing.T) {
	pool := cephtest.Require(t).Pool(t)
	for i, c := range trackedCases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := newTracked(t, pool, fmt.Sprintf("vm%d", i), &c)
			if c.before != nil {
				c.before(t, d)
			}
			newest := d.backup(t).Points[0]
			for _, s := range c.steps {
				s.change(t, d, newest)
				r := d.backup(t, s.args...)
				d.wantMethod(t, r, s.method, s.reason)
				if s.method == "full" {
					d.wantFull(t, r, s.reason)
				} else {
					d.wantIncrement(t, r, newest.Point)
				}
				newest = r.Points[0]
			}
			d.check(t)
			d.checkSnapshot(t, newest)
		})
	}
}

// newTracked creates an image with data at its beginning, in its middle and at its end.
func newTracked(t *testing.T, pool *cephtest.Pool, image string, c *trackedCase) *disk {
	t.Helper()
	size := c.size
	if size == 0 {
		size = diskSize
	}
	data := []string{"write -P 1 0 128k", "write -P 1 3M 1M", fmt.Sprintf("write -P 1 %d 64k", size-64<<10)}
	if !c.clone {
		d := newDisk(t, pool, image, size, c.options...)
		pool.IO(t, image, data...)
		return d
	}
	parent := image + "-parent"
	pool.CreateImage(t, parent, size, c.options...)
	pool.IO(t, parent, data...)
	pool.CreateSnapshot(t, parent+"@s")
	pool.Clone(t, parent+"@s", image, c.options...)
	return &disk{pool: pool, image: image, dir: program.Init(t), truth: map[string]content{}}
}

// wantMethod fails the test unless report, identity and log tell how the changes were found, and why in that way.
func (d *disk) wantMethod(t *testing.T, r backup.ImageReport, method, reason string) {
	t.Helper()
	p := r.Points[0]
	if r.Method != method || p.Method != method || !strings.Contains(r.Reason, reason) || p.Reason != r.Reason {
		t.Errorf("method %q, of the point %q, want %q; reason %q, of the point %q, want %q",
			r.Method, p.Method, method, r.Reason, p.Reason, reason)
	}
	if !strings.Contains(d.log, "method="+method) || !strings.Contains(d.log, reason) {
		t.Errorf("the log lacks method %q or reason %q:\n%s", method, reason, d.log)
	}
}

// writes is a change of commands for qemu-io.
func writes(commands ...string) func(*testing.T, *disk, status.Point) {
	return func(t *testing.T, d *disk, _ status.Point) { d.pool.IO(t, d.image, commands...) }
}

// admin is a change by the rbd program, where %s stands for the image.
func admin(commands ...string) func(*testing.T, *disk, status.Point) {
	return func(t *testing.T, d *disk, _ status.Point) {
		for _, command := range commands {
			d.pool.RBD(t, strings.Fields(fmt.Sprintf(command, d.pool.Spec(d.image)))...)
		}
	}
}

// all makes several changes one.
func all(changes ...func(*testing.T, *disk, status.Point)) func(*testing.T, *disk, status.Point) {
	return func(t *testing.T, d *disk, newest status.Point) {
		for _, change := range changes {
			change(t, d, newest)
		}
	}
}

// some are changes of a guest, in steps: each is found by the object maps, but where it is told not to look at them.
func some() []trackedStep {
	const byMaps = "object maps"
	return []trackedStep{
		{change: writes("write -P 2 1M 4k", "write -P 2 3M 20k"), method: "narrowed", reason: byMaps},
		{change: writes("write -z 0 64k", "discard 3M 1M", "discard 4M 4M"), method: "narrowed", reason: byMaps},
		{change: writes("write -P 3 0 4k", "write -P 3 5M 100k"), args: []string{"--diff=precise"}, method: "precise", reason: "asked for"},
		{change: writes("write -P 4 1M 512"), args: []string{"--verify-unchanged=100"}, method: "narrowed", reason: byMaps},
		{change: writes("read 0 1"), method: "narrowed", reason: byMaps},
	}
}

func trackedCases() []trackedCase {
	return append([]trackedCase{
		{name: "by change", size: 64 << 20, options: []string{"--object-size=1M"}, steps: []trackedStep{
			{change: writes("write -P 2 8M 4M", "write -P 2 31M 512"), method: "narrowed", reason: "object maps name 5 of 64 objects"},
			{change: writes("write -P 3 9M 4k", "write -P 3 40M 512"), method: "narrowed", reason: "object maps name 2 of 64 objects"},
			{change: writes("discard 1M 1M"), args: []string{"--diff=precise"}, method: "precise", reason: "asked for"},
			{change: writes("write -P 4 50M 4k"), method: "narrowed", reason: "by existence alone"}, // there was no mark
			{change: writes("write -P 4 51M 4k"), method: "narrowed", reason: "object maps name 1 of 64 objects"},
		}},
		{name: "fancy striping", options: []string{"--object-size=64K", "--stripe-unit=16K", "--stripe-count=4"}, steps: some()},
		{name: "stripes of whole objects", options: []string{"--object-size=1M", "--stripe-unit=1M", "--stripe-count=3"}, steps: some()},
		{name: "small objects", options: []string{"--object-size=4K"}, steps: some()},
		{name: "large objects", size: 80 << 20, options: []string{"--object-size=32M"}, steps: some()},
		{name: "clone", clone: true, steps: some()},
		{name: "odd size", size: diskSize + 1, steps: some()},
		{name: "flattened", clone: true, steps: []trackedStep{
			{change: writes("write -P 2 1M 4k"), method: "narrowed", reason: "object maps"},
			{change: all(admin("flatten --no-progress %s"), writes("write -P 3 2M 4k")), method: "precise", reason: "flattened"},
			{change: writes("write -P 4 3M 4k"), method: "narrowed", reason: "object maps"},
		}},
		{name: "rolled back to the newest point", steps: []trackedStep{
			{change: func(t *testing.T, d *disk, newest status.Point) {
				d.pool.IO(t, d.image, "write -P 2 0 64k", "discard 0 4M", "write -P 2 5M 64k")
				d.pool.Rollback(t, d.image+"@"+newest.Snapshot)
				d.pool.IO(t, d.image, "write -P 3 6M 4k")
			}, method: "narrowed", reason: "object maps"},
		}},
		{
			// By librbd's own fast-diff nothing changes in the last step.
			name:   "rolled back behind the newest point",
			before: func(t *testing.T, d *disk) { d.pool.CreateSnapshot(t, d.image+"@first") },
			steps: []trackedStep{
				{change: admin("snap create --no-progress %s@same"), method: "narrowed", reason: "by existence alone"},
				{change: writes("write -P 2 0 64k"), method: "narrowed", reason: "by existence alone"},
				{change: admin("snap rollback --no-progress %s@same"), method: "narrowed", reason: "by existence alone"},
			},
		},
		{name: "smaller in between", steps: []trackedStep{
			{change: func(t *testing.T, d *disk, _ status.Point) {
				d.pool.Resize(t, d.image, 2<<20)
				d.pool.CreateSnapshot(t, d.image+"@small")
				d.pool.Resize(t, d.image, diskSize)
			}, method: "narrowed", reason: "another snapshot was made after"},
			{change: writes("write -P 2 5M 4k"), args: []string{"--verify-unchanged=100"}, method: "narrowed", reason: "by existence alone"},
		}},
		{name: "no size", steps: []trackedStep{
			{change: admin("resize --no-progress --allow-shrink --size 0B %s"), method: "precise", reason: "the image is empty"},
			{change: writes(), args: []string{"--diff=precise", "--verify-unchanged=100"}, method: "precise", reason: "the image is empty"},
			{change: all(admin("resize --no-progress --size 4M %s"), writes("write -P 2 1M 4k")), method: "narrowed", reason: "resized"},
		}},
	}, brokenMaps()...)
}

// TestEncrypted backs up images that are encrypted by librbd, as what they are without the key: QEMU opens a point with it.
func TestEncrypted(t *testing.T) {
	pool := cephtest.Require(t).Pool(t)
	for _, format := range []string{"luks1", "luks2"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			d := newDisk(t, pool, format, 48<<20)
			secret := filepath.Join(t.TempDir(), "secret")
			if err := os.WriteFile(secret, []byte("a passphrase"), 0o600); err != nil {
				t.Fatal(err)
			}
			pool.RBD(t, "encryption", "format", pool.Spec(format), format, secret)
			guest := func(commands ...string) {
				t.Helper()
				kind := strings.TrimSuffix(format, "1")
				image := fmt.Sprintf("driver=rbd,pool=%s,image=%s,conf=%s,encrypt.format=%s,encrypt.key-secret=key", pool.Name, format, pool.Conf, kind)
				d.encryptedIO(t, secret, image, commands...)
			}
			guest("write -P 1 0 1M", "write -P 1 20M 1M")
			newest := d.backup(t).Points[0]
			for i, args := range [][]string{{}, {"--verify-unchanged=100"}} {
				// The last one lies at the end of the image as it is without the key.
				guest(fmt.Sprintf("write -P %d 0 4k", i+2), fmt.Sprintf("write -P %d 31M 4k", i+2), "write -z 20M 64k")
				r := d.backup(t, args...)
				d.wantIncrement(t, r, newest.Point)
				newest = r.Points[0]
			}
			d.check(t)
			if format == "luks1" { // QEMU knows no other
				d.encryptedIO(t, secret, "driver=luks,key-secret=key,file.driver=qcow2,file.file.driver=file,file.file.filename="+d.path(newest),
					"read -P 3 0 4k", "read -P 1 4k 64k", "read -P 3 31M 4k", "read -P 0 20M 64k")
			}
		})
	}
}

// encryptedIO runs qemu-io with a key. The image is a set of --image-opts.
func (d *disk) encryptedIO(t *testing.T, secret, image string, commands ...string) {
	t.Helper()
	args := []string{"--object", "secret,id=key,file=" + secret, "--image-opts"}
	for _, command := range commands {
		args = append(args, "-c", command)
	}
	qemutest.Run(t, "qemu-io", append(args, image)...)
}

// TestMigration refuses images that are being migrated, from another image or from a file: asked for changes of one,
// librbd ends the process.
func TestMigration(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "vm", diskSize)
	pool.IO(t, "vm", "write -P 1 1M 1M")
	newest := d.backup(t)
	raw := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(raw, make([]byte, diskSize), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := fmt.Sprintf(`{"type":"raw","stream":{"type":"file","file_path":%q}}`, raw)
	pool.CreateImage(t, "moving", diskSize)
	pool.RBD(t, "migration", "prepare", pool.Spec("moving"), pool.Spec("moved"))
	pool.RBD(t, "migration", "prepare", "--import-only", "--source-spec", spec, pool.Spec("imported"))
	for _, image := range []string{"moved", "imported"} {
		for _, args := range [][]string{{}, {"--diff=precise", "--verify-unchanged=100"}, {"--dry-run"}} {
			r := program.Run(t, programtest.BackupArgs(pool, d.dir, append(args, image)...)...)
			wantComplaint(t, r, 1, "image is being migrated")
		}
		pool.RBD(t, "migration", "abort", "--no-progress", pool.Spec(image))
	}
	d.wantSound(t, newest)
}
