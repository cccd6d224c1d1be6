package cephtest

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
)

// Own starts a cluster for one test, which may stop its daemons, and ends it with the test. The folder of the test's package
// must lie two below that of the module.
func Own(t testing.TB) *Cluster {
	t.Helper()
	Require(t)
	dir := filepath.Join(t.TempDir(), "ceph")
	script := filepath.Join("..", "..", "test", "cluster", "ceph-cluster")
	t.Cleanup(func() { qemutest.Run(t, script, "stop", dir) })
	qemutest.Run(t, script, "start", dir)
	c := &Cluster{Conf: filepath.Join(dir, "ceph.conf")}
	c.FSID = strings.TrimSpace(string(c.Ceph(t, "fsid")))
	return c
}

// Freeze stops a daemon of a cluster of [Own], "osd.0" or "mon.a", as a dying disk or switch would: it keeps its sockets. The
// returned function lets it go on, and so does the end of the test.
func (c *Cluster) Freeze(t testing.TB, daemon string) (thaw func()) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(filepath.Dir(c.Conf), "run", daemon+".pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	thaw = func() { _ = syscall.Kill(pid, syscall.SIGCONT) }
	t.Cleanup(thaw)
	return thaw
}
