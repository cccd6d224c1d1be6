package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/prune"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
	"github.com/rbd2qcow2/rbd2qcow2/internal/verify"
)

// trial is a run of verify --boot or --fsck.
type trial struct {
	*exec.Cmd
	tmp string // its temporary directory
}

func (d *disk) trial(t *testing.T, args ...string) trial {
	t.Helper()
	tmp := t.TempDir()
	c := program.Command(t.Context(), append([]string{"verify", d.dir}, args...)...)
	c.Env = append(c.Env, "TMPDIR="+tmp)
	return trial{c, tmp}
}

// wantEnded fails the test unless a run had that exit status and has left nothing behind.
func (r trial) wantEnded(t *testing.T, code int) {
	t.Helper()
	if got := r.ProcessState.ExitCode(); got != code {
		t.Fatalf("%v: exit status %d, want %d\n%s%s", r.Args, got, code, r.Stdout, r.Stderr)
	}
	if left, err := os.ReadDir(r.tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if pids := r.children(t); len(pids) > 0 {
		t.Errorf("processes %v still run", pids)
	}
}

// children are the processes that the run has started: those that have the name of its temporary directory among their arguments.
func (r trial) children(t *testing.T) (pids []string) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	for _, line := range lines {
		if args, err := os.ReadFile(line); err == nil && bytes.Contains(args, []byte(r.tmp)) {
			pids = append(pids, filepath.Base(filepath.Dir(line)))
		}
	}
	return pids
}

// try runs verify to its end, with that exit status.
func (d *disk) try(t *testing.T, code int, args ...string) (points []verify.PointReport) {
	t.Helper()
	r := d.trial(t, append([]string{"--json"}, args...)...)
	_ = r.Run() // the status is looked at
	r.wantEnded(t, code)
	var report verify.Report
	if err := json.Unmarshal(r.Stdout.(*bytes.Buffer).Bytes(), &report); err != nil || len(report.Images) != 1 {
		t.Fatalf("report: %v\n%s%s", err, r.Stdout, r.Stderr)
	}
	return report.Images[0].Points
}

// kernelArgs boot a kernel that needs no boot loader, from the first NVMe disk.
func kernelArgs(t *testing.T) (args []string) {
	t.Helper()
	for _, arg := range []string{"-kernel", testKernel(t), "-append", "console=ttyS0 root=/dev/nvme0n1 rw panic=-1",
		"-device", "nvme,drive=disk,serial=1", "-accel", "tcg"} {
		args = append(args, "--qemu-arg", arg)
	}
	return append(args, "--boot", "--boot-memory=256M", "--boot-timeout", bootTime.String())
}

// TestVerifyBoot boots virtual machines from points, and one from a point whose file system is spoiled.
func TestVerifyBoot(t *testing.T) {
	t.Parallel()
	qemutest.Require(t, "qemu-system-x86_64", "busybox", "mkfs.ext4", "debugfs", "e2fsck")
	args := kernelArgs(t)
	d := newDisk(t, cephtest.Require(t).Pool(t), "vm", rootDiskSize)
	raw := makeRootDisk(t)
	mark(t, raw, "Monday")
	d.pool.Update(t, d.image, raw)
	p := []status.Point{d.backup(t).Points[0]}
	qemutest.Run(t, "debugfs", "-w", "-R", "rm /sbin/init", raw)
	d.pool.Update(t, d.image, raw)
	p = append(p, d.backup(t).Points[0])

	older := "vm@" + string(p[0].Point)
	got := d.try(t, 0, append(args, "--fsck", "--boot-expect=^booted: Monday", older)...)
	if len(got) != 1 || got[0].Point != p[0].Point || got[0].Status != verify.Tried || got[0].Boot.Status != verify.TrialPassed ||
		got[0].Boot.Seconds == 0 || got[0].Fsck.Status != verify.TrialPassed {
		t.Errorf("report: %+v", got)
	}
	r := d.trial(t, append(args, "--boot-expect=^booted: ", older, "vm")...)
	_ = r.Run() // the status is looked at
	r.wantEnded(t, 4)
	said := r.Stdout.(*bytes.Buffer).String()
	if !strings.HasPrefix(said, "vm@"+string(p[1].Point)+": does not boot: the virtual machine has ended after ") ||
		!strings.Contains(said, "Kernel panic") || strings.ContainsAny(said, "\x1b\r") {
		t.Errorf("said:\n%s", said)
	}
	d.check(t)
}

