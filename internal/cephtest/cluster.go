// Package cephtest gives tests fresh pools on a real Ceph cluster and does what an administrator and a virtual machine do there:
// it creates, changes and exports images with the ceph and rbd programs and with qemu-io, none of which share code with
// this project.
//
// The cluster is the one that CEPH_CONF names, usually a throw-away one of test/cluster/ceph-cluster. Every helper that takes a
// [testing.TB] ends the test on failure and shows what the program printed. The package is imported by tests only.
package cephtest

import (
	"crypto/rand"
	"os"
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
)

// Cluster is a running Ceph cluster, used as its administrator.
type Cluster struct {
	Conf string // path of ceph.conf
	FSID string
}

// Require returns the cluster that CEPH_CONF names. Without one the test is skipped, or fails where RBD2QCOW2_TEST_REQUIRE=1.
func Require(t testing.TB) *Cluster {
	t.Helper()
	qemutest.Require(t, "ceph", "rbd", "qemu-io")
	c := &Cluster{Conf: os.Getenv("CEPH_CONF")}
	if c.Conf == "" {
		qemutest.Missing(t, "CEPH_CONF names no test cluster: run the tests by \"make test\" or \"test/cluster/ceph-cluster run -- go test …\"")
	}
	c.FSID = strings.TrimSpace(string(c.Ceph(t, "fsid")))
	return c
}

// Ceph runs the ceph program and returns its standard output.
func (c *Cluster) Ceph(t testing.TB, args ...string) []byte {
	t.Helper()
	return qemutest.Run(t, "ceph", c.args(args)...)
}

// RBD runs the rbd program and returns its standard output.
func (c *Cluster) RBD(t testing.TB, args ...string) []byte {
	t.Helper()
	return qemutest.Run(t, "rbd", c.args(args)...)
}

// TryRBD is [Cluster.RBD] for commands that may fail.
func (c *Cluster) TryRBD(args ...string) ([]byte, error) {
	return qemutest.Try("rbd", c.args(args)...)
}

func (c *Cluster) args(args []string) []string {
	return append([]string{"--conf", c.Conf}, args...)
}

// newPool creates a pool for RBD and removes it when the test ends.
func (c *Cluster) newPool(t testing.TB) (name string) {
	t.Helper()
	name = "test-" + strings.ToLower(rand.Text()[:10])
	c.Ceph(t, "osd", "pool", "create", name, "16")
	t.Cleanup(func() {
		c.Ceph(t, "osd", "pool", "delete", name, name, "--yes-i-really-really-mean-it")
	})
	c.RBD(t, "pool", "init", name)
	return name
}
