package cephtest

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
)

func TestImage(t *testing.T) {
	p := Require(t).Pool(t)
	const size = 8<<20 + 1
	p.CreateImage(t, "vm", size, "--object-size=1M")
	if info := p.Info(t, "vm"); info.Size != size || info.ObjectSize != 1<<20 || info.ID == "" {
		t.Errorf("info: %+v", info)
	}
	p.IO(t, "vm", "write -P 1 0 2M", "write -P 2 4M 64k")
	p.CreateSnapshot(t, "vm@s")
	p.IO(t, "vm", "discard 0 1M", "write -z 1M 4k")
	p.IO(t, "vm", "read -P 0 0 1028k", "read -P 1 1028k 4k", "read -P 2 4M 64k")
	p.IO(t, "vm@s", "read -P 1 0 2M")
	if _, err := p.TryIO("vm@s", "write 0 4k"); err == nil {
		t.Error("wrote to a snapshot")
	}

	snapshots := p.Snapshots(t, "vm")
	if len(snapshots) != 1 || snapshots[0].Name != "s" || snapshots[0].Size != size || snapshots[0].Namespace.Type != "user" {
		t.Errorf("snapshots: %+v", snapshots)
	}
	export := p.Export(t, "vm@s")
	if stat, err := os.Stat(export); err != nil || stat.Size() != size {
		t.Errorf("export: %v, %v", stat, err)
	}
	qemutest.IO(t, export, "read -P 1 0 2M")

	p.Clone(t, "vm@s", "clone")
	p.Clone(t, "vm@s", "clone2")
	p.Flatten(t, "clone")
	p.Remove(t, "clone2")
	p.ImportFile(t, export, "imported", "--object-size=64K")
	p.Rename(t, "imported", "renamed")
	p.Resize(t, "renamed", 1<<20)
	p.SetMetadata(t, "renamed", "backup-skip", "1")
	images := p.Images(t)
	slices.Sort(images)
	if want := []string{"clone", "renamed", "vm"}; !slices.Equal(images, want) {
		t.Errorf("images %v, want %v", images, want)
	}
	p.Rollback(t, "vm@s")
	p.IO(t, "vm", "read -P 1 0 2M")
}

func TestBackupUser(t *testing.T) {
	p := Require(t).Pool(t).CreateNamespace(t, "ns")
	p.CreateImage(t, "vm", 8<<20, "--data-pool="+p.DataPool(t))
	p.IO(t, "vm", "write -P 1 0 64k")

	as := func(args ...string) error {
		_, err := p.TryRBD(append([]string{"--id", p.User, "--keyring", p.Keyring}, args...)...)
		return err
	}
	raw := t.TempDir() + "/raw"
	for _, allowed := range [][]string{
		{"snap", "create", p.Spec("vm@s")},
		{"export", p.Spec("vm@s"), raw},
		{"image-meta", "set", p.Spec("vm"), "key", "value"},
		{"snap", "rm", p.Spec("vm@s")},
	} {
		if err := as(allowed...); err != nil {
			t.Error(err)
		}
	}
	for _, denied := range [][]string{
		{"import", raw, p.Spec("new")},
		{"rm", p.Spec("vm")},
	} {
		if err := as(denied...); err == nil {
			t.Errorf("%s is allowed to the backup user", strings.Join(denied, " "))
		}
	}
	name := p.QEMUName("vm") + ":id=" + p.User + ":keyring=" + p.Keyring
	if _, err := qemutest.Try("qemu-io", "-f", "raw", "-c", "write 0 4k", name); err == nil {
		t.Error("the backup user can write data")
	}
	if images := p.Images(t); !slices.Equal(images, []string{"vm"}) {
		t.Errorf("images: %v", images)
	}
}

func TestRestoreUser(t *testing.T) {
	p := Require(t).Pool(t)
	user, keyring := p.RestoreUser(t)
	p.RBD(t, "--id", user, "--keyring", keyring, "create", "--size=1M", p.Spec("new"))
	p.RBD(t, "--id", user, "--keyring", keyring, "rm", p.Spec("new"))
}
