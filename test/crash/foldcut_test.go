package crash

import (
	"path/filepath"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
)

// TestCutFold cuts the power of disks on which a prune removes many points, each time where the last cut has left it, until
// one gets to its end: on a file system that shares extents, and on one where points are changed in place.
func TestCutFold(t *testing.T) {
	s := newHistory(t, "")
	for name, f := range map[string]fileSystem{"clone": xfs(), "in-place": ext4()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s.cutFolds(t, f)
		})
	}
}

// cutFolds does it with copies of the repository on a file system.
func (s *scene) cutFolds(t *testing.T, f fileSystem) {
	whole := f.newDisk(t)
	dir, unmount := mount(t, whole)
	qemutest.Run(t, "cp", "-a", s.dir, filepath.Join(dir, "repository"))
	unmount()

	moments := random(t)
	disk := filepath.Join(t.TempDir(), "cut")
	cuts, underWay := 0, 0
	for over := true; cuts < rounds(t) && !t.Failed(); {
		if over {
			qemutest.Run(t, "cp", "--sparse=always", whole, disk)
		} else {
			cuts++
		}
		t.Run("", func(t *testing.T) { // which frees the space of its recording
			record(t, disk, func(dir string) {
				c := *s
				c.dir = filepath.Join(dir, "repository")
				if c.isFolding() {
					underWay++
				}
				c.checkAfterKill(t, s)
				over = !c.isFolding() && len(c.visiblePoints(t)) == keptByPrune
				c.prune(t)
			}).cut(t, disk, f.untorn, moments)
		})
	}
	t.Logf("%d cuts, %d while a fold was under way", cuts, underWay)
}
