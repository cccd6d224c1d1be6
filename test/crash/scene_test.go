package crash

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/backup"
	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/programtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
)

// foreignSnapshots are an administrator's and another repository's: nobody may touch them.
var foreignSnapshots = []string{"keep", "rbd2qcow2.0123456789ab.20200101T000000Z"}

// scene is an image and its repository, between the backups of which nothing is written but by write.
type scene struct {
	pool    *cephtest.Pool
	image   string
	dir     string            // repository
	root    string            // where it and its copies lie, a file system of its own; "": anywhere
	foreign []uint64          // ids of foreignSnapshots
	current string            // raw copy of the image as it is
	points  map[string]string // every point seen: raw copy of the image as it was then
}

// newScene makes an image of size bytes with some content, and an empty repository for it.
func newScene(t *testing.T, pool *cephtest.Pool, image string, size int64, commands ...string) *scene {
	t.Helper()
	s := &scene{pool: pool, image: image, dir: program.Init(t), points: map[string]string{}}
	pool.CreateImage(t, image, size)
	for _, name := range foreignSnapshots {
		pool.CreateSnapshot(t, image+"@"+name)
		s.write(t, commands...)
	}
	for _, snapshot := range pool.Snapshots(t, image) {
		s.foreign = append(s.foreign, snapshot.ID)
	}
	return s
}

// moveTo gives a scene without points an empty repository somewhere else, unless root is "".
func (s *scene) moveTo(t *testing.T, root string) {
	t.Helper()
	if root == "" {
		return
	}
	s.root = root
	s.dir = filepath.Join(s.tempDir(t), "repository")
	if r := program.Run(t, "init", s.dir); r.Code != 0 {
		t.Fatalf("init: exit status %d\n%s", r.Code, r.Stderr)
	}
}

// tempDir makes a folder on the file system of the repository, which goes at the end of the test.
func (s *scene) tempDir(t *testing.T) string {
	t.Helper()
	if s.root == "" {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(s.root, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// write changes the image by commands of qemu-io and remembers the outcome.
func (s *scene) write(t *testing.T, commands ...string) {
	t.Helper()
	s.pool.IO(t, s.image, commands...)
	s.current = s.pool.Export(t, s.image)
}

// args are the arguments of a backup of the image.
func (s *scene) args(more ...string) []string {
	return programtest.BackupArgs(s.pool, s.dir, append([]string{s.image, "--verbose"}, more...)...)
}

// checkLeft holds what a killed or interrupted run has left against the promises, and gives the new points, one at
// the most: the image has not changed since before that run.
func (s *scene) checkLeft(t *testing.T) (appeared []string) {
	t.Helper()
	visible := s.visiblePoints(t)
	for point := range s.points {
		if !slices.Contains(visible, point) {
			t.Errorf("point %s is gone", point)
		}
	}
	for _, point := range visible {
		if _, known := s.points[point]; !known {
			s.points[point] = s.current
			appeared = append(appeared, point)
		}
		file := s.file(point)
		qemutest.Check(t, file)
		qemutest.Compare(t, file, s.points[point])
	}
	if len(appeared) > 1 {
		t.Errorf("one run has made points %v", appeared)
	}
	s.checkForeignSnapshots(t)
	return appeared
}

// checkNext runs the next backup, which has to succeed, and checks that nothing is left of the one before.
func (s *scene) checkNext(t *testing.T) backup.Report {
	t.Helper()
	before := s.visiblePoints(t)
	report := program.Backup(t, s.pool, s.dir, s.image, "--verbose")
	appeared := s.checkLeft(t)
	if len(report.Images) != 1 || len(report.Images[0].Points) != 1 || len(appeared) != 1 ||
		string(report.Images[0].Points[0].Point) != appeared[0] {
		t.Fatalf("report %+v, new points %v", report, appeared)
	}
	kind := "incremental"
	if len(before) == 0 {
		kind = "full"
	}
	image := report.Images[0]
	if image.Points[0].Kind != kind || len(image.Warnings) > 0 {
		t.Errorf("next run made a point of kind %q (%s), want %q; warnings %q", image.Points[0].Kind, image.Reason, kind,
			image.Warnings)
	}
	if own := s.ownSnapshots(t); len(own) != 1 || !strings.HasSuffix(own[0], "."+appeared[0]) {
		t.Errorf("snapshots %v, want that of point %s alone", own, appeared[0])
	}
	s.checkTidy(t)
	return report
}

var pointFile = regexp.MustCompile(`^(.*)@(\d{8}T\d{6}Z)\.qcow2$`)

// visiblePoints lists the points by their files' names, the oldest first.
func (s *scene) visiblePoints(t *testing.T) (points []string) {
	t.Helper()
	files, err := filepath.Glob(s.file("*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		m := pointFile.FindStringSubmatch(filepath.Base(file))
		if m == nil {
			t.Errorf("file %s looks like a point", file)
			continue
		}
		points = append(points, m[2])
	}
	return points
}

func (s *scene) file(point string) string {
	return filepath.Join(s.dir, s.image, s.image+"@"+point+".qcow2")
}

// ownSnapshots lists the snapshots of the image but for the foreign ones.
func (s *scene) ownSnapshots(t *testing.T) (names []string) {
	t.Helper()
	for _, snapshot := range s.pool.Snapshots(t, s.image) {
		if !slices.Contains(foreignSnapshots, snapshot.Name) {
			names = append(names, snapshot.Name)
		}
	}
	return names
}

func (s *scene) checkForeignSnapshots(t *testing.T) {
	t.Helper()
	var ids []uint64
	for _, snapshot := range s.pool.Snapshots(t, s.image) {
		if slices.Contains(foreignSnapshots, snapshot.Name) {
			ids = append(ids, snapshot.ID)
		}
	}
	if !slices.Equal(ids, s.foreign) {
		t.Errorf("foreign snapshots have ids %v, were made with %v", ids, s.foreign)
	}
}

// checkTidy fails where the repository holds anything but its marker, points, and lock files that say nothing.
func (s *scene) checkTidy(t *testing.T) {
	t.Helper()
	for _, entry := range tree(t, s.dir) {
		switch {
		case entry == "rbd2qcow2.json", pointFile.MatchString(filepath.Base(entry)), strings.HasSuffix(entry, "/.state/lock (0 bytes)"):
		default:
			t.Errorf("the repository has %s", entry)
		}
	}
}

// tree lists the files of a repository; lock files with their sizes.
func tree(t *testing.T, dir string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err == nil && d.Name() == "lock" {
			var info os.FileInfo
			if info, err = d.Info(); err == nil {
				name = fmt.Sprintf("%s (%d bytes)", name, info.Size())
			}
		}
		files = append(files, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
