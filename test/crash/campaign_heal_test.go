package crash

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/backup"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// clean removes the points that are damaged and those that lie on them, and finishes what restores have left.
func (l *life) clean(t *testing.T) {
	if len(l.injured) > 0 && l.chance(2) {
		l.mend(t)
	}
	l.cleanImages(t)
	removed := 0
	reports := l.verify(t)
	for _, i := range l.list(t) {
		bad := map[repo.PointName]bool{}
		for _, p := range i.Points {
			if !reports[p.File].Verdict.Bad() && (p.Parent == nil || !bad[*p.Parent]) {
				continue
			}
			if len(l.injured) == 0 {
				t.Errorf("%s is reported as damaged, and nothing was damaged: %+v", p.File, reports[p.File])
				continue
			}
			bad[p.Point] = true
			if err := os.Remove(filepath.Join(l.dir, p.File)); err != nil {
				t.Error(err)
			}
			delete(l.truth, p.File)
			removed++
		}
	}
	l.injured = map[string]string{} // from now on all has to be good
	if removed == 0 || t.Failed() {
		return
	}
	l.say("removed %d damaged points", removed)
	for file, r := range l.verify(t) {
		if r.Verdict.Bad() {
			t.Errorf("%s is damaged after all that was damaged is gone: %+v", file, r)
		}
	}
}

// mend has damage repaired. What is not reported any more has to be right.
func (l *life) mend(t *testing.T) {
	o := l.repairOp(l.dir)
	l.start(t, o)
	l.finish(t, o)
	if t.Failed() {
		return
	}
	l.checkExit(t, o, &strike{})
	for file, r := range l.verify(t) {
		if how, was := l.injured[file]; was && !r.Verdict.Bad() {
			l.tally["damages mended"]++
			l.say("mended: %s (%s)", file, how)
			delete(l.injured, file)
		}
	}
	l.mending = true
	l.check(t)
	l.mending = false
}

// cleanImages removes images that were restored, and completes restores in place that have failed.
func (l *life) cleanImages(t *testing.T) {
	for _, name := range l.pool.Images(t) {
		if strings.HasPrefix(name, "restored") {
			l.removeWhenDead(t, name)
		}
	}
	for _, i := range l.images {
		for _, s := range l.pool.Snapshots(t, i.name) {
			if strings.HasPrefix(s.Name, "before-restore-") {
				l.pool.RemoveSnapshot(t, i.name+"@"+s.Name)
			}
		}
		mark, err := l.pool.TryRBD("image-meta", "get", l.pool.Spec(i.name), repo.UnfinishedKey)
		if err == nil {
			l.say("%s is unfinished: %s", i.name, mark)
			l.finishRestore(t, i)
		}
	}
}

// finishRestore brings an image that is half restored to some good point, or takes it for good.
func (l *life) finishRestore(t *testing.T, i *liveImage) {
	points := l.goodPoints(t)
	if len(points) == 0 {
		l.pool.RBD(t, "image-meta", "remove", l.pool.Spec(i.name), repo.UnfinishedKey)
		return
	}
	o := l.restoreOp(l.dir, pick(l, points...), 20)
	o.image, o.target = i, "rbd:"+l.pool.Spec(i.name)
	o.args[len(o.args)-1] = o.target
	l.start(t, o)
	l.finish(t, o)
	if !t.Failed() && !o.ProcessState.Success() {
		t.Errorf("%v: a restore in place that was cut short can't be completed\n%s", o.args, o.stderr())
	}
	l.modified = map[string]bool{}
	l.checkTarget(t, o)
}

// checkTarget compares what was restored with the truth, and removes it.
func (l *life) checkTarget(t *testing.T, o *op) {
	if o.target == "" || t.Failed() {
		return
	}
	done := o.ProcessState.Success()
	want, known := l.truth[o.source]
	if image, is := strings.CutPrefix(o.target, "rbd:"); is {
		if !done || !known {
			return
		}
		_, image, _ = strings.Cut(image, "/")
		if got := l.export(t, image); got != want {
			l.tally["wrong"]++
			t.Errorf("WRONG: %s restored to %s reads as %v, want %v", o.source, image, got, want)
		}
		return
	}
	defer func() { _ = os.Remove(o.target) }()
	if !done {
		if _, err := os.Stat(o.target); err == nil {
			l.say("%s is there although the restore ended with %v", o.target, o.ProcessState)
		}
	}
	if _, err := os.Stat(o.target); err != nil {
		if done {
			t.Error(err)
		}
		return
	}
	raw := o.target
	if strings.HasSuffix(raw, ".qcow2") {
		raw += ".raw"
		defer func() { _ = os.Remove(raw) }()
		if _, err := output("qemu-img", "convert", "-f", "qcow2", "-O", "raw", o.target, raw); err != nil {
			t.Error(err)
			return
		}
	}
	got, err := output("head", "-c", fmt.Sprint(want.size), raw)
	if err != nil || known && got != want {
		l.tally["wrong"]++
		t.Errorf("WRONG: %s restored to %s reads as %v, want %v (%v)", o.source, o.target, got, want, err)
	}
}

