package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/programtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// oldChain is an image and its chain as the Python tool made it, here with qemu-img, qemu-io and rbd alone.
type oldChain struct {
	*disk
	folder        string
	first, newest string // seconds since 1970: names of points and snapshots
}

// newOldChain makes a chain of two points of an image of size bytes. Both snapshots are still there, as the tool left
// them unless told otherwise, with one more that an interrupted run made.
func newOldChain(t *testing.T, pool *cephtest.Pool, image string, size int64) *oldChain {
	t.Helper()
	now := time.Now().Unix()
	c := &oldChain{
		disk:   &disk{pool: pool, image: image, dir: t.TempDir(), truth: map[string]content{}},
		first:  strconv.FormatInt(now-60, 10),
		newest: strconv.FormatInt(now, 10),
	}
	c.folder = filepath.Join(c.dir, image)
	if err := os.Mkdir(c.folder, 0o755); err != nil {
		t.Fatal(err)
	}
	pool.CreateImage(t, image, size)
	qemutest.Create(t, "-f", "qcow2", filepath.Join(c.folder, "empty.qcow2"), "1M")
	pool.CreateSnapshot(t, image+"@"+strconv.FormatInt(now-120, 10))
	c.point(t, c.first, "empty.qcow2", size, "write -P 1 0 2M", "write -P 1 5M 64k", "write -P 1 7M 64k")
	c.point(t, c.newest, image+"@"+c.first+".qcow2", size, "write -P 2 1M 64k", "write -P 2 6M 64k", "write -z 7M 64k")
	if err := os.WriteFile(filepath.Join(c.folder, "qcow2_k1d8s3_x"), []byte("half a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	return c
}

// point does the same to the image and to a new file, and makes the snapshot.
func (c *oldChain) point(t *testing.T, seconds, backing string, size int64, commands ...string) {
	t.Helper()
	c.pool.IO(t, c.image, commands...)
	c.pool.CreateSnapshot(t, c.image+"@"+seconds)
	name := c.image + "@" + seconds + ".qcow2"
	file := filepath.Join(c.folder, name)
	qemutest.Create(t, "-f", "qcow2", "-o", "backing_fmt=qcow2,backing_file="+backing, file, strconv.FormatInt(size, 10))
	qemutest.IO(t, file, commands...)
	if err := os.Chmod(file, 0o400); err != nil {
		t.Fatal(err)
	}
	c.truth[filepath.Join(c.image, name)] = c.contentAt(t, seconds)
}

// write writes to the newest file, which then differs from its snapshot.
func (c *oldChain) write(t *testing.T, command string) {
	t.Helper()
	file := filepath.Join(c.folder, c.image+"@"+c.newest+".qcow2")
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	qemutest.IO(t, file, command)
	c.truth[filepath.Join(c.image, filepath.Base(file))] = readContent(t, qemutest.Convert(t, file), diskSize)
}

// TestAdopt takes over a chain of the Python tool, whose directory becomes the repository.
func TestAdopt(t *testing.T) {
	pool := cephtest.Require(t).Pool(t)
	for _, image := range []string{"vm", "vm 1 ü"} { // the tool did not escape names
		for _, size := range []int64{diskSize, diskSize + 1000001} {
			t.Run(fmt.Sprintf("%s, size %d", image, size), func(t *testing.T) {
				t.Parallel()
				c := newOldChain(t, pool, fmt.Sprintf("%s %d", image, size), size)
				pool.IO(t, c.image, "write -P 3 2M 64k", "write -z 5M 64k", "write -P 3 8323072 64k")

				before := tree(t, c.dir) + fmt.Sprint(c.snapshots(t))
				c.run(t, "--dry-run", c.image)
				if after := tree(t, c.dir) + fmt.Sprint(c.snapshots(t)); after != before {
					t.Errorf("a dry run changed\n%s\nto\n%s", before, after)
				}

				r := c.backup(t)
				c.wantIncrement(t, r, repo.PointName(c.newest))
				snapshots := c.snapshots(t)
				if slices.Contains(snapshots, c.newest) || !slices.Contains(snapshots, c.first) {
					t.Errorf("snapshots %q: want all but %s", snapshots, c.newest)
				}
				c.check(t)

				pool.Resize(t, c.image, size+5000)
				pool.IO(t, c.image, "write -P 4 3M 64k")
				next := c.backup(t, "--remove-old-snapshots")
				c.wantIncrement(t, next, r.Points[0].Point)
				if s := c.snapshots(t); !slices.Equal(s, []string{next.Points[0].Snapshot}) {
					t.Errorf("snapshots %q, want the newest alone", s)
				}
				c.check(t)
				if _, err := os.Stat(filepath.Join(c.folder, "qcow2_k1d8s3_x")); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestAdoptNot makes a full point where a chain of the Python tool can't be trusted.
func TestAdoptNot(t *testing.T) {
	pool := cephtest.Require(t).Pool(t)
	for i, c := range []struct {
		name, reason string
		change       func(t *testing.T, c *oldChain)
	}{
		{"snapshot missing", "is gone", func(t *testing.T, c *oldChain) {
			pool.RemoveSnapshot(t, c.image+"@"+c.newest)
		}},
		{"snapshot of another time", "which is not when point", func(t *testing.T, c *oldChain) {
			// The point of an hour ago, whose snapshot was made just now.
			hourAgo := strconv.FormatInt(time.Now().Unix()-3600, 10)
			for _, seconds := range []string{c.first, c.newest} {
				pool.RemoveSnapshot(t, c.image+"@"+seconds)
				name := filepath.Join(c.image, c.image+"@"+seconds+".qcow2")
				if err := os.Remove(filepath.Join(c.dir, name)); err != nil {
					t.Fatal(err)
				}
				delete(c.truth, name)
			}
			c.point(t, hourAgo, "empty.qcow2", diskSize, "write -P 3 0 64k")
			c.truth = map[string]content{} // the image had more before
		}},
		{"other size", "bytes, point", func(t *testing.T, c *oldChain) {
			pool.RemoveSnapshot(t, c.image+"@"+c.newest)
			pool.Resize(t, c.image, 2*diskSize)
			pool.CreateSnapshot(t, c.image+"@"+c.newest)
		}},
		{"other data in file", "it differs from its snapshot", func(t *testing.T, c *oldChain) {
			c.write(t, "write -P 7 6M 64k")
		}},
		{"other data in image", "it differs from its snapshot", func(t *testing.T, c *oldChain) {
			pool.RemoveSnapshot(t, c.image+"@"+c.newest)
			pool.IO(t, c.image, "write -P 7 6M 4k")
			pool.CreateSnapshot(t, c.image+"@"+c.newest)
		}},
		{"damaged", "can't be used", func(t *testing.T, c *oldChain) {
			file := filepath.Join(c.folder, c.image+"@"+c.newest+".qcow2")
			if err := os.Truncate(file, 300<<10); err != nil {
				t.Fatal(err)
			}
			delete(c.truth, filepath.Join(c.image, filepath.Base(file)))
		}},
		{"backing file missing", "can't be used", func(t *testing.T, c *oldChain) {
			if err := os.Remove(filepath.Join(c.folder, c.image+"@"+c.first+".qcow2")); err != nil {
				t.Fatal(err)
			}
			c.truth = map[string]content{}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			chain := newOldChain(t, pool, fmt.Sprintf("vm%d", i), diskSize)
			c.change(t, chain)
			pool.IO(t, chain.image, "write -P 9 4M 64k")
			before := chain.snapshots(t)
			r := chain.backup(t)
			chain.wantFull(t, r, c.reason)
			if got, want := chain.snapshots(t), append(before, r.Points[0].Snapshot); !slices.Equal(got, want) {
				t.Errorf("snapshots %q, want %q", got, want)
			}
			chain.check(t)

			pool.IO(t, chain.image, "write -P 10 4M 4k")
			chain.wantIncrement(t, chain.backup(t), r.Points[0].Point)
			chain.check(t)
		})
	}
}

// TestDigitsOfOthers leaves snapshots alone that are named by digits but by somebody else.
func TestDigitsOfOthers(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "vm", diskSize)
	now := strconv.FormatInt(time.Now().Unix(), 10) // even one that could be the Python tool's: it has never been here
	for _, name := range []string{"7", "20240101", now} {
		pool.CreateSnapshot(t, "vm@"+name)
	}
	d.backup(t, "--remove-old-snapshots")
	d.backup(t, "--remove-old-snapshots")
	if s := pool.Snapshots(t, "vm"); len(s) != 4 {
		t.Errorf("snapshots %v, want ours and three others", s)
	}
}

// TestMarkerLost refuses a repository whose marker is gone, also where it was the Python tool's before.
func TestMarkerLost(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "vm", diskSize)
	d.backup(t)
	qemutest.Create(t, "-f", "qcow2", filepath.Join(d.dir, "vm", "empty.qcow2"), "1M")
	if err := os.Remove(filepath.Join(d.dir, "rbd2qcow2.json")); err != nil {
		t.Fatal(err)
	}
	r := program.Run(t, programtest.BackupArgs(pool, d.dir)...)
	if r.Code != 1 || !strings.Contains(r.Stderr, "rbd2qcow2.json is missing") {
		t.Errorf("exit status %d\n%s", r.Code, r.Stderr)
	}
}
