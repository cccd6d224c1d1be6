package cephtest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
)

// Pool is a pool, or one namespace of it, and a cephx user who can do there what a backup needs and nothing more.
//
// The methods act as the administrator; User and Keyring are for the program under test.
type Pool struct {
	*Cluster
	Name      string
	Namespace string // empty: the default namespace
	User      string // as for --id, without "client."
	Keyring   string // path of a file with the key of User

	caps string // of User on OSDs
}

// Pool creates a pool for RBD and its backup user, and removes both when the test ends.
func (c *Cluster) Pool(t testing.TB) *Pool {
	t.Helper()
	name := c.newPool(t)
	p := &Pool{Cluster: c, Name: name, User: "backup-" + name, Keyring: filepath.Join(t.TempDir(), "keyring")}
	// Snapshots and metadata live in the header object, and a snapshot copies the object map. The data stay out of reach.
	p.caps = fmt.Sprintf("profile rbd-read-only pool=%[1]s, allow rwx pool=%[1]s object_prefix rbd_header., "+
		"allow rwx pool=%[1]s object_prefix rbd_object_map.", name)
	key := c.Ceph(t, "auth", "get-or-create", "client."+p.User, "mon", "allow r", "osd", p.caps)
	t.Cleanup(func() { c.Ceph(t, "auth", "rm", "client."+p.User) })
	if err := os.WriteFile(p.Keyring, key, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// GrantRead lets the backup user read another pool, one with parents of images.
func (p *Pool) GrantRead(t testing.TB, pool string) {
	t.Helper()
	p.grant(t, "profile rbd-read-only pool="+pool)
}

// DataPool creates a second pool, for the --data-pool option of [Pool.CreateImage], and lets the backup user read it.
func (p *Pool) DataPool(t testing.TB) string {
	t.Helper()
	pool := p.newPool(t)
	// The ids of snapshots come from the data pool, and the monitor gives them only to those who may write something there;
	// a data pool holds no header.
	p.grant(t, "profile rbd-read-only pool="+pool+", allow w pool="+pool+" object_prefix rbd_header.")
	return pool
}

// GrantClones lets the backup user remove snapshots of clones that were flattened: they are taken off the lists of what their parents,
// in that pool, have.
func (p *Pool) GrantClones(t testing.TB, parents string) {
	t.Helper()
	p.grant(t, "allow rwx pool="+parents+" object_prefix rbd_children")
}

func (p *Pool) grant(t testing.TB, caps string) {
	t.Helper()
	p.caps += ", " + caps
	p.Ceph(t, "auth", "caps", "client."+p.User, "mon", "allow r", "osd", p.caps)
}

// RestoreUser creates a user who may do everything in the pool, and returns its name for --id and the path of its keyring.
func (p *Pool) RestoreUser(t testing.TB) (user, keyring string) {
	t.Helper()
	user, keyring = "restore-"+p.Name, filepath.Join(t.TempDir(), "keyring")
	key := p.Ceph(t, "auth", "get-or-create", "client."+user, "mon", "profile rbd", "osd", "profile rbd pool="+p.Name)
	t.Cleanup(func() { p.Ceph(t, "auth", "rm", "client."+user) })
	if err := os.WriteFile(keyring, key, 0o600); err != nil {
		t.Fatal(err)
	}
	return user, keyring
}

// CreateNamespace creates a namespace and returns it; the same user can back it up.
func (p *Pool) CreateNamespace(t testing.TB, name string) *Pool {
	t.Helper()
	p.RBD(t, "namespace", "create", p.Name+"/"+name)
	ns := *p
	ns.Namespace = name
	return &ns
}

// String returns "pool" or "pool/namespace".
func (p *Pool) String() string {
	if p.Namespace == "" {
		return p.Name
	}
	return p.Name + "/" + p.Namespace
}

// Spec returns the name of an image, which may end in "@snapshot", as the rbd program takes it.
func (p *Pool) Spec(image string) string { return p.String() + "/" + image }

// Rados runs the rados program on the pool and namespace: for tests that break what librbd keeps there.
func (p *Pool) Rados(t testing.TB, args ...string) []byte {
	t.Helper()
	return qemutest.Run(t, "rados", append([]string{"--conf", p.Conf, "--pool", p.Name, "--namespace", p.Namespace}, args...)...)
}
