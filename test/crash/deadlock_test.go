package crash

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
)

// TestKillInsideSnapshotCall kills runs while librbd makes or removes a snapshot for them.
func TestKillInsideSnapshotCall(t *testing.T) {
	pool := cephtest.Require(t).Pool(t)
	const write = "write -P 1 0 1M"
	// The image's exclusive lock stays. Nobody but an administrator can take that from a dead client by himself, so
	// the next run has to see to it, even if the one in between is interrupted.
	t.Run("create", func(t *testing.T) {
		t.Parallel()
		s := newScene(t, pool, "create", 8<<20, write)
		s.killInside(t, "phase=snapshot", func() {}, s.lockStays)
		s.checkDeadLock(t)
	})
	t.Run("remove", func(t *testing.T) {
		t.Parallel()
		s := newScene(t, pool, "remove", 8<<20, write)
		s.checkNext(t)
		s.killInside(t, "phase=clean-up", s.leaveStrays(t), s.lockStays)
		s.checkDeadLock(t)
	})
	// A client that an administrator bans in this moment ends with an error, and its lock stays all the same.
	t.Run("blocklist", func(t *testing.T) {
		t.Parallel()
		s := newScene(t, pool, "blocklist", 8<<20, write)
		s.banInside(t, "phase=snapshot")
		s.checkNext(t)
	})
	// A snapshot on its way out has left the list of snapshots and is in the trash. Without a lock to wait for.
	t.Run("trash", func(t *testing.T) {
		s := newScene(t, pool, "trash", 8<<20, write)
		pool.RBD(t, "feature", "disable", pool.Spec(s.image), "fast-diff", "object-map", "exclusive-lock")
		s.checkNext(t)
		s.killInside(t, "phase=clean-up", s.leaveStrays(t), s.hasTrash)
		s.checkNext(t)
	})
}

// leaveStrays gives a function that makes snapshots as killed runs leave them, for the next run to remove: so many
// that a moment inside a removal is easily found.
func (s *scene) leaveStrays(t *testing.T) func() {
	n := 0
	return func() {
		for range 8 {
			n++
			s.pool.CreateSnapshot(t, fmt.Sprintf("%s@%s.%s", s.image, s.snapshotPrefix(t),
				time.Unix(int64(n), 0).UTC().Format("20060102T150405Z")))
		}
	}
}

// killInside kills runs soon after they have logged a phrase, until one leaves what is hoped for.
func (s *scene) killInside(t *testing.T, phrase string, prepare func(), hit func(*testing.T) bool) {
	t.Helper()
	moments := random(t)
	for attempt := range 100 {
		prepare()
		p := startWatched(t, s.args(), phrase)
		moment := time.Duration(moments.Int64N(int64(60 * time.Millisecond)))
		p.signal(t, syscall.SIGKILL, time.Since(p.started)+moment)
		p.wait(t)
		s.checkLeft(t)
		if hit(t) {
			t.Logf("attempt %d, killed %v after %q", attempt+1, moment.Round(time.Millisecond), phrase)
			return
		}
	}
	t.Fatal("no kill has hit a change of snapshots")
}

// banInside stops runs soon after they have logged a phrase, until one holds the image's lock, bans its client, and lets it go on.
func (s *scene) banInside(t *testing.T, phrase string) {
	t.Helper()
	moments := random(t)
	for range 100 {
		p := startWatched(t, s.args(), phrase)
		p.signal(t, syscall.SIGSTOP, time.Since(p.started)+time.Duration(moments.Int64N(int64(60*time.Millisecond))))
		held := s.lockStays(t)
		if held {
			s.pool.Ceph(t, "osd", "blocklist", "add", s.locks(t)[0].Address)
		}
		p.signal(t, syscall.SIGCONT, 0)
		p.wait(t)
		s.checkLeft(t)
		if held && p.ProcessState.ExitCode() == 1 && s.lockStays(t) {
			return
		}
	}
	t.Fatal("no client was banned while it held the lock")
}

// hasTrash says whether a snapshot is in the trash.
func (s *scene) hasTrash(t *testing.T) bool {
	t.Helper()
	return slices.ContainsFunc(s.pool.Snapshots(t, s.image), func(s cephtest.Snapshot) bool {
		return s.Namespace.Type == "trash"
	})
}

// checkDeadLock has a run be interrupted while it waits for the dead client's end, and the next one succeed.
func (s *scene) checkDeadLock(t *testing.T) {
	t.Helper()
	dead := time.Now()
	p := start(t, s.args())
	p.signal(t, syscall.SIGINT, 2*time.Second)
	p.wait(t)
	if code := p.ProcessState.ExitCode(); code != 130 || !strings.Contains(p.stderr(), "locked by a killed run: waiting") {
		t.Errorf("interrupted beside a dead lock: exit status %d\n%s", code, p.stderr())
	}
	began := time.Now()
	s.checkNext(t)
	t.Logf("next run took %v; %v after the kill the image could be backed up", time.Since(began).Round(time.Millisecond),
		time.Since(dead).Round(time.Millisecond))
}

// lockStays says whether the image has a lock, and still has it when what a dead process had sent has arrived.
func (s *scene) lockStays(t *testing.T) bool {
	t.Helper()
	for range 2 {
		if len(s.locks(t)) == 0 {
			return false
		}
		time.Sleep(200 * time.Millisecond)
	}
	return true
}

type imageLock struct{ ID, Locker, Address string }

func (s *scene) locks(t *testing.T) (locks []imageLock) {
	t.Helper()
	out := s.pool.RBD(t, "lock", "ls", "--format", "json", s.pool.Spec(s.image))
	if err := json.Unmarshal(out, &locks); err != nil {
		t.Fatalf("rbd lock ls: %v\n%s", err, out)
	}
	return locks
}

// snapshotPrefix begins the names of the repository's snapshots.
func (s *scene) snapshotPrefix(t *testing.T) string {
	t.Helper()
	var marker struct{ Repository string }
	b, err := os.ReadFile(filepath.Join(s.dir, "rbd2qcow2.json"))
	if err == nil {
		err = json.Unmarshal(b, &marker)
	}
	if err != nil {
		t.Fatal(err)
	}
	return "rbd2qcow2." + strings.ReplaceAll(marker.Repository, "-", "")[:12]
}
