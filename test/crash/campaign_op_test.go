package crash

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/backup"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

// opDeadline is when a run is called hung: cluster timeouts are five seconds, and who meets a prune waits for a minute.
const opDeadline = 100 * time.Second

// op is one run of the program.
type op struct {
	kind   string
	args   []string
	target string     // "": none; a file, or an image of the pool
	image  *liveImage // that is restored in place
	source string     // file of the point that is restored
	*process
}

// pickOp chooses what is run.
func (l *life) pickOp(t *testing.T, dir string) *op {
	points := l.goodPoints(t)
	kind := l.rng.IntN(20)
	if len(points) == 0 && kind >= 13 {
		kind = 0
	}
	switch {
	case kind < 10:
		return l.backupOp(dir)
	case kind < 13:
		args := []string{"prune", "--json", "--keep-last", fmt.Sprint(1 + l.rng.IntN(3))}
		if l.chance(4) {
			args = []string{"prune", "--json", "--max-chain", fmt.Sprint(1 + l.rng.IntN(3))}
		}
		l.pruned = true
		return &op{kind: "prune", args: append(args, dir)}
	case kind < 14:
		return &op{kind: "verify", args: []string{"verify", "--json", "--sample", pick(l, "100", "30"), dir}}
	case kind < 15:
		if l.chance(2) {
			return l.repairOp(dir)
		}
		return &op{kind: "verify source", args: append([]string{"verify", "--json", "--source", l.pool.String()},
			append(l.cephArgs(l.pool.User, l.pool.Keyring), dir)...)}
	}
	return l.restoreOp(dir, pick(l, points...), kind)
}

func (l *life) repairOp(dir string) *op {
	args := append([]string{"verify", "--repair", "--json", "--source", l.pool.String()}, l.cephArgs(l.pool.User, l.pool.Keyring)...)
	return &op{kind: "repair", args: append(args, dir)}
}

func (l *life) cephArgs(user, keyring string) []string {
	return []string{"--conf", l.pool.Conf, "--id", user, "--keyring", keyring, "--timeout", "5s"}
}

func (l *life) backupOp(dir string) *op {
	args := append([]string{"backup", "--json", "--verbose"}, l.cephArgs(l.pool.User, l.pool.Keyring)...)
	args = append(args, "--compress", pick(l, "zstd", "zstd", "zlib", "none"))
	if l.chance(6) {
		args = append(args, "--full")
	}
	if l.chance(4) {
		args = append(args, "--keep-last", fmt.Sprint(1+l.rng.IntN(3)))
		l.pruned = true
	}
	args = append(args, l.pool.String(), dir)
	if l.chance(2) && len(l.images) > 0 {
		args = append(args, pick(l, l.images...).name)
	}
	return &op{kind: "backup", args: args}
}

func (l *life) restoreOp(dir string, p status.Point, kind int) *op {
	folder, _, _ := strings.Cut(p.File, "/")
	o := &op{source: p.File}
	args := []string{"restore", "--json"}
	ceph := l.cephArgs(l.user, l.keyring)
	switch {
	case kind < 16:
		o.kind, o.target = "restore raw", filepath.Join(l.scratch, l.newName("restored"))
	case kind < 17:
		o.kind, o.target = "restore qcow2", filepath.Join(l.scratch, l.newName("restored")+".qcow2")
		args = append(args, "--compress", pick(l, "zstd", "none"))
	case kind < 18 || len(l.images) == 0:
		o.kind, o.target = "restore rbd", "rbd:"+l.pool.Spec(l.newName("restored"))
		args = append(args, ceph...)
	default:
		o.kind, o.image = "restore in place", pick(l, l.images...)
		o.target = "rbd:" + l.pool.Spec(o.image.name)
		args = append(append(args, "--in-place"), ceph...)
		if l.chance(2) {
			args = append(args, "--no-safety-snapshot")
		}
		l.modified[o.image.id] = true
	}
	o.args = append(args, dir, l.specs[folder]+"@"+string(p.Point), o.target)
	return o
}

