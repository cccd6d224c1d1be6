package crash

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
	"github.com/rbd2qcow2/rbd2qcow2/internal/verify"
)

// list is what the program lists.
func (l *life) list(t *testing.T) []status.Image {
	t.Helper()
	r := l.program.Run(t, "list", "--json", l.dir)
	var listed struct{ Images []status.Image }
	if err := json.Unmarshal([]byte(r.Stdout), &listed); r.Code != 0 || err != nil {
		t.Fatalf("list: exit status %d, %v\n%s", r.Code, err, r.Stderr)
	}
	l.specs = map[string]string{}
	for _, i := range listed.Images {
		l.specs[i.Folder] = i.Name
		if slices.ContainsFunc(listed.Images, func(o status.Image) bool { return o.Folder != i.Folder && o.Name == i.Name }) {
			l.specs[i.Folder] = i.Folder // of two images that had one name
		}
	}
	return listed.Images
}

// goodPoints are those that can be restored, for all that is known.
func (l *life) goodPoints(t *testing.T) (points []status.Point) {
	for _, i := range l.list(t) {
		for _, p := range i.Points {
			if _, known := l.truth[p.File]; known && p.State != repo.Removing && l.injured[p.File] == "" {
				points = append(points, p)
			}
		}
	}
	return points
}

// verify gives what the program says of all points, by their files.
func (l *life) verify(t *testing.T) map[string]verify.PointReport {
	t.Helper()
	r := l.program.Run(t, "verify", "--json", l.dir)
	var report verify.Report
	if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil {
		t.Fatalf("verify: exit status %d, %v\n%s", r.Code, err, r.Stderr)
	}
	found, bad := map[string]verify.PointReport{}, 0
	for _, i := range report.Images {
		for _, p := range i.Points {
			found[fmt.Sprintf("%s/%s@%s.qcow2", i.Folder, i.Folder, p.Point)] = p
			if p.Verdict.Bad() {
				bad++
			}
			if p.Status == verify.Failed {
				t.Errorf("verify: %s@%s: %s", i.Name, p.Point, p.Error)
			}
		}
	}
	if want := map[bool]int{false: 0, true: 4}[bad > 0]; r.Code != want && (len(found) > 0 || r.Code != 1) {
		t.Errorf("verify: exit status %d with %d damaged of %d points\n%s%s", r.Code, bad, len(found), r.Stdout, r.Stderr)
	}
	return found
}

// check holds every visible point against the truth about it.
func (l *life) check(t *testing.T) {
	images := l.list(t)
	reports := l.verify(t)
	if t.Failed() {
		return
	}
	seen := map[string]bool{}
	for _, i := range images {
		bad := map[repo.PointName]bool{}      // reported, or lying on what is
		chains := map[repo.PointName]string{} // the files of a chain, as they are on disk
		for _, p := range i.Points {
			seen[p.File] = true
			if p.State == repo.Removing && !l.pruned && len(l.injured) == 0 {
				t.Errorf("%s is being removed, and nobody prunes", p.File)
			}
			if p.State == repo.Removing {
				continue
			}
			report, verified := reports[p.File]
			if !verified {
				t.Errorf("%s was not verified", p.File)
			}
			bad[p.Point] = report.Verdict.Bad() || p.Parent != nil && bad[*p.Parent]
			if _, known := l.truth[p.File]; !known {
				if bad[p.Point] && len(l.injured) > 0 {
					continue // made on what was damaged, and reported
				}
				l.truth[p.File] = l.truthOf(t, i.Folder, string(p.Point))
				l.say("new point %s (%s %s): %v", p.File, p.Kind, p.Reason, l.truth[p.File])
			}
			chains[p.Point] = l.fingerprint(p)
			if p.Parent != nil {
				chains[p.Point] += chains[*p.Parent]
			}
			if bad[p.Point] || chains[p.Point] != l.checked[p.File] || l.chance(8) {
				l.checkPoint(t, i.Folder, p, bad[p.Point])
				l.checked[p.File] = chains[p.Point]
			}
		}
	}
	l.checkGone(t, seen)
	l.checkInjuries(t, seen, reports)
	l.checkForeign(t)
}

