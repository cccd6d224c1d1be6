package crash

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/crashpoint"
	"github.com/rbd2qcow2/rbd2qcow2/internal/prune"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

// TestKillFold kills a prune at every step of a fold: into the child, into the backing file, and into a copy of a file that has
// another name.
func TestKillFold(t *testing.T) { killFolds(t, "") }

// TestKillFoldByClone does the same where files share extents: there a fold changes a clone, never the file itself.
func TestKillFoldByClone(t *testing.T) { killFolds(t, mountXFS(t)) }

// killFolds has its repositories below root.
func killFolds(t *testing.T, root string) {
	pool := cephtest.Require(t).Pool(t)
	for name, c := range map[string]struct {
		between int64 // bytes of the image that are written between two backups
		method  prune.Method
		linked  bool
	}{
		"into-child":   {7 << 20, prune.IntoChild, false},
		"into-backing": {1 << 20, prune.IntoBacking, false},
		"linked":       {1 << 20, prune.IntoBacking, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, pool, name, 24<<20, overwrite(randomFile(t), 8<<20)...)
			s.moveTo(t, root)
			change := func() { s.write(t, overwrite(randomFile(t), c.between)...) }
			for range 2 {
				s.checkNext(t)
				change()
			}
			for i, step := range crashpoint.FoldSteps() {
				s.checkNext(t)
				if got := s.plannedFold(t); got != c.method {
					t.Errorf("a fold %s is planned, want %s", got, c.method)
				}
				unchanged := func() {}
				if c.linked {
					unchanged = s.link(t)
				}
				oldest := s.killFoldAt(t, step)
				if (i%2 == 0) == c.linked { // every other removal is completed by a backup, the rest by a prune
					change()
					s.backUpAfterFold(t, oldest)
				}
				s.prune(t)
				unchanged()
				change()
			}
			s.checkNext(t)
		})
	}
}

// keptByPrune is how many points the prunes here leave: one less than there are.
const keptByPrune = 2

func (s *scene) pruneArgs(more ...string) []string {
	return append([]string{"prune", "--verbose", "--keep-last", "2", s.dir}, more...)
}

// plannedFold is how the next prune would remove the oldest point.
func (s *scene) plannedFold(t *testing.T) prune.Method {
	t.Helper()
	r := program.Run(t, s.pruneArgs("--dry-run", "--json")...)
	var report prune.Report
	if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil || len(report.Images) != 1 {
		t.Fatalf("plan: %v\n%s\n%s", err, r.Stdout, r.Stderr)
	}
	return report.Images[0].Points[0].Method
}

// killFoldAt kills a prune at a step of the removal of the oldest point, gives that, and checks what is left of the others.
func (s *scene) killFoldAt(t *testing.T, step string) (oldest point) {
	t.Helper()
	oldest.name = s.visiblePoints(t)[0]
	oldest.content = s.points[oldest.name]
	delete(s.points, oldest.name)
	p := start(t, s.pruneArgs(), "RBD2QCOW2_CRASH_AT="+step)
	p.wait(t)
	// The child's own file has its name all along, unless a copy that shares extents takes its place.
	unnamed := step == crashpoint.FoldNamed && s.root == "" && p.ProcessState.Success()
	if p.killedBy() != syscall.SIGKILL && !unnamed {
		t.Fatalf("step %s was not reached: %v\n%s", step, p.ProcessState, p.stderr())
	}
	s.checkPoints(t)
	s.list(t)
	return oldest
}

// point is a point and the raw copy of the image as it was then.
type point struct{ name, content string }

// backUpAfterFold makes a point when the removal of the oldest one was cut short: that is completed or taken back.
func (s *scene) backUpAfterFold(t *testing.T, oldest point) {
	t.Helper()
	image := program.Backup(t, s.pool, s.dir, s.image).Images[0]
	made := image.Points[0]
	if made.Kind != "incremental" || len(image.Warnings) > 0 {
		t.Errorf("point of kind %s (%s), warnings %q", made.Kind, image.Reason, image.Warnings)
	}
	s.points[string(made.Point)] = s.current
	for _, p := range s.list(t) {
		if p.State != repo.Good {
			t.Errorf("point %s is %s after a backup", p.Point, p.State)
		}
		if string(p.Point) == oldest.name {
			s.points[oldest.name] = oldest.content
		}
	}
	s.checkPoints(t)
	s.keepNewest(t)
}

// prune prunes, which has to succeed, and checks that nothing is left of a run before.
func (s *scene) prune(t *testing.T) {
	t.Helper()
	p := start(t, s.pruneArgs())
	p.wait(t)
	if !p.ProcessState.Success() {
		t.Fatalf("prune: %v\n%s", p.ProcessState, p.stderr())
	}
	for _, point := range s.list(t) {
		if point.State != repo.Good {
			t.Errorf("point %s is %s after another prune\n%s", point.Point, point.State, p.stderr())
		}
	}
	if left := s.visiblePoints(t); len(left) != keptByPrune || len(s.points) != keptByPrune {
		t.Errorf("points %v are left\n%s", left, p.stderr())
	}
	s.checkPoints(t)
	s.checkTidy(t)
}

// list lists the points. None must be damaged.
func (s *scene) list(t *testing.T) []status.Point {
	t.Helper()
	r := program.Run(t, "list", "--json", s.dir)
	var listed struct{ Images []status.Image }
	if err := json.Unmarshal([]byte(r.Stdout), &listed); err != nil || r.Code != 0 || len(listed.Images) != 1 {
		t.Fatalf("list: exit status %d, %v\n%s\n%s", r.Code, err, r.Stdout, r.Stderr)
	}
	for _, point := range listed.Images[0].Points {
		if point.State == repo.Damaged {
			t.Errorf("point %s is damaged: %s", point.Point, point.Error)
		}
	}
	return listed.Images[0].Points
}

// checkPoints compares the points that there are to be with what the image was: by QEMU, and by a restore.
func (s *scene) checkPoints(t *testing.T) {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "restored.raw")
	for point, want := range s.points {
		qemutest.Check(t, s.file(point))
		qemutest.Compare(t, s.file(point), want)
		r := program.Run(t, "restore", "--overwrite", s.dir, s.image+"@"+point, raw)
		if r.Code != 0 {
			t.Errorf("restore %s: exit status %d\n%s", point, r.Code, r.Stderr)
			continue
		}
		qemutest.Compare(t, raw, want)
	}
}

// link gives all points' files another name, and gives a function that checks that under those nothing has changed.
func (s *scene) link(t *testing.T) (unchanged func()) {
	t.Helper()
	dir := s.tempDir(t)
	before := map[string][]byte{}
	for _, point := range s.visiblePoints(t) {
		name := filepath.Join(dir, filepath.Base(s.file(point)))
		if err := os.Link(s.file(point), name); err != nil {
			t.Fatal(err)
		}
		before[name] = readFile(t, name)
	}
	return func() {
		t.Helper()
		for name, content := range before {
			if !slices.Equal(readFile(t, name), content) {
				t.Errorf("%s has changed", name)
			}
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
