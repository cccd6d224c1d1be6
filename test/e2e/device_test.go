package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

// device is a block device over a file.
type device struct {
	path string // /dev/loopN
	file string
	size int64 // bytes
}

// newDevice makes a device that is full of garbage. The options are those of losetup.
func newDevice(t *testing.T, size int64, options ...string) *device {
	t.Helper()
	qemutest.Require(t, "losetup")
	if os.Geteuid() != 0 {
		qemutest.Missing(t, "loop devices need root")
	}
	v := &device{file: filepath.Join(t.TempDir(), "device"), size: size}
	if err := os.WriteFile(v.file, garbage(size), 0o600); err != nil {
		t.Fatal(err)
	}
	v.path = strings.TrimSpace(string(qemutest.Run(t, "losetup", append(options, "--find", "--show", v.file)...)))
	t.Cleanup(func() { qemutest.Run(t, "losetup", "--detach", v.path) })
	return v
}

// garbage is what length bytes of a device have in the beginning, from any multiple of 8 on.
func garbage(length int64) []byte {
	return bytes.Repeat([]byte("garbage!"), int(length/8+1))[:length]
}

// read reads from the device.
func (v *device) read(t *testing.T, off, length int64) []byte {
	t.Helper()
	f, err := os.Open(v.path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, length)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	return b
}

// wantDisk fails the test unless the device begins with a disk, and has its garbage still behind it.
func (v *device) wantDisk(t *testing.T, want content) {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "copied")
	if err := os.WriteFile(copied, v.read(t, 0, want.size), 0o600); err != nil {
		t.Fatal(err)
	}
	wantFile(t, copied, want)
	end := (want.size + 7) / 8 * 8
	if !bytes.Equal(v.read(t, end, v.size-end), garbage(v.size-end)) {
		t.Error("something was written behind the end of the disk")
	}
}

// wantGarbage fails the test unless the device is as it was in the beginning.
func (v *device) wantGarbage(t *testing.T) {
	t.Helper()
	if !bytes.Equal(v.read(t, 0, v.size), garbage(v.size)) {
		t.Error("something was written")
	}
}

// wantUnfinished fails the test unless the device can't be mistaken for a disk.
func (v *device) wantUnfinished(t *testing.T) {
	t.Helper()
	const head = 1 << 20
	if !bytes.Equal(v.read(t, 0, head), make([]byte, head)) {
		t.Error("the device does not begin with zeroes")
	}
	if out, err := qemutest.Try("blkid", "--probe", v.path); err == nil {
		t.Errorf("it passes for %s", out)
	}
}

// TestDevice restores to devices that are larger than the disk, with sectors of either size, again and again.
func TestDevice(t *testing.T) {
	t.Parallel()
	d := newDisk(t, cephtest.Require(t).Pool(t), "vm", diskSize+1000)
	devices := []*device{newDevice(t, 12<<20), newDevice(t, 12<<20, "--sector-size=4096")}
	changes := []string{
		"write -P 1 0 5M", "write -z 64k 3M", "write -P 2 8388500 1108", "write -z 0 8k", "write -z 4094k 70k", "write -z 0 8M",
	}
	for _, change := range changes {
		d.pool.IO(t, d.image, change)
		p := d.backup(t).Points[0]
		for _, v := range devices {
			d.restore(t, p.Point, v.path, "--overwrite")
			v.wantDisk(t, d.truth[p.File])
		}
	}
	var file syscall.Stat_t
	if err := syscall.Stat(devices[0].file, &file); err != nil || file.Blocks*512 > devices[0].size-7<<20 {
		t.Errorf("zeroes were written instead of discarded: the file of the device has %d bytes (%v)", file.Blocks*512, err)
	}
}