// checkPoint restores a point: it has to be right, or it has been reported as damaged and does not pretend to be right.
func (l *life) checkPoint(t *testing.T, folder string, p status.Point, bad bool) {
	l.tally["points checked"]++
	args := []string{"restore", "-q", l.dir, l.specs[folder] + "@" + string(p.Point), "-"}
	if bad {
		args = append(args, "--force")
	}
	want := l.truth[p.File]
	got, err := output(l.program.Path, args...)
	switch {
	case err != nil && !bad:
		t.Errorf("%s is not reported as damaged, and can't be restored: %v", p.File, err)
	case err == nil && got != want:
		l.tally["wrong"]++
		t.Errorf("WRONG: %s (reported as damaged: %v) reads as %v, want %v; %s", p.File, bad, got, want, l.injured[p.File])
	case err == nil && !bad && l.chance(8):
		l.checkByQEMU(t, p, want)
	}
}

// checkByQEMU reads a point by another program.
func (l *life) checkByQEMU(t *testing.T, p status.Point, want content) {
	raw := filepath.Join(l.scratch, "converted.raw")
	defer func() { _ = os.Remove(raw) }()
	if _, err := output("qemu-img", "convert", "-f", "qcow2", "-O", "raw", filepath.Join(l.dir, p.File), raw); err != nil {
		t.Error(err)
		return
	}
	got, err := output("head", "-c", fmt.Sprint(want.size), raw)
	if err != nil || got != want {
		l.tally["wrong"]++
		t.Errorf("WRONG: to QEMU %s reads as %v, want %v (%v)", p.File, got, want, err)
	}
}

// checkGone fails if a point is gone that nobody has removed.
func (l *life) checkGone(t *testing.T, seen map[string]bool) {
	for _, file := range slices.Sorted(maps.Keys(l.truth)) {
		if seen[file] {
			continue
		}
		if !l.pruned && len(l.injured) == 0 {
			t.Errorf("%s is gone", file)
		}
		delete(l.truth, file)
	}
}

// checkInjuries counts what became of damages.
func (l *life) checkInjuries(t *testing.T, seen map[string]bool, reports map[string]verify.PointReport) {
	count := func(what string) {
		if !l.mending {
			l.tally[what]++
		}
	}
	for _, file := range slices.Sorted(maps.Keys(l.injured)) {
		how := l.injured[file]
		count("damages injected")
		report, verified := reports[file]
		switch {
		case !seen[file]:
			count("damages gone")
			l.say("gone: %s (%s)", file, how)
			if !l.pruned && !strings.Contains(how, "removed") && !strings.Contains(how, "swapped") {
				t.Errorf("%s was %s, and is gone although nobody prunes", file, how)
			}
		case verified && report.Verdict.Bad():
			count("damages reported")
			l.say("reported: %s (%s): %s", file, how, report.Damages[0].Message)
		case !strings.HasPrefix(how, "bits") && !strings.HasPrefix(how, "state"):
			t.Errorf("%s was %s, and verify says %+v", file, how, report)
		default: // what it reads as has been compared
			count("damages harmless")
			l.say("not reported, and harmless: %s (%s)", file, how)
		}
	}
}

// checkForeign fails if snapshots are gone that are not ours.
func (l *life) checkForeign(t *testing.T) {
	have := map[string]bool{}
	ids := map[string]bool{}
	for _, i := range l.images {
		i.id = l.pool.Info(t, i.name).ID
		ids[i.id] = true
		for _, s := range l.pool.Snapshots(t, i.name) {
			have[fmt.Sprintf("%s/%d", i.id, s.ID)] = true
		}
	}
	for _, s := range slices.Sorted(maps.Keys(l.foreign)) {
		if id, _, _ := strings.Cut(s, "/"); ids[id] && !have[s] {
			t.Errorf("snapshot %s is gone, which is not ours", s)
		}
	}
}

// fingerprint changes whenever a point's file is written to.
func (l *life) fingerprint(p status.Point) string {
	var s unix.Stat_t
	if err := unix.Stat(filepath.Join(l.dir, p.File), &s); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%s %d %d %d;", p.Point, s.Ino, s.Size, s.Ctim.Nano())
}
