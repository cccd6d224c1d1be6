package e2e

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/programtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/prune"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
)

// TestPruneInUse prunes while QEMU has a point open.
func TestPruneInUse(t *testing.T) {
	t.Parallel()
	d := newDisk(t, cephtest.Require(t).Pool(t), "vm", diskSize)
	p := d.month(t, 5)
	for _, code := range []int{3, 1} { // the second time there is nothing left that could be done
		end := holdOpen(t, d.path(p[1]))
		r := d.prune(t, code, "--keep-last=1").Images[0]
		if r.Status != prune.Partly || !r.Points[0].InUse || !r.Points[1].InUse || !strings.Contains(d.log, "is in use") {
			t.Errorf("report: %+v\n%s", r, d.log)
		}
		d.wantPoints(t, p[0], p[1], p[4])
		d.check(t)
		end()
	}
	next := d.backup(t, "--keep-last=2")
	d.forgetPruned(*next.Pruned)
	d.wantPoints(t, p[4], next.Points[0])
	d.check(t)
}

// holdOpen has QEMU read a file, until the function that it gives is called.
func holdOpen(t *testing.T, file string) (end func()) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "qemu-io", "-r", "-f", "qcow2", file)
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	// By the time that it answers it has the file open.
	if _, err := io.WriteString(in, "length\n"); err != nil {
		t.Fatal(err)
	}
	for said := ""; !strings.Contains(said, "MiB"); {
		b := make([]byte, 100)
		n, err := out.Read(b)
		if err != nil {
			t.Fatalf("qemu-io says %q, then %v", said, err)
		}
		said += string(b[:n])
	}
	return func() {
		t.Helper()
		if err := in.Close(); err != nil {
			t.Error(err)
		}
		_, _ = io.Copy(io.Discard, out)
		if err := c.Wait(); err != nil {
			t.Error(err)
		}
	}
}

// TestPrunePython folds a chain that the Python tool began.
func TestPrunePython(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	for i, keep := range []string{"1", "2", "3"} { // that of the tool goes into one of ours, and into another one of the tool
		c := newOldChain(t, pool, fmt.Sprint("vm", i), diskSize+5000)
		pool.IO(t, c.image, "write -P 3 2M 64k", "write -z 5M 64k")
		first := c.backup(t)
		pool.IO(t, c.image, "write -P 4 3M 64k")
		newest := c.backup(t)
		c.prune(t, 0, "--keep-last", keep)
		if got := len(list(t, c.dir)[0].Points); fmt.Sprint(got) != keep || len(c.truth) != got {
			t.Errorf("%d points are left, want %s", got, keep)
		}
		c.wantReads(t)
		pool.IO(t, c.image, "write -P 5 3M 4k")
		next := c.backup(t)
		c.wantIncrement(t, next, newest.Points[0].Point)
		c.wantReads(t)
		t.Log(first.Points[0].Point, list(t, c.dir)[0].Points)
	}
}

// wantReads is check for files that have no digests.
func (d *disk) wantReads(t *testing.T) {
	t.Helper()
	for file, want := range d.truth {
		qemutest.Check(t, filepath.Join(d.dir, file))
		if got := readContent(t, qemutest.Convert(t, filepath.Join(d.dir, file)), want.size); got != want {
			t.Errorf("%s reads as %x, want %x", file, got.sha256, want.sha256)
		}
	}
}

// TestPruneStatic prunes by the program without Ceph, where there is nothing but the program and a repository.
func TestPruneStatic(t *testing.T) {
	t.Parallel()
	d := newDisk(t, cephtest.Require(t).Pool(t), "vm", diskSize)
	p := d.month(t, 4)
	c := newCell(t, d)
	c.succeed(t, "pin", c.repo, "vm@"+string(p[1].Point))
	d.pruned(t, programtest.Result{Stdout: c.succeed(t, "prune", "--json", "--keep-last=1", c.repo)})
	d.wantPoints(t, p[1], p[3])
	c.succeed(t, "unpin", c.repo, "vm@"+string(p[1].Point))
	d.pruned(t, programtest.Result{Stdout: c.succeed(t, "prune", "--json", "--keep-last=1", c.repo)})
	d.wantPoints(t, p[3])
	d.check(t)
	d.wantIncrement(t, d.backup(t), p[3].Point)
	d.check(t)
}

func TestPruneBadInput(t *testing.T) {
	t.Parallel()
	dir := program.Init(t)
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"prune " + dir, 2, "say what to keep"},
		{"prune --keep-last=0 " + dir, 2, "say what to keep"},
		{"prune --keep-last=-1 " + dir, 2, `or "unlimited"`},
		{"prune --keep-daily=x " + dir, 2, "--keep-daily"},
		{"prune --keep-within=1w " + dir, 2, "y, m, d or h"},
		{"prune --max-chain=0 " + dir, 2, "at least 1"},
		{"prune --keep-last=1 " + dir + " [", 2, "pattern"},
		{"prune --keep-last=1", 2, "usage"},
		{"prune --keep-last=1 " + dir + " vm", 1, "no image matches"},
		{"prune --keep-last=1 " + dir + "/nothing", 1, "no such file"},
		{"prune --keep-last=unlimited " + dir, 0, ""},
		{"pin " + dir, 2, "usage"},
		{"pin " + dir + " vm@20261122T065012Z", 1, "has no points"},
		{"unpin " + dir + " vm", 1, "has no points"},
	} {
		r := program.Run(t, strings.Fields(c.args)...)
		if r.Code != c.code || !strings.Contains(r.Stderr, c.says) {
			t.Errorf("%s: exit status %d, want %d and %q\n%s", c.args, r.Code, c.code, c.says, r.Stderr)
		}
	}
}