// start starts a run, with more environment variables.
func (l *life) start(t *testing.T, o *op, env ...string) {
	t.Helper()
	l.say("run %v %v", env, o.args)
	l.tally["run "+o.kind]++
	o.process = &process{Cmd: l.program.Command(t.Context(), o.args...), log: &watchedLog{}, exited: make(chan struct{})}
	o.Env = append(o.Env, env...)
	o.Stderr = o.log
	o.begin(t)
}

// finish waits until a run has ended.
func (l *life) finish(t *testing.T, o *op) {
	t.Helper()
	select {
	case <-o.exited:
	case <-time.After(time.Until(o.started.Add(opDeadline))):
		_ = o.Process.Signal(syscall.SIGQUIT) // it tells where it hangs
		select {
		case <-o.exited:
		case <-time.After(10 * time.Second):
			_ = o.Process.Kill()
		}
		t.Errorf("%v hangs\n%s", o.args, o.stderr())
		return
	}
	l.say("%s ended after %v: %v", o.kind, time.Since(o.started).Round(time.Millisecond), o.ProcessState)
	if text := o.stderr(); text != "" {
		l.story = append(l.story, "    "+strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n    "))
	}
	l.tally[fmt.Sprintf("exit %s %v", o.kind, o.ProcessState)]++
	if o.image != nil {
		o.image.size = l.pool.Info(t, o.image.name).Size // now that of the point
	}
}

func (o *op) stdout() []byte { return []byte(fmt.Sprint(o.Stdout)) }

// checkExit holds the exit status against what was struck and what is reported.
func (l *life) checkExit(t *testing.T, o *op, s *strike) {
	t.Helper()
	if t.Failed() {
		return
	}
	text := o.stderr()
	for _, bad := range []string{"panic:", "DATA RACE", "fatal error:", "SIGSEGV", "SIGABRT"} {
		if strings.Contains(text, bad) {
			t.Errorf("%v: %s\n%s", o.args, bad, text)
		}
	}
	code, killed := o.ProcessState.ExitCode(), o.killedBy()
	switch {
	case killed != 0 && killed != syscall.SIGKILL && killed != s.signal:
		t.Errorf("%v ended by %v\n%s", o.args, killed, text)
	case killed == syscall.SIGKILL && s.signal != syscall.SIGKILL:
		t.Errorf("%v was killed\n%s", o.args, text)
	case killed == 0 && code > 128 && code != 128+int(s.signal), code == 2, code > 4 && code < 128:
		t.Errorf("%v: exit status %d\n%s", o.args, code, text)
	case code != 0 && s.harmless && o.strict() && !strings.Contains(text, "locked by"):
		t.Errorf("%v: exit status %d, and nothing was amiss\n%s", o.args, code, text)
	}
	if killed == 0 && o.kind == "backup" {
		l.checkReport(t, o, code)
	}
}

// checkReport holds the exit status of a backup against what it reports.
func (l *life) checkReport(t *testing.T, o *op, code int) {
	t.Helper()
	var r backup.Report
	if err := json.Unmarshal(o.stdout(), &r); err != nil {
		if code == 0 || len(o.stdout()) > 0 {
			t.Errorf("%v: exit status %d, report: %v\n%s", o.args, code, err, o.stdout())
		}
		return
	}
	done, failed := r.Count(backup.Done), r.Count(backup.Failed)
	switch {
	case code == 0 && (failed > 0 || r.Error != ""), code == 3 && done+r.Count(backup.Skipped) == 0,
		code == 1 && done > 0 && failed > 0 && r.Error == "":
		t.Errorf("%v: exit status %d, %d images done, %d failed, error %q", o.args, code, done, failed, r.Error)
	}
	for _, i := range r.Images {
		if i.Status == backup.Done {
			l.tally["reason "+i.Method]++
		}
	}
}

// strict says whether nothing but an adversary can make a run fail.
func (o *op) strict() bool {
	return o.kind != "verify source" && o.kind != "repair" && o.kind != "restore in place"
}
