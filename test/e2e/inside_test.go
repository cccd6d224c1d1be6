package e2e

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// insideDoc is the document whose commands are tested here.
const insideDoc = "../../docs/inside.md"

// inside is what its commands are run on: a disk with a partition, an older point of it, and a device to restore to.
type inside struct {
	*disk
	point  repo.PointName
	want   content
	device *device
	kernel string
}

// names is the beginning of the document's first block.
const names = "DIR=/backup/rbd IMAGE=vm1 POINT=20261122T065012Z\n"

// prelude is set before each section's commands. What they leave when they fail is cleaned up; a loop device only if it
// still is theirs. The test's disk has no boot loader, and its kernel no driver for virtio.
const prelude = `set -euo pipefail
trap 'set +e
	mountpoint -q files && umount files
	[[ ${LOOP-} ]] && losetup --associated disk/vm1.raw | grep -q "^$LOOP:" && losetup --detach "$LOOP"
	mountpoint -q disk && umount disk' EXIT
qemu-system-x86_64() {
	command qemu-system-x86_64 "${@/if=virtio/if=none,id=disk}" -device nvme,drive=disk,serial=1 -nodefaults -no-user-config \
		-nographic -accel tcg -no-reboot -serial stdio -kernel "$KERNEL" -append "console=ttyS0 root=/dev/nvme0n1p1 rw panic=-1"
}
`

// TestInside runs the commands of the document on looking inside, and looks at what they have made. They must not change
// the chain.
func TestInside(t *testing.T) {
	t.Parallel()
	qemutest.Require(t, "nbdfuse", "qemu-nbd", "qemu-system-x86_64", "busybox", "mkfs.ext4", "debugfs", "losetup", "partx", "rsync")
	in := newInside(t)
	before := in.states(t)
	checks := map[string]func(*testing.T, string, string){
		"Single files":                   in.wantFstab,
		"Single files, without root":     in.wantFstab,
		"Boot it":                        in.wantBooted,
		"To one file":                    in.wantDisks("vm1.qcow2", "vm1.raw"),
		"To VMware, Hyper-V, VirtualBox": in.wantDisks("vm1.vmdk", "vm1.vhdx", "vm1.vdi"),
		"To a bare disk":                 func(t *testing.T, _, _ string) { in.device.wantDisk(t, in.want) },
		"A whole repository elsewhere":   in.wantCopies,
	}
	setting, sections := readCommands(t, insideDoc)
	for title, commands := range sections {
		if checks[title] == nil {
			t.Errorf("nobody looks at what comes of %q", title)
			continue
		}
		t.Run(title, func(t *testing.T) {
			dir := t.TempDir()
			checks[title](t, dir, in.bash(t, dir, setting+commands))
		})
		delete(checks, title)
	}
	for title := range checks {
		t.Errorf("the document has no commands for %q", title)
	}
	if after := in.states(t); !slices.Equal(after, before) {
		t.Errorf("the chain was changed:\n%+v, before\n%+v", after, before)
	}
	in.check(t)
}

// newInside backs up a disk twice. Its file system has been cut off with a file that only the journal has.
func newInside(t *testing.T) *inside {
	t.Helper()
	raw := makeRootDisk(t)
	mark(t, raw, "Monday")
	cutOff(t, raw)
	fileSystem, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	whole := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(whole, append(partitionTable(len(fileSystem)), fileSystem...), 0o600); err != nil {
		t.Fatal(err)
	}
	pool := cephtest.Require(t).Pool(t)
	pool.ImportFile(t, whole, "vm1")
	in := &inside{disk: &disk{pool: pool, image: "vm1", dir: program.Init(t), truth: map[string]content{}}, kernel: testKernel(t)}
	pool.IO(t, "vm1", "write -P 1 512k 4k")
	in.backup(t)
	pool.IO(t, "vm1", "write -P 2 512k 8k")
	older := in.backup(t).Points[0]
	pool.IO(t, "vm1", "write -P 3 1M 1M") // the newest point is another disk
	in.backup(t)
	in.point, in.want = older.Point, in.truth[older.File]
	in.device = newDevice(t, in.want.size+(8<<20))
	return in
}

const fstab = "/dev/nvme0n1p1 / ext4 defaults 0 1\n"

