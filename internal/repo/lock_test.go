package repo

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func lockedFolder(t *testing.T) (*Folder, *Lock) {
	t.Helper()
	f := (&Repository{Dir: t.TempDir()}).Folder("vm")
	if err := f.Create(); err != nil {
		t.Fatal(err)
	}
	return f, mustLock(t, f)
}

func mustLock(t *testing.T, f *Folder) *Lock {
	t.Helper()
	l, err := f.Lock()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func lockFile(f *Folder) string { return filepath.Join(f.Dir, stateDir, "lock") }

func TestLockNamesHolder(t *testing.T) {
	f, l := lockedFolder(t)
	var locked *LockedError
	if _, err := f.Lock(); !errors.As(err, &locked) || locked.Holder.PID != os.Getpid() || locked.Holder.Host == "" {
		t.Errorf("second lock: %v", err)
	}
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(lockFile(f)); err != nil || info.Size() != 0 {
		t.Errorf("lock file after the end: %v, %v", info, err)
	}
	if err := mustLock(t, f).Unlock(); err != nil {
		t.Error(err)
	}
}

// TestAwaitLock waits for a run that prunes, and for no other one.
func TestAwaitLock(t *testing.T) {
	f, backup := lockedFolder(t)
	told := 0
	waiting := func(*LockedError) { told++ }
	var locked *LockedError
	if _, err := f.AwaitLock(t.Context(), Pruning, waiting); !errors.As(err, &locked) || told != 0 {
		t.Errorf("beside a backup: %v, told %d times", err, told)
	}
	if err := backup.Unlock(); err != nil {
		t.Fatal(err)
	}
	prune, err := f.AwaitLock(t.Context(), Pruning, waiting)
	if err != nil || told != 0 {
		t.Fatalf("alone: %v, told %d times", err, told)
	}
	if _, err := f.awaitLock(t.Context(), BackingUp, 3*lockPoll, waiting); !errors.As(err, &locked) || told != 1 {
		t.Errorf("beside a prune that does not end: %v, told %d times", err, told)
	}
	interrupted := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	if _, err := f.AwaitLock(ctx, BackingUp, func(*LockedError) { cancel(interrupted) }); !errors.Is(err, interrupted) {
		t.Errorf("interrupted: %v", err)
	}
	ended := make(chan error)
	l, err := f.AwaitLock(t.Context(), BackingUp, func(*LockedError) {
		time.AfterFunc(3*lockPoll, func() { ended <- prune.Unlock() })
		told++
	})
	if err != nil || told != 2 {
		t.Fatalf("beside a prune that ends: %v, told %d times", err, told)
	}
	if err := errors.Join(<-ended, l.Unlock()); err != nil {
		t.Error(err)
	}
}

// TestDeadClients follows a client that may hold a lock of the cluster through the runs after its own.
func TestDeadClients(t *testing.T) {
	f, l := lockedFolder(t)
	if err := l.AddClient("client.1"); err != nil {
		t.Fatal(err)
	}
	l.file.Close() // as by a kill

	// A run that fails before it has looked after the client leaves it to the next one, with its own if need be.
	l = mustLock(t, f)
	if got := l.DeadClients(); !slices.Equal(got, []string{"client.1"}) {
		t.Errorf("dead clients %v", got)
	}
	if err := l.AddClient("client.2"); err != nil {
		t.Fatal(err)
	}
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	l = mustLock(t, f)
	if got := l.DeadClients(); !slices.Equal(got, []string{"client.1", "client.2"}) {
		t.Errorf("dead clients %v", got)
	}
	l.Forget("client.1", "client.2")
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	l = mustLock(t, f)
	if got := l.DeadClients(); len(got) != 0 {
		t.Errorf("dead clients %v", got)
	}
	_ = l.Unlock()
}

// TestDeadClientsBehindLongerContent has a kill strike when a shorter content was written over a longer one.
func TestDeadClientsBehindLongerContent(t *testing.T) {
	f, l := lockedFolder(t)
	if err := l.AddClient("client.1"); err != nil {
		t.Fatal(err)
	}
	l.file.Close()
	file, err := os.OpenFile(lockFile(f), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString(strings.Repeat("}", 100)); err != nil {
		t.Fatal(err)
	}
	file.Close()
	l = mustLock(t, f)
	if got := l.DeadClients(); !slices.Equal(got, []string{"client.1"}) {
		t.Errorf("dead clients %v", got)
	}
	_ = l.Unlock()
}
