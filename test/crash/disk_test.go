package crash

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
)

// fileSystem is how one is made, and what it expects of a disk.
type fileSystem struct {
	mkfs []string // command, to which the disk is added
	size int64    // bytes
	// untorn is how many bytes from its beginning the disk must not write in part.
	untorn int64
}

// xfs shares extents between files. It is of the least size that there is.
func xfs() fileSystem {
	return fileSystem{mkfs: []string{"mkfs.xfs", "-q", "-m", "reflink=1"}, size: 300 << 20}
}

// ext4 can't share extents. Its superblock has two sectors and one checksum, and half of it does not mount.
func ext4() fileSystem {
	mkfs := []string{"mkfs.ext4", "-q", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"}
	return fileSystem{mkfs: mkfs, size: 160 << 20, untorn: 4096}
}

// newDisk makes a file with an empty file system.
func (f fileSystem) newDisk(t *testing.T) (disk string) {
	t.Helper()
	qemutest.Require(t, f.mkfs[0], "losetup", "mount")
	if os.Geteuid() != 0 {
		qemutest.Missing(t, "loop devices need root")
	}
	disk = filepath.Join(t.TempDir(), "disk")
	createSparse(t, disk, f.size)
	qemutest.Run(t, f.mkfs[0], append(f.mkfs[1:], disk)...)
	return disk
}

func createSparse(t *testing.T, name string, size int64) {
	t.Helper()
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, size); err != nil {
		t.Fatal(err)
	}
}

// mountXFS makes a file system that shares extents, for as long as the test runs.
func mountXFS(t *testing.T) (dir string) {
	t.Helper()
	f := xfs()
	f.size = 4 << 30 // sparse
	dir, _ = mount(t, f.newDisk(t))
	return dir
}

// mount mounts the file system in a file until unmount is called, at the latest at the end of the test.
func mount(t *testing.T, disk string) (dir string, unmount func()) {
	t.Helper()
	dir = t.TempDir()
	qemutest.Run(t, "mount", "-o", "loop", disk, dir)
	mounted := true
	unmount = func() {
		if mounted {
			mounted = false
			qemutest.Run(t, "umount", dir)
		}
	}
	t.Cleanup(unmount)
	return dir, unmount
}
