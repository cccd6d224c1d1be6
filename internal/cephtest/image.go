package cephtest

import (
	"encoding/json"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
)

// ImageInfo is what "rbd info" says of an image.
type ImageInfo struct {
	Name       string   `json:"name"`
	ID         string   `json:"id"`
	Size       int64    `json:"size"`        // in bytes
	ObjectSize int64    `json:"object_size"` // in bytes
	Snapshots  int      `json:"snapshot_count"`
	DataPool   string   `json:"data_pool"`
	Features   []string `json:"features"`
	Flags      []string `json:"flags"`
}

// Snapshot is one line of "rbd snap ls --all".
type Snapshot struct {
	ID        uint64 `json:"id"`
	Name      string `json:"name"`
	Size      int64  `json:"size"`             // in bytes
	Protected bool   `json:"protected,string"` // for clones
	Namespace struct {
		Type string `json:"type"` // user, group, trash or mirror
	} `json:"namespace"`
}

// CreateImage creates an image of size bytes. The options are those of "rbd create", such as "--object-size=64K",
// "--image-feature=layering", "--stripe-unit=64K", "--stripe-count=4", "--data-pool=NAME".
func (p *Pool) CreateImage(t testing.TB, name string, size int64, options ...string) {
	t.Helper()
	p.RBD(t, append([]string{"create", "--size", bytesArg(size), p.Spec(name)}, options...)...)
}

// ImportFile creates an image with the contents of a raw file; the options are those of "rbd import".
func (p *Pool) ImportFile(t testing.TB, file, name string, options ...string) {
	t.Helper()
	p.RBD(t, append([]string{"import", "--no-progress", file, p.Spec(name)}, options...)...)
}

// Update gives an image the contents of a raw file, which should be as large, as a virtual machine would: by writing just the
// 4 KiB blocks that differ.
func (p *Pool) Update(t testing.TB, image, file string) {
	t.Helper()
	overlay := filepath.Join(t.TempDir(), "changes.qcow2")
	qemutest.Create(t, "-f", "qcow2", "-o", "cluster_size=4k", "-b", file, "-F", "raw", overlay)
	qemutest.Run(t, "qemu-img", "rebase", "-f", "qcow2", "-b", p.QEMUName(image), "-F", "raw", overlay)
	qemutest.Run(t, "qemu-img", "commit", "-q", "-f", "qcow2", "-d", overlay)
}

// Images returns the names of the images, in no particular order.
func (p *Pool) Images(t testing.TB) []string {
	t.Helper()
	var names []string
	p.decode(t, &names, "ls", p.String())
	return names
}

// Info returns what the rbd program says of an image.
func (p *Pool) Info(t testing.TB, image string) ImageInfo {
	t.Helper()
	var info ImageInfo
	p.decode(t, &info, "info", p.Spec(image))
	return info
}

// Resize grows or shrinks an image to size bytes.
func (p *Pool) Resize(t testing.TB, image string, size int64) {
	t.Helper()
	p.RBD(t, "resize", "--no-progress", "--allow-shrink", "--size", bytesArg(size), p.Spec(image))
}

// Rename renames an image.
func (p *Pool) Rename(t testing.TB, image, name string) {
	t.Helper()
	p.RBD(t, "rename", p.Spec(image), p.Spec(name))
}

// Remove removes an image, which must have no snapshots.
func (p *Pool) Remove(t testing.TB, image string) {
	t.Helper()
	p.RBD(t, "rm", "--no-progress", p.Spec(image))
}

// Clone makes a copy-on-write clone of a snapshot, "image@snap", which is protected first where it is not.
func (p *Pool) Clone(t testing.TB, snapshot, name string, options ...string) {
	t.Helper()
	image, snap, _ := strings.Cut(snapshot, "@")
	for _, s := range p.Snapshots(t, image) {
		if s.Name == snap && !s.Protected {
			p.RBD(t, "snap", "protect", p.Spec(snapshot))
		}
	}
	p.RBD(t, append([]string{"clone", p.Spec(snapshot), p.Spec(name)}, options...)...)
}

