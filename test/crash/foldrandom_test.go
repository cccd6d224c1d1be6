package crash

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// TestKillFoldAtRandom kills prunes of many points at moments spread evenly over the time that an undisturbed one takes, each
// one where the last was killed, until one gets to its end; in copies of a repository, every other of which shares its files.
func TestKillFoldAtRandom(t *testing.T) { killFoldsAtRandom(t, "") }

// TestKillFoldByCloneAtRandom does the same where files share extents: those of a copy share them with the original's.
func TestKillFoldByCloneAtRandom(t *testing.T) { killFoldsAtRandom(t, mountXFS(t)) }

// newHistory makes a repository below root with so many points that a prune has five folds to do, into either file.
func newHistory(t *testing.T, root string) *scene {
	t.Helper()
	s := newScene(t, cephtest.Require(t).Pool(t), "vm", 24<<20, overwrite(randomFile(t), 8<<20)...)
	s.moveTo(t, root)
	for i := range 6 {
		s.checkNext(t)
		s.write(t, overwrite(randomFile(t), []int64{1 << 20, 7 << 20}[i%2])...)
	}
	s.checkNext(t)
	return s
}

// killFoldsAtRandom has its repositories below root.
func killFoldsAtRandom(t *testing.T, root string) {
	s := newHistory(t, root)
	before := s.content(t)
	undisturbed := s.timeOfPrune(t)
	moments := random(t)
	kills, underWay := 0, 0
	for copies := 0; kills < rounds(t) && !t.Failed(); copies++ {
		t.Run("", func(t *testing.T) { // which frees the space of its copy
			c := s.inCopy(t, copies%2 == 1)
			for {
				p := start(t, c.pruneArgs())
				p.signal(t, syscall.SIGKILL, time.Duration(moments.Int64N(int64(undisturbed))))
				p.wait(t)
				c.checkAfterKill(t, s)
				if p.killedBy() != syscall.SIGKILL {
					break
				}
				kills++
				if c.isFolding() {
					underWay++
				}
			}
			c.prune(t)
		})
		if s.content(t) != before {
			t.Fatal("a prune of a copy has changed the repository")
		}
	}
	t.Logf("undisturbed run %v, %d kills, %d while a fold was under way", undisturbed.Round(time.Millisecond), kills, underWay)
	s.keepNewest(t)
	s.prune(t)
	s.write(t, "write -P 7 1M 10k")
	s.checkNext(t)
}

// isFolding says whether a fold is under way, or was cut short.
func (s *scene) isFolding() bool {
	_, err := os.Stat(filepath.Join(s.dir, s.image, ".state", "fold"))
	return err == nil
}

// timeOfPrune says how long a prune takes.
func (s *scene) timeOfPrune(t *testing.T) time.Duration {
	t.Helper()
	c := s.inCopy(t, false)
	c.keepNewest(t)
	began := time.Now()
	if r := program.Run(t, c.pruneArgs()...); r.Code != 0 {
		t.Fatalf("prune: exit status %d\n%s", r.Code, r.Stderr)
	}
	took := time.Since(began)
	c.prune(t)
	return took
}

// checkAfterKill holds every point that a killed prune has left against what it was in the original; but for one that is being
// removed, whose file is that of the next one. The oldest points go first.
func (s *scene) checkAfterKill(t *testing.T, original *scene) {
	t.Helper()
	all, left := original.visiblePoints(t), s.visiblePoints(t)
	if len(left) > len(all) || !slices.Equal(left, all[len(all)-len(left):]) {
		t.Errorf("of points %v are left %v", all, left)
	}
	s.points = map[string]string{}
	for _, point := range s.list(t) {
		if point.State != repo.Removing {
			s.points[string(point.Point)] = original.points[string(point.Point)]
		}
	}
	s.checkPoints(t)
	s.keepNewest(t)
}

// keepNewest says that the points are to be there, and those alone, that prunes keep.
func (s *scene) keepNewest(t *testing.T) {
	t.Helper()
	all := s.visiblePoints(t)
	kept := map[string]string{}
	for _, point := range all[max(0, len(all)-keptByPrune):] {
		kept[point] = s.points[point]
	}
	if len(kept) != keptByPrune {
		t.Fatalf("points %v are left", all)
	}
	s.points = kept
}

// inCopy gives a copy of the repository, which may share the files.
func (s *scene) inCopy(t *testing.T, shared bool) *scene {
	t.Helper()
	c := *s
	c.dir = filepath.Join(s.tempDir(t), "copy")
	how := "-a"
	if shared {
		how = "-al"
	}
	qemutest.Run(t, "cp", how, s.dir, c.dir)
	return &c
}

// content is all that the points' files have.
func (s *scene) content(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, point := range s.visiblePoints(t) {
		all.Write(readFile(t, s.file(point)))
	}
	return all.String()
}
