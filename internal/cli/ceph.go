//go:build !noceph

package cli

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
)

// buildNote is what the help says of a build that lacks something.
const buildNote = ""

// libraries tells which Ceph libraries the program runs with.
func libraries() string {
	v := rbd.LibraryVersion()
	return fmt.Sprintf("Ceph libraries %s (librbd %s, librados %s)", cmp.Or(v.Library, "of an unknown release"), v.Librbd, v.Librados)
}

// cephFlags adds the options by which the rbd tool finds its cluster and its user.
func cephFlags(f *pflag.FlagSet, c *rbd.Config) {
	f.StringVarP(&c.ConfFile, "conf", "c", "", "Ceph configuration `FILE`; also in the environment, as CEPH_CONF")
	f.StringVar(&c.Cluster, "cluster", "", "`NAME` of the cluster")
	f.StringVar(&c.ID, "id", "", "user `ID`, without \"client.\"")
	f.StringVar(&c.ID, "rados-id", "", "the same, as the Python tool calls it")
	f.StringVarP(&c.Name, "name", "n", "", "user `NAME`, with \"client.\"")
	f.StringVarP(&c.Keyring, "keyring", "k", "", "`FILE` with the user's key")
	f.StringVarP(&c.MonHost, "mon-host", "m", "", "`ADDRESS` of the monitors")
	f.DurationVar(&c.Timeout, "timeout", time.Minute, "give up where the cluster does not answer for this `DURATION`")
	_ = f.MarkHidden("rados-id")
}

// checkCeph checks what cephFlags has set.
func checkCeph(c *rbd.Config) error {
	if c.Timeout <= 0 {
		return usagef("timeout %v: must be positive", c.Timeout)
	}
	return nil
}

// splitPool splits POOL[/NAMESPACE].
func splitPool(spec string) (pool, namespace string, err error) {
	pool, namespace, found := strings.Cut(spec, "/")
	if pool == "" || found && namespace == "" || strings.Contains(namespace, "/") {
		return "", "", usagef("pool %q: must be POOL or POOL/NAMESPACE", spec)
	}
	return pool, namespace, nil
}
