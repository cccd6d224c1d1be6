package e2e

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/backup"
	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/programtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

// disk is an image, the repository that it is backed up to, and what every point in there must read as.
type disk struct {
	pool  *cephtest.Pool
	image string
	dir   string             // of the repository
	truth map[string]content // by the point's file, relative to dir
	log   string             // of the last run
}

// content is what a guest would find on a disk.
type content struct {
	size   int64 // bytes
	sha256 [sha256.Size]byte
}

// newDisk creates an image, with the options of "rbd create", and an empty repository.
func newDisk(t *testing.T, pool *cephtest.Pool, image string, size int64, options ...string) *disk {
	t.Helper()
	pool.CreateImage(t, image, size, options...)
	return &disk{pool: pool, image: image, dir: program.Init(t), truth: map[string]content{}}
}

// backup backs up the image alone, which must succeed, and keeps what its snapshot has as the truth about the new point.
func (d *disk) backup(t *testing.T, more ...string) backup.ImageReport {
	t.Helper()
	r := d.run(t, append(more, "--", d.image)...)
	if len(r.Images) != 1 {
		t.Fatalf("report on %d images, want one: %+v", len(r.Images), r)
	}
	image := r.Images[0]
	if image.Status != backup.Done || len(image.Points) != 1 || image.Name != d.image {
		t.Fatalf("report: %+v", image)
	}
	d.truth[image.Points[0].File] = d.contentAt(t, image.Points[0].Snapshot)
	return image
}

// run backs up into the repository. Everything must be done.
func (d *disk) run(t *testing.T, more ...string) backup.Report {
	t.Helper()
	r := program.Run(t, programtest.BackupArgs(d.pool, d.dir, append([]string{"--json"}, more...)...)...)
	d.log = r.Stderr
	if r.Code != 0 {
		t.Fatalf("backup: exit status %d\n%s", r.Code, r.Stderr)
	}
	return r.Report(t)
}

// contentAt is what the image has at a snapshot, or, with an empty name, now.
func (d *disk) contentAt(t *testing.T, snapshot string) content {
	t.Helper()
	spec := d.image
	if snapshot != "" {
		spec += "@" + snapshot
	}
	file := d.pool.Export(t, spec)
	defer func() { _ = os.Remove(file) }()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return readContent(t, file, info.Size())
}

// readContent reads the first size bytes of a raw file. What lies behind must be the rest of a sector, and zero.
func readContent(t *testing.T, file string, size int64) content {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.CopyN(hash, f, size); err != nil {
		t.Fatalf("read %d bytes: %v", size, err)
	}
	rest, err := io.ReadAll(io.LimitReader(f, 512))
	if err != nil {
		t.Fatal(err)
	}
	if len(rest) == 512 || strings.Trim(string(rest), "\x00") != "" {
		t.Errorf("behind its %d bytes the disk has %d more: %x", size, len(rest), rest)
	}
	return content{size, [sha256.Size]byte(hash.Sum(nil))}
}

// path is where a point's file lies.
func (d *disk) path(p status.Point) string { return filepath.Join(d.dir, p.File) }

// forget says that a point can't be read any more.
func (d *disk) forget(points ...status.Point) {
	for _, p := range points {
		delete(d.truth, p.File)
	}
}

// check compares every point with the truth about it: by way of QEMU, and for points of ours by their digests.
func (d *disk) check(t *testing.T) {
	t.Helper()
	for file, want := range d.truth {
		path := filepath.Join(d.dir, file)
		qemutest.Check(t, path)
		raw := qemutest.Convert(t, path)
		if info, err := os.Stat(raw); err != nil || info.Size() != (want.size+511)/512*512 {
			t.Errorf("%s: virtual size %d, want %d in whole sectors", file, info.Size(), want.size)
		}
		if got := readContent(t, raw, want.size); got != want {
			t.Errorf("%s reads as %x, want %x", file, got.sha256, want.sha256)
		}
		_ = os.Remove(raw)
		d.checkDigests(t, file)
	}
}

func (d *disk) checkDigests(t *testing.T, file string) {
	t.Helper()
	r, err := repo.Open(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	folder, name := filepath.Split(file)
	point := name[strings.LastIndexByte(name, '@')+1 : len(name)-len(".qcow2")]
	chain, err := r.Folder(filepath.Clean(folder)).OpenChain(t.Context(), repo.PointName(point))
	if err != nil {
		t.Error(err)
		return
	}
	defer chain.Close()
	if chain.Points[0].State == repo.Foreign {
		return
	}
	if err := chain.VerifyDigests(t.Context()); err != nil {
		t.Errorf("%s: %v", file, err)
	}
}

// checkSnapshot fails the test unless, of this repository, the image has the snapshot of that point and no other.
func (d *disk) checkSnapshot(t *testing.T, newest status.Point) {
	t.Helper()
	r, err := repo.Open(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	own := slices.DeleteFunc(d.snapshots(t), func(s string) bool { return !strings.HasPrefix(s, r.SnapshotPrefix()) })
	if !slices.Equal(own, []string{newest.Snapshot}) {
		t.Errorf("snapshots of the repository: %q, want %q alone", own, newest.Snapshot)
	}
}

// snapshots are the names of the image's snapshots, the oldest first.
func (d *disk) snapshots(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, s := range d.pool.Snapshots(t, d.image) {
		names = append(names, s.Name)
	}
	return names
}

// wantFull fails the test unless a report is of a full point, for a reason that is told in the log too.
func (d *disk) wantFull(t *testing.T, r backup.ImageReport, reason string) {
	t.Helper()
	p := r.Points[0]
	if r.Method != "full" || p.Method != "full" || p.Kind != "full" || p.Parent != nil {
		t.Errorf("method %s, kind %s, parent %v: want a full point", r.Method, p.Kind, p.Parent)
	}
	if !strings.Contains(r.Reason, reason) || p.Reason != r.Reason {
		t.Errorf("reason %q, of the point %q, want %q", r.Reason, p.Reason, reason)
	}
	if !strings.Contains(d.log, reason) {
		t.Errorf("the log lacks the reason %q:\n%s", reason, d.log)
	}
}

// wantIncrement fails the test unless a report is of an increment on parent.
func (d *disk) wantIncrement(t *testing.T, r backup.ImageReport, parent repo.PointName) {
	t.Helper()
	p := r.Points[0]
	if r.Method != "precise" && r.Method != "narrowed" || p.Kind != "incremental" || p.Parent == nil || *p.Parent != parent {
		t.Errorf("method %s, kind %s, parent %s, reason %q: want an increment on %s",
			r.Method, p.Kind, printable(p.Parent), r.Reason, parent)
	}
}

func printable(p *repo.PointName) string {
	if p == nil {
		return "none"
	}
	return fmt.Sprint(*p)
}
