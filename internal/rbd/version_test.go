package rbd

import (
	"crypto/rand"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
)

// TestVersion holds what the library and the cluster tell against what Ceph's own programs say.
func TestVersion(t *testing.T) {
	tp := cephtest.Require(t).Pool(t)
	_, p := connectAs(t, tp)
	v, err := p.cluster.Version(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if said := string(qemutest.Run(t, "rbd", "--version")); release(said) != v.Library {
		t.Errorf("library release %q, rbd says %q", v.Library, said)
	}
	if library := LibraryVersion(); library.Librados != v.Librados || library.Librbd != v.Librbd || library.Library != v.Library {
		t.Errorf("without a cluster %+v, with one %+v", library, v)
	}
	var daemons struct{ Mon, OSD map[string]int }
	if err := json.Unmarshal(tp.Ceph(t, "versions", "--format", "json"), &daemons); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []struct {
		got  []string
		want map[string]int
	}{{v.Monitors, daemons.Mon}, {v.OSDs, daemons.OSD}} {
		if len(kind.want) != 1 {
			t.Fatalf("the test cluster has daemons of several releases: %v", kind.want)
		}
		for want := range kind.want {
			if !slices.Equal(kind.got, []string{release(want)}) || !strings.HasPrefix(v.Cluster, "ceph version "+kind.got[0]+" ") {
				t.Errorf("releases %q of cluster %q, ceph says %q", kind.got, v.Cluster, want)
			}
		}
	}
}

func release(version string) string { return strings.Fields(version)[2] }

// TestVersionForbidden asks as a user who may not.
func TestVersionForbidden(t *testing.T) {
	cluster := cephtest.Require(t)
	cfg := Config{ConfFile: cluster.Conf, ID: "mute-" + strings.ToLower(rand.Text()), Keyring: filepath.Join(t.TempDir(), "keyring")}
	key := cluster.Ceph(t, "auth", "get-or-create", "client."+cfg.ID, "mon", `allow command "fsid"`)
	t.Cleanup(func() { cluster.Ceph(t, "auth", "rm", "client."+cfg.ID) })
	if err := os.WriteFile(cfg.Keyring, key, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Connect(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	v, err := c.Version(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if v.Library == "" || v.Cluster != "" || v.Monitors != nil || v.OSDs != nil {
		t.Errorf("got %+v, want the libraries alone", v)
	}
}

func TestReleases(t *testing.T) {
	for _, c := range []struct{ versions, want []string }{
		{nil, nil},
		{[]string{"", "ceph version", "ceph version ", "something else 1 2 3"}, nil},
		{
			[]string{
				"ceph version 16.2.15 (618f) pacific (stable)",
				"ceph version 16.2.9 (4c3) pacific (stable)",
				"ceph version 9.2.1 (752b) infernalis",
				"ceph version 16.2.15 (other build) pacific (stable)",
				"ceph version 19.0.0-3935-ge3f64cc9 (e3f6) squid (dev)",
			},
			[]string{"9.2.1", "16.2.9", "16.2.15", "19.0.0-3935-ge3f64cc9"},
		},
	} {
		versions := make(map[string]int)
		for _, v := range c.versions {
			versions[v] = 1
		}
		if got := releases(versions); !slices.Equal(got, c.want) {
			t.Errorf("%q: got %q, want %q", c.versions, got, c.want)
		}
	}
}
