package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/verify"
)

// TestVerifySwapped exchanges files of points, within a chain and between two that were made by the same runs, so that even the
// names of their points agree. Each of the two has to be found, and nothing besides but what lies on them.
func TestVerifySwapped(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "vm", 4<<20)
	pool.CreateImage(t, "other", 4<<20)
	for range 4 {
		pool.IO(t, "vm", "write -P 1 0 64k")
		pool.IO(t, "other", "write -P 1 0 64k")
		d.run(t)
	}
	var files []string
	for _, image := range list(t, d.dir) {
		for _, p := range image.Points {
			files = append(files, filepath.Join(d.dir, p.File))
		}
	}
	if len(files) != 8 {
		t.Fatalf("files %q", files)
	}
	swapped := func(a, b string, code int) verify.Report {
		must(t, os.Rename(a, a+".swap"))
		must(t, os.Rename(b, a))
		must(t, os.Rename(a+".swap", b))
		return d.verify(t, code)
	}
	for i, a := range files {
		for _, b := range files[i+1:] {
			bad := d.damaged(swapped(a, b, 4))
			if !slices.Contains(bad, a) || !slices.Contains(bad, b) {
				t.Errorf("%s and %s exchanged: damaged %q", a, b, bad)
			}
			for _, image := range list(t, d.dir) {
				if image.Name != image.Folder {
					t.Errorf("%s and %s exchanged: the image in folder %s is named %s", a, b, image.Folder, image.Name)
				}
			}
			if bad := d.damaged(swapped(a, b, 0)); len(bad) > 0 {
				t.Errorf("%s and %s back in their places: damaged %q", a, b, bad)
			}
		}
	}
}

// damaged lists the files that a report calls damaged.
func (d *disk) damaged(r verify.Report) (files []string) {
	for _, image := range r.Images {
		for _, p := range image.Points {
			if p.Verdict == repo.FoundDamaged {
				files = append(files, filepath.Join(d.dir, image.Folder, image.Folder+"@"+string(p.Point)+".qcow2"))
			}
		}
	}
	return files
}