// removeWhenDead removes an image as soon as the client that was killed is known to be dead.
func (l *life) removeWhenDead(t *testing.T, name string) {
	for {
		_, err := l.pool.TryRBD("rm", "--no-progress", l.pool.Spec(name))
		if err == nil {
			return
		}
		if !strings.Contains(err.Error(), "watchers") {
			t.Fatal(err)
		}
		if t.Context().Err() != nil {
			return
		}
	}
}

// calm has the next backup succeed and clean up after all that was.
func (l *life) calm(t *testing.T) {
	if t.Failed() || len(l.images) == 0 {
		return
	}
	l.observe(t)
	l.modified = map[string]bool{}
	o := l.runBackup(t)
	if strings.Contains(o.stderr(), "does not give it up") { // a restore that was killed, and counts as alive for half a minute
		l.say("wait until the cluster knows who is dead")
		time.Sleep(deadClient)
		o = l.runBackup(t)
	}
	if t.Failed() {
		return
	}
	l.checkExit(t, o, &strike{harmless: true})
	var r backup.Report
	if err := json.Unmarshal(o.stdout(), &r); err != nil {
		t.Errorf("report: %v", err)
	}
	if r.Count(backup.Done) != len(l.images) {
		t.Errorf("%d of %d images were backed up\n%s", r.Count(backup.Done), len(l.images), o.stderr())
	}
	if !t.Failed() {
		l.check(t)
		l.checkLeftovers(t, r)
	}
}

// deadClient is after what time the cluster takes a client for dead.
const deadClient = 35 * time.Second

// runBackup backs up all images, with nobody in the way.
func (l *life) runBackup(t *testing.T) *op {
	o := &op{kind: "backup", args: append([]string{"backup", "--json", "--verbose"}, l.cephArgs(l.pool.User, l.pool.Keyring)...)}
	o.args = append(o.args, l.pool.String(), l.dir)
	l.start(t, o)
	l.finish(t, o)
	return o
}

var stateFile = regexp.MustCompile(`/\.state/(lock \(0 bytes\)|verified\.(json|lock)|gone(\.json)?|pins\.json)$`)

// checkLeftovers fails if there is more than the newest points' snapshots and the points.
func (l *life) checkLeftovers(t *testing.T, r backup.Report) {
	prefix := l.repository(t).SnapshotPrefix()
	var want, have []string
	for _, i := range r.Images {
		for _, p := range i.Points {
			want = append(want, i.Name+"@"+p.Snapshot)
		}
	}
	for _, i := range l.images {
		for _, s := range l.pool.Snapshots(t, i.name) {
			if strings.HasPrefix(s.Name, prefix) || s.Namespace.Type == "trash" {
				have = append(have, i.name+"@"+s.Name)
			}
		}
	}
	slices.Sort(want)
	slices.Sort(have)
	if !slices.Equal(want, have) {
		t.Errorf("snapshots %q, want %q", have, want)
	}
	touched := map[string]bool{} // folders that this backup was at work in
	for _, i := range r.Images {
		for _, p := range i.Points {
			touched[filepath.Dir(p.File)] = true
		}
	}
	for _, entry := range tree(t, l.dir) {
		folder, file, _ := strings.Cut(entry, "/")
		if strings.HasPrefix(file, ".state/lock ") && !touched[folder] {
			continue // it may name a run that was killed when the image was still there
		}
		if entry != "rbd2qcow2.json" && !pointFile.MatchString(filepath.Base(entry)) && !stateFile.MatchString("/"+entry) {
			t.Errorf("the repository has %s", entry)
		}
	}
	for _, i := range l.list(t) {
		for _, p := range i.Points {
			if p.State == repo.Removing {
				t.Errorf("after a backup %s is still being removed", p.File)
			}
		}
	}
}