// cutOff mounts a file system, writes a file that it syncs, and gives raw what is on the disk at that moment.
func cutOff(t *testing.T, raw string) {
	t.Helper()
	dir := t.TempDir()
	script := `set -eu
		loop=$(losetup --find --show "$1")
		trap 'umount "$2"; losetup --detach "$loop"' EXIT
		mount "$loop" "$2"
		mkdir "$2/etc"
		printf %s "$3" >"$2/etc/fstab"
		sync "$2/etc/fstab"
		cp "$1" "$1.cut"`
	qemutest.Run(t, "bash", "-c", script, "bash", raw, dir, fstab)
	if err := os.Rename(raw+".cut", raw); err != nil {
		t.Fatal(err)
	}
	if out := qemutest.Run(t, "debugfs", "-R", "ls /", raw); strings.Contains(string(out), "etc") {
		t.Errorf("the file is not in the journal alone:\n%s", out)
	}
}

// partitionTable is the first MiB of a disk, with a master boot record that has one partition: size bytes behind that MiB.
func partitionTable(size int) []byte {
	head := make([]byte, 1<<20)
	entry := head[446:]
	entry[4] = 0x83 // Linux
	binary.LittleEndian.PutUint32(entry[8:], uint32(len(head)/512))
	binary.LittleEndian.PutUint32(entry[12:], uint32(size/512))
	head[510], head[511] = 0x55, 0xaa
	return head
}

// readCommands reads the blocks of commands of a document: what is before the first section, and those of each section.
func readCommands(t *testing.T, document string) (setting string, sections map[string]string) {
	t.Helper()
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")
	sections = map[string]string{}
	for i, part := range strings.Split(string(text), "\n## ") {
		title, _, _ := strings.Cut(part, "\n")
		for _, found := range block.FindAllStringSubmatch(part, -1) {
			if i == 0 {
				setting += found[1]
			} else {
				sections[title] += found[1]
			}
		}
	}
	if !strings.HasPrefix(setting, names) {
		t.Fatalf("the document begins with %q, want %q", setting, names)
	}
	return setting, sections
}

// bash runs commands of the document on the test's disk, in a folder, and gives what they print.
func (in *inside) bash(t *testing.T, dir, commands string) string {
	t.Helper()
	commands = strings.NewReplacer(
		names, "DIR="+in.dir+" IMAGE=vm1 POINT="+string(in.point)+"\n", "/dev/sdX", in.device.path,
	).Replace(commands)
	c := exec.CommandContext(t.Context(), "bash", "-c", prelude+commands)
	c.Dir = dir
	c.Env = append(os.Environ(), "PATH="+filepath.Dir(program.Path)+":"+os.Getenv("PATH"), "KERNEL="+in.kernel)
	c.WaitDelay = time.Minute // for nbdfuse, which ends after what it shows was unmounted
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, commands, out)
	}
	return string(out)
}

// states are those of all files of the chain.
func (in *inside) states(t *testing.T) (states []fileState) {
	t.Helper()
	paths, err := filepath.Glob(in.dir + "/vm1/*.qcow2")
	if err != nil || len(paths) != 3 {
		t.Fatalf("files of the chain: %v, %v", paths, err)
	}
	for _, path := range paths {
		states = append(states, stateOf(t, path))
	}
	return states
}

func (in *inside) wantFstab(t *testing.T, dir, _ string) {
	if got, err := os.ReadFile(filepath.Join(dir, "fstab")); err != nil || string(got) != fstab {
		t.Errorf("file from the disk: %q, %v, want %q", got, err, fstab)
	}
}

func (in *inside) wantBooted(t *testing.T, dir, said string) {
	if !strings.Contains(said, "booted: Monday") {
		t.Errorf("the virtual machine has said:\n%s", said)
	}
	if backing := qemutest.Info(t, filepath.Join(dir, "try.qcow2")).FullBackingFile; filepath.Dir(backing) != in.dir+"/vm1" {
		t.Errorf("overlay on %q", backing)
	}
}

// wantDisks compares files of any format that QEMU knows with the point.
func (in *inside) wantDisks(files ...string) func(*testing.T, string, string) {
	return func(t *testing.T, dir, _ string) {
		for _, file := range files {
			raw := filepath.Join(t.TempDir(), "converted.raw")
			qemutest.Run(t, "qemu-img", "convert", "-f", filepath.Ext(file)[1:], "-O", "raw", filepath.Join(dir, file), raw)
			wantFile(t, raw, in.want)
		}
	}
}

func (in *inside) wantCopies(t *testing.T, dir, said string) {
	in.wantDisks("from-copy.raw", "from-one.raw")(t, dir, said)
	for _, copied := range []string{"copy", "one"} {
		other := *in.disk
		other.dir = filepath.Join(dir, copied)
		other.check(t)
	}
	if _, err := os.Stat(filepath.Join(dir, "copy/vm1/.state")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the copy has more than points: %v", err)
	}
}