// TestDeviceRefused tries devices that are not fit to be restored to. Nothing is written.
func TestDeviceRefused(t *testing.T) {
	t.Parallel()
	d := newDisk(t, cephtest.Require(t).Pool(t), "vm", diskSize)
	d.pool.IO(t, d.image, "write -P 1 0 8M")
	point := d.backup(t).Points[0].Point
	small, large := newDevice(t, diskSize-512), newDevice(t, diskSize)
	refused := func(v *device, says string, more ...string) {
		t.Helper()
		wantComplaint(t, program.Run(t, d.restoreArgs(point, v.path, more...)...), 1, says)
		v.wantGarbage(t)
	}
	refused(large, "what the device holds would be lost (--overwrite does it)")
	refused(small, fmt.Sprintf("it has %d bytes, the disk has %d", diskSize-512, diskSize), "--overwrite")
	user, err := os.OpenFile(large.path, os.O_RDONLY|syscall.O_EXCL, 0) // as a mount does
	if err != nil {
		t.Fatal(err)
	}
	refused(large, "it is in use (mounted?)", "--overwrite")
	user.Close()
	qemutest.Run(t, "blockdev", "--setro", large.path)
	refused(large, "it is read-only", "--overwrite")
	qemutest.Run(t, "blockdev", "--setrw", large.path)
	r := program.Run(t, d.restoreArgs(point, large.path, "--overwrite")...)
	if r.Code != 0 {
		t.Errorf("in the end: exit status %d\n%s", r.Code, r.Stderr)
	}
}

// TestDeviceDamage restores a point that turns out to be damaged when some of it is on the device.
func TestDeviceDamage(t *testing.T) {
	t.Parallel()
	d := newDisk(t, cephtest.Require(t).Pool(t), "vm", diskSize)
	d.pool.IO(t, d.image, "write -P 1 0 7M", "write -P 2 7M 1M")
	p := d.backup(t, "--compress=none").Points[0]
	edit(t, d, p, func(b []byte) []byte {
		b[bytes.LastIndex(b, bytes.Repeat([]byte{2}, 64<<10))] = 3
		return b
	})
	v := newDevice(t, diskSize)
	r := program.Run(t, d.restoreArgs(p.Point, v.path, "--overwrite", "--parallel=1")...)
	wantComplaint(t, r, 1, "other content than was stored")
	if bytes.Equal(v.read(t, 2<<20, 1<<20), garbage(1<<20)) {
		t.Error("the damage was found before anything was written")
	}
	v.wantUnfinished(t)
}

// TestDeviceKilled kills a restore midway.
func TestDeviceKilled(t *testing.T) {
	t.Parallel()
	const size, probe = 64 << 20, 2 << 20
	d := newDisk(t, cephtest.Require(t).Pool(t), "vm", size)
	d.pool.IO(t, d.image, "write -P 1 0 64M")
	p := d.backup(t).Points[0]
	v := newDevice(t, size)
	for try := 1; !d.killRestore(t, p, v, probe); try++ {
		if try == 10 {
			t.Fatal("each restore was faster than we are")
		}
		if err := os.WriteFile(v.path, garbage(size), 0); err != nil {
			t.Fatal(err)
		}
	}
	v.wantUnfinished(t)
	d.restore(t, p.Point, v.path, "--overwrite")
	v.wantDisk(t, d.truth[p.File])
}

// killRestore kills a restore when it has written at the offset of probe. It tells whether the restore was not done yet.
func (d *disk) killRestore(t *testing.T, p status.Point, v *device, probe int64) bool {
	t.Helper()
	c := program.Command(t.Context(), d.restoreArgs(p.Point, v.path, "--overwrite", "--parallel=1")...)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); bytes.Equal(v.read(t, probe, 8), garbage(8)); {
		if time.Now().After(deadline) {
			t.Error("nothing is written")
			break
		}
	}
	_ = c.Process.Kill()
	_ = c.Wait()
	return c.ProcessState.ExitCode() == -1 && bytes.Equal(v.read(t, 0, 8), make([]byte, 8))
}