// TestVerifyBootHangs interrupts a boot that never comes to an end. Until then no fold touches the points.
func TestVerifyBootHangs(t *testing.T) {
	t.Parallel()
	qemutest.Require(t, "qemu-system-x86_64")
	d := newDisk(t, cephtest.Require(t).Pool(t), "vm", diskSize)
	p := d.month(t, 3)
	got := d.try(t, 4, "--boot", "--boot-timeout=3s")
	if len(got) != 1 || got[0].Boot == nil || !strings.Contains(got[0].Boot.Message, "within 3s") {
		t.Errorf("report: %+v", got)
	}
	r := d.trial(t, "--boot", "vm@"+string(p[1].Point))
	must(t, r.Start())
	for deadline := time.Now().Add(time.Minute); !isOpen(t, r.children(t), d.path(p[0])); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no virtual machine after a minute\n%s", r.Stderr)
		}
	}
	report := d.prune(t, 1, "--keep-last=1").Images[0]
	if report.Status != prune.Partly || !report.Points[0].InUse || !report.Points[1].InUse {
		t.Errorf("pruned: %+v", report)
	}
	must(t, r.Process.Signal(syscall.SIGINT))
	start := time.Now()
	_ = r.Wait() // the status is looked at
	r.wantEnded(t, 130)
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %s to end", took)
	}
	d.check(t)
}

// isOpen says whether one of the processes has a file open.
func isOpen(t *testing.T, pids []string, file string) bool {
	t.Helper()
	for _, pid := range pids {
		links, err := filepath.Glob("/proc/" + pid + "/fd/*")
		must(t, err)
		for _, link := range links {
			if open, err := os.Readlink(link); err == nil && open == file {
				return true
			}
		}
	}
	return false
}

// TestVerifyFsck checks a disk with partitions as a power cut leaves it, and then with damage.
func TestVerifyFsck(t *testing.T) {
	t.Parallel()
	requireFsck(t)
	pool := cephtest.Require(t).Pool(t)
	ext, xfs := makeCutOffRoot(t), makeCutOffXFS(t)
	raw := joinPartitions(t, ext, xfs)
	pool.ImportFile(t, raw, "vm")
	d := &disk{pool: pool, image: "vm", dir: program.Init(t), truth: map[string]content{}}
	d.backup(t)
	d.wantFsck(t, 0, "--fsck-mount", "partition 1 (ext4): good", "partition 2 (xfs): good")
	d.wantFsck(t, 3, "", "partition 1 (ext4): good", "partition 2 (xfs): its log has to be replayed")

	qemutest.Run(t, "e2fsck", "-p", ext) // or the journal mends it
	qemutest.Run(t, "debugfs", "-w", "-R", "clri /bin/busybox", ext)
	wipe(t, xfs, xfsSize/4*3+512, 512) // how the last quarter is allocated
	d.pool.Update(t, "vm", joinPartitions(t, ext, xfs))
	d.backup(t)
	d.wantFsck(t, 4, "--fsck-mount", "partition 1 (ext4): e2fsck -fn: ", "partition 2 (xfs): can't be mounted")
	r := d.trial(t, "--fsck")
	_ = r.Run() // the status is looked at
	r.wantEnded(t, 4)
	point := list(t, d.dir)[0].Points[1].Point
	said := strings.Split(r.Stdout.(*bytes.Buffer).String(), "\n")
	if len(said) != 3 || !strings.HasPrefix(said[0], "vm@"+string(point)+": file system of partition 1 (ext4): e2fsck") ||
		!strings.HasPrefix(said[1], "vm@"+string(point)+": not checked: partition 2 (xfs): ") {
		t.Errorf("said: %q", said)
	}

	wipe(t, ext, 0, 64<<10)
	d.pool.Update(t, "vm", joinPartitions(t, ext, makeCutOffXFS(t)))
	d.backup(t)
	d.wantFsck(t, 3, "--fsck-mount", "partition 1: nothing known is there", "partition 2 (xfs): good")
	d.check(t)
}

