package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/programtest"
)

// TestSecondRun has a run find another one at work on its image.
func TestSecondRun(t *testing.T) {
	s := newScene(t, cephtest.Require(t).Pool(t), "vm", 8<<20, "write -P 1 0 4M")
	lock := filepath.Join(s.dir, s.image, ".state", "lock")
	first := start(t, s.args())
	for {
		if info, err := os.Stat(lock); err == nil && info.Size() > 0 {
			break
		}
		select {
		case <-first.exited:
			t.Fatalf("the first run ended with %v\n%s", first.ProcessState, first.stderr())
		case <-time.After(time.Millisecond):
		}
	}
	if err := first.Process.Signal(syscall.SIGSTOP); err != nil { // so that it does not finish first
		t.Fatal(err)
	}
	second := start(t, s.args())
	second.wait(t)
	if err := first.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	first.wait(t)
	if !first.ProcessState.Success() {
		t.Errorf("first run: %v\n%s", first.ProcessState, first.stderr())
	}
	checkRefused(t, second, first)
	if appeared := s.checkLeft(t); len(appeared) != 1 {
		t.Errorf("new points %v", appeared)
	}
	s.checkNext(t)
}

// checkRefused fails unless a run was refused with one line that names the process at work.
func checkRefused(t *testing.T, p, holder *process) {
	t.Helper()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	who := fmt.Sprintf("locked by process %d on %s since", holder.Process.Pid, host)
	if code := p.ProcessState.ExitCode(); code != 1 || strings.Count(p.stderr(), who) != 1 {
		t.Errorf("a run beside another: exit status %d, %q not once in\n%s", code, who, p.stderr())
	}
}

// TestRunsAtOnce starts two runs on one image in the same instant: one or both of them back it up.
func TestRunsAtOnce(t *testing.T) {
	s := newScene(t, cephtest.Require(t).Pool(t), "vm", 8<<20, "write -P 1 0 4M")
	for range 3 {
		a, b := start(t, s.args()), start(t, s.args())
		a.wait(t)
		b.wait(t)
		switch {
		case a.ProcessState.Success() && b.ProcessState.Success():
			for _, point := range s.visiblePoints(t) {
				s.points[point] = s.current // both are of the same content
			}
		case a.ProcessState.Success():
			checkRefused(t, b, a)
		case b.ProcessState.Success():
			checkRefused(t, a, b)
		default:
			t.Errorf("both runs failed:\n%s\n%s", a.stderr(), b.stderr())
		}
		s.checkLeft(t)
		s.checkOneSnapshot(t)
		s.checkTidy(t)
		s.write(t, "write -P 2 1M 100k")
	}
	s.checkNext(t)
}

// TestDifferentImagesAtOnce starts two first backups of a repository in the same instant.
func TestDifferentImagesAtOnce(t *testing.T) {
	pool := cephtest.Require(t).Pool(t)
	a := newScene(t, pool, "a", 8<<20, "write -P 1 0 4M")
	b := newScene(t, pool, "b", 8<<20, "write -P 2 0 4M")
	b.dir = a.dir
	runs := []*process{start(t, a.args()), start(t, b.args())}
	for _, p := range runs {
		if p.wait(t); !p.ProcessState.Success() {
			t.Errorf("%v: %v\n%s", p.Args, p.ProcessState, p.stderr())
		}
	}
	for _, s := range []*scene{a, b} {
		if appeared := s.checkLeft(t); len(appeared) != 1 {
			t.Errorf("image %s: new points %v", s.image, appeared)
		}
		s.checkNext(t)
	}
}

// TestDifferentPoolsAtOnce has two pools' first backups compete for a repository: it can belong to one alone.
func TestDifferentPoolsAtOnce(t *testing.T) {
	cluster := cephtest.Require(t)
	a := newScene(t, cluster.Pool(t), "a", 8<<20, "write -P 1 0 4M")
	b := newScene(t, cluster.Pool(t), "b", 8<<20, "write -P 2 0 4M")
	for range 5 {
		dir := program.Init(t)
		runs := []*process{
			start(t, programtest.BackupArgs(a.pool, dir, a.image)), start(t, programtest.BackupArgs(b.pool, dir, b.image)),
		}
		done := 0
		for _, p := range runs {
			if p.wait(t); p.ProcessState.Success() {
				done++
			} else if !strings.Contains(p.stderr(), "use another directory") {
				t.Errorf("%v: %v\n%s", p.Args, p.ProcessState, p.stderr())
			}
		}
		if done != 1 {
			t.Errorf("%d of two pools were backed up to one repository:\n%s", done, strings.Join(tree(t, dir), "\n"))
		}
	}
}