// Flatten copies the parent's data into a clone.
func (p *Pool) Flatten(t testing.TB, image string) {
	t.Helper()
	p.RBD(t, "flatten", "--no-progress", p.Spec(image))
}

// SetMetadata sets a key of the image's metadata.
func (p *Pool) SetMetadata(t testing.TB, image, key, value string) {
	t.Helper()
	p.RBD(t, "image-meta", "set", p.Spec(image), key, value)
}

// CreateSnapshot makes a snapshot, named "image@snap".
func (p *Pool) CreateSnapshot(t testing.TB, snapshot string) {
	t.Helper()
	p.RBD(t, "snap", "create", p.Spec(snapshot))
}

// RemoveSnapshot removes a snapshot, named "image@snap".
func (p *Pool) RemoveSnapshot(t testing.TB, snapshot string) {
	t.Helper()
	p.RBD(t, "snap", "rm", "--no-progress", p.Spec(snapshot))
}

// Rollback sets an image back to a snapshot, named "image@snap".
func (p *Pool) Rollback(t testing.TB, snapshot string) {
	t.Helper()
	p.RBD(t, "snap", "rollback", "--no-progress", p.Spec(snapshot))
}

// Snapshots returns the snapshots of an image, of all namespaces, oldest first.
func (p *Pool) Snapshots(t testing.TB, image string) []Snapshot {
	t.Helper()
	var snapshots []Snapshot
	p.decode(t, &snapshots, "snap", "ls", "--all", p.Spec(image))
	return snapshots
}

// Export writes an image or a snapshot, "image@snap", to a new raw file and returns its name: what backup and restore are
// measured by.
func (p *Pool) Export(t testing.TB, image string) string {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "export.raw")
	p.RBD(t, "export", "--no-progress", p.Spec(image), raw)
	return raw
}

// IO runs qemu-io commands on an image, in one process, and returns what they printed; a snapshot, "image@snap", is opened read-only.
// Discards are cut inward to whole 64 KiB by librbd, "write -z" is exact.
func (p *Pool) IO(t testing.TB, image string, commands ...string) string {
	t.Helper()
	out, err := p.TryIO(image, commands...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TryIO is [Pool.IO] for commands that may fail.
func (p *Pool) TryIO(image string, commands ...string) (string, error) {
	args := []string{"-d", "unmap"}
	if strings.Contains(image, "@") {
		args = append(args, "-r")
	}
	for _, command := range commands {
		args = append(args, "-c", command)
	}
	out, err := qemutest.Try("qemu-io", append(args, "-f", "raw", p.QEMUName(image))...)
	return string(out), err
}

// QEMUName returns the name by which QEMU's tools open an image or a snapshot, "image@snap", as the administrator.
func (p *Pool) QEMUName(image string) string {
	return "rbd:" + p.Spec(image) + ":conf=" + strings.NewReplacer(`\`, `\\`, ":", `\:`).Replace(p.Conf)
}

func (p *Pool) decode(t testing.TB, value any, args ...string) {
	t.Helper()
	out := p.RBD(t, append(args, "--format", "json")...)
	if err := json.Unmarshal(out, value); err != nil {
		t.Fatalf("decode rbd %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func bytesArg(size int64) string { return strconv.FormatInt(size, 10) + "B" }

// DataBytes returns how many bytes an image, or a snapshot ("image@snap"), has data for, parents included, each extent in whole
// sectors.
func (p *Pool) DataBytes(t testing.TB, image string) int64 {
	t.Helper()
	var extents []struct {
		Length int64  `json:"length"`
		Exists string `json:"exists"`
	}
	p.decode(t, &extents, "diff", p.Spec(image))
	n := int64(0)
	for _, e := range extents {
		if e.Exists == "true" {
			n += (e.Length + 511) / 512 * 512
		}
	}
	return n
}
