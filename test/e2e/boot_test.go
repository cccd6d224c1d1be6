package e2e

import (
	"bufio"
	"context"
	"crypto/sha256"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
)

// bootTime is how long a virtual machine may take to its marker: seconds, but the processor is emulated, and others work.
const bootTime = 2 * time.Minute

// initScript is all that the virtual machine does. It says which disk it has booted from and writes to it.
const initScript = `#!/bin/busybox sh
/bin/busybox cat /bin/busybox >/written && /bin/busybox sync && /bin/busybox echo "booted: $(/bin/busybox cat /marker)"
/bin/busybox poweroff -f
`

// TestBoot boots a Linux from the newest point and from an older one, as one does for a look at a backup: through an
// overlay that is thrown away. The chain must stay as it is.
func TestBoot(t *testing.T) {
	t.Parallel()
	qemutest.Require(t, "qemu-system-x86_64", "busybox", "mkfs.ext4", "debugfs")
	kernel := testKernel(t)
	d := newDisk(t, cephtest.Require(t).Pool(t), "vm", rootDiskSize)
	raw := makeRootDisk(t)
	var points []string
	for _, marker := range []string{"Monday", "Tuesday"} {
		mark(t, raw, marker)
		d.pool.Update(t, d.image, raw)
		points = append(points, d.path(d.backup(t).Points[0]))
	}
	before := []fileState{stateOf(t, points[0]), stateOf(t, points[1])}
	for i, marker := range []string{"Monday", "Tuesday"} {
		overlay := filepath.Join(t.TempDir(), "overlay.qcow2")
		qemutest.Create(t, "-f", "qcow2", "-b", points[i], "-F", "qcow2", overlay)
		boot(t, kernel, overlay, "booted: "+marker)
		if info := qemutest.Info(t, overlay); info.ActualSize < 1<<20 {
			t.Errorf("%s: the guest has written more than 1 MiB, its overlay has %d bytes", marker, info.ActualSize)
		}
	}
	for i, point := range points {
		if after := stateOf(t, point); after != before[i] {
			t.Errorf("%s was changed by a boot from an overlay: %+v, before %+v", point, after, before[i])
		}
	}
	d.check(t)
}

// testKernel gives the path of a kernel to boot, see scripts/test-kernel.
func testKernel(t *testing.T) string {
	t.Helper()
	script := exec.Command("../../scripts/test-kernel")
	script.Stderr = t.Output()
	path, err := script.Output()
	if err != nil {
		qemutest.Missing(t, "find a kernel to boot: %v", err)
	}
	return strings.TrimSpace(string(path))
}

const rootDiskSize = 16 << 20 // bytes

// makeRootDisk makes the root disk of the virtual machine, without a marker.
func makeRootDisk(t *testing.T) (raw string) {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for file, content := range map[string][]byte{"bin/busybox": program, "sbin/init": []byte(initScript), "dev/.keep": nil} {
		path := filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	raw = filepath.Join(t.TempDir(), "root.raw")
	qemutest.Run(t, "mkfs.ext4", "-q", "-d", root, raw, "16M")
	return raw
}

// mark sets the marker of a root disk.
func mark(t *testing.T, raw, marker string) {
	t.Helper()
	dir := t.TempDir()
	file, commands := filepath.Join(dir, "marker"), filepath.Join(dir, "commands")
	for path, text := range map[string]string{file: marker, commands: "rm marker\nwrite " + file + " marker\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	qemutest.Run(t, "debugfs", "-w", "-f", commands, raw)
}

// boot starts a virtual machine and fails the test unless its console shows a line in time.
func boot(t *testing.T, kernel, disk, line string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootTime)
	defer cancel()
	vm := exec.CommandContext(ctx, "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-nographic", "-accel", "tcg", "-m", "256",
		"-no-reboot", "-serial", "stdio", "-kernel", kernel, "-append", "console=ttyS0 root=/dev/nvme0n1 rw panic=-1",
		"-drive", "if=none,id=disk,format=qcow2,file="+disk, "-device", "nvme,drive=disk,serial=1")
	vm.Stderr = t.Output()
	console, err := vm.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	found := false
	for lines := bufio.NewScanner(console); !found && lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
		found = strings.TrimSpace(lines.Text()) == line
	}
	cancel()
	_ = vm.Wait() // it was killed
	if !found {
		t.Fatalf("the virtual machine did not say %q; its console:\n%s", line, said.String())
	}
}

// fileState is what must not change of a file.
type fileState struct {
	sha256  [sha256.Size]byte
	modTime time.Time
	mode    os.FileMode
}

func stateOf(t *testing.T, path string) fileState {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fileState{sha256.Sum256(content), info.ModTime(), info.Mode()}
}