// TestVerifyFsckWhole checks a disk that is one file system, and one that is none.
func TestVerifyFsckWhole(t *testing.T) {
	t.Parallel()
	requireFsck(t)
	pool := cephtest.Require(t).Pool(t)
	raw := makeCutOffRoot(t)
	pool.ImportFile(t, raw, "vm")
	d := &disk{pool: pool, image: "vm", dir: program.Init(t), truth: map[string]content{}}
	d.backup(t)
	d.wantFsck(t, 0, "", "whole disk (ext4): good")
	d.pool.IO(t, "vm", "write -z 0 16M")
	d.backup(t)
	d.wantFsck(t, 3, "", "whole disk: nothing known is there")
	d.check(t)
}

func requireFsck(t *testing.T) {
	t.Helper()
	qemutest.Require(t, "qemu-storage-daemon", "blkid", "partx", "busybox", "mkfs.ext4", "e2fsck", "debugfs", "mkfs.xfs",
		"xfs_repair", "xfs_io", "losetup", "dd")
}

// wantFsck checks the file systems of the newest point. What is said of each has to begin like that.
func (d *disk) wantFsck(t *testing.T, code int, option string, want ...string) {
	t.Helper()
	args := []string{"--fsck"}
	if option != "" {
		args = append(args, option)
	}
	points := d.try(t, code, args...)
	if len(points) != 1 || points[0].Fsck == nil || len(points[0].Fsck.FileSystems) != len(want) {
		t.Fatalf("report: %+v", points)
	}
	for i, fs := range points[0].Fsck.FileSystems {
		said := fs.String()
		if fs.Status == verify.TrialPassed {
			said += "good"
		}
		if !strings.HasPrefix(said, want[i]) {
			t.Errorf("said %q, want %q", said, want[i])
		}
	}
}

func makeCutOffRoot(t *testing.T) (raw string) {
	t.Helper()
	raw = makeRootDisk(t)
	cutOff(t, raw)
	return raw
}

// xfsSize is about the smallest that mkfs.xfs makes, in bytes: four parts of whole blocks.
const xfsSize = 320 << 20

// makeCutOffXFS makes a file system that was shut down in the middle, with a log that has to be replayed.
func makeCutOffXFS(t *testing.T) (raw string) {
	t.Helper()
	raw = filepath.Join(t.TempDir(), "xfs.raw")
	must(t, os.WriteFile(raw, nil, 0o600))
	must(t, os.Truncate(raw, xfsSize))
	qemutest.Run(t, "mkfs.xfs", "-q", raw)
	script := `set -eu
		loop=$(losetup --find --show "$1")
		trap 'umount "$2"; losetup --detach "$loop"' EXIT
		mount "$loop" "$2"
		for i in $(seq 100); do echo "$i" >"$2/$i"; done
		xfs_io -x -c "shutdown -f" "$2"`
	qemutest.Run(t, "bash", "-c", script, "bash", raw, t.TempDir())
	return raw
}

// joinPartitions makes a disk of two partitions, behind a MiB with their table.
func joinPartitions(t *testing.T, first, second string) (raw string) {
	t.Helper()
	head := partitionTable(rootDiskSize)
	entry := head[446+16:]
	entry[4] = 0x83 // Linux
	binary.LittleEndian.PutUint32(entry[8:], (1<<20+rootDiskSize)/512)
	binary.LittleEndian.PutUint32(entry[12:], xfsSize/512)
	raw = filepath.Join(t.TempDir(), "disk.raw")
	must(t, os.WriteFile(raw, head, 0o600))
	must(t, os.Truncate(raw, int64(len(head))+rootDiskSize+xfsSize))
	for file, at := range map[string]string{first: "1", second: "17"} { // MiB
		qemutest.Run(t, "dd", "if="+file, "of="+raw, "bs=1M", "seek="+at, "conv=sparse,notrunc", "status=none")
	}
	return raw
}

// wipe fills a part of a file with zeroes.
func wipe(t *testing.T, file string, off, n int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt(make([]byte, n), off)
	must(t, errors.Join(err, f.Close()))
}
