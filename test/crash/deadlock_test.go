package crash

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
)

// TestKillInsideSnapshotCall kills runs while librbd makes or removes a snapshot for them, until one leaves the image's
// exclusive lock behind. Nobody but the administrator or a blocklisting user gets that from a dead client by itself, so
// the next run has to, even if the one in between was interrupted.
func TestKillInsideSnapshotCall(t *testing.T) {
	pool := cephtest.Require(t).Pool(t)
	t.Run("create", func(t *testing.T) {
		t.Parallel()
		s := newScene(t, pool, "create", 8<<20, "write -P 1 0 1M")
		s.leaveDeadLock(t, "phase=snapshot", func() {})
		s.checkDeadLock(t)
	})
	t.Run("remove", func(t *testing.T) {
		t.Parallel()
		s := newScene(t, pool, "remove", 8<<20, "write -P 1 0 1M")
		s.checkNext(t)
		strays := 0
		s.leaveDeadLock(t, "connected for snapshots", func() {
			for range 8 { // as killed runs leave them; to remove them takes longer than to find a moment in between
				strays++
				s.pool.CreateSnapshot(t, fmt.Sprintf("%s@%s.%s", s.image, s.snapshotPrefix(t),
					time.Unix(int64(strays), 0).UTC().Format("20060102T150405Z")))
			}
		})
		s.checkDeadLock(t)
	})
}

// leaveDeadLock kills runs soon after they have logged a phrase, until one leaves the image locked.
func (s *scene) leaveDeadLock(t *testing.T, phrase string, prepare func()) {
	t.Helper()
	moments := random(t)
	for attempt := range 60 {
		prepare()
		p := &process{Cmd: program.Command(t.Context(), s.args()...), started: time.Now()}
		log := &watchedLog{phrase: phrase, seen: make(chan struct{})}
		p.Stderr = log
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-log.seen:
		case <-time.After(time.Minute):
		}
		moment := time.Duration(moments.Int64N(int64(60 * time.Millisecond)))
		time.Sleep(moment)
		_ = p.Process.Kill()
		_ = p.Wait()
		s.checkLeft(t)
		if !s.lockStays(t) {
			continue
		}
		t.Logf("attempt %d, %v after %q, left snapshots %v and the lock of a dead client", attempt+1,
			moment.Round(time.Millisecond), phrase, s.ownSnapshots(t))
		return
	}
	t.Fatal("no kill has hit a change of snapshots")
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
		var locks []struct{ ID, Locker string }
		out := s.pool.RBD(t, "lock", "ls", "--format", "json", s.pool.Spec(s.image))
		if err := json.Unmarshal(out, &locks); err != nil {
			t.Fatalf("rbd lock ls: %v\n%s", err, out)
		}
		if len(locks) == 0 {
			return false
		}
		time.Sleep(200 * time.Millisecond)
	}
	return true
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

// watchedLog tells when a phrase is written to it.
type watchedLog struct {
	phrase string
	seen   chan struct{} // closed then

	mu      sync.Mutex
	written bytes.Buffer
	found   bool
}

func (l *watchedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.written.Write(p)
	if !l.found && bytes.Contains(l.written.Bytes(), []byte(l.phrase)) {
		l.found = true
		close(l.seen)
	}
	return len(p), nil
}
