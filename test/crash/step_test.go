package crash

import (
	"slices"
	"syscall"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/crashpoint"
)

// TestKillAtStep kills a first backup and an increment at every step.
func TestKillAtStep(t *testing.T) {
	pool := cephtest.Require(t).Pool(t)
	first := []string{crashpoint.MarkerWritten, crashpoint.MarkerBound, crashpoint.FolderMade} // once in a repository's life
	committed := []string{crashpoint.Linked, crashpoint.DirectorySynced, crashpoint.SnapshotRemoved}
	for _, step := range crashpoint.BackupSteps() {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, pool, step, 24<<20, "write -P 1 64k 6M", "write -P 2 9M 100k", "write -z 3M 70k")
			s.killAt(t, step, slices.Contains(committed, step))
			s.write(t, "write -P 3 1M 300k", "write -z 5M 1M", "discard 9M 64k")
			s.checkNext(t)
			if slices.Contains(first, step) {
				return
			}
			s.write(t, "write -P 4 1M 100k", "write -P 5 12M 1M", "write -z 2M 1M")
			s.killAt(t, step, slices.Contains(committed, step))
			s.write(t, "write -P 6 2M 300k", "write -z 12M 64k")
			s.checkNext(t)
		})
	}
}

// killAt runs a backup that kills itself at a step, and checks what it leaves.
func (s *scene) killAt(t *testing.T, step string, committed bool) {
	t.Helper()
	p := start(t, s.args(), "RBD2QCOW2_CRASH_AT="+step)
	p.wait(t)
	if p.killedBy() != syscall.SIGKILL {
		t.Fatalf("step %s was not reached: %v\n%s", step, p.ProcessState, p.stderr())
	}
	if appeared := s.checkLeft(t); len(appeared) == 1 != committed {
		t.Errorf("killed at %s: new points %v", step, appeared)
	}
}

// TestKillInit kills the making of a repository before its marker has its name.
func TestKillInit(t *testing.T) {
	dir := t.TempDir()
	p := start(t, []string{"init", dir}, "RBD2QCOW2_CRASH_AT="+crashpoint.MarkerWritten)
	p.wait(t)
	if p.killedBy() != syscall.SIGKILL {
		t.Fatalf("init ended with %v\n%s", p.ProcessState, p.stderr())
	}
	if r := program.Run(t, "init", dir); r.Code != 0 {
		t.Errorf("init after a killed one: exit status %d\n%s", r.Code, r.Stderr)
	}
	s := newScene(t, cephtest.Require(t).Pool(t), "vm", 8<<20, "write -P 1 0 1M")
	s.dir = dir
	s.checkNext(t)
}
