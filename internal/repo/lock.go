package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// LockedError says who holds a folder's lock.
type LockedError struct {
	Folder string
	Holder Holder
}

func (e *LockedError) Error() string {
	if e.Holder.PID == 0 {
		return fmt.Sprintf("%s is locked by another run", e.Folder)
	}
	return fmt.Sprintf("%s is locked by process %d on %s since %s (%s)", e.Folder, e.Holder.PID, e.Holder.Host,
		e.Holder.Started.Local().Format(time.DateTime), e.Holder.Command)
}

// Holder is what a lock file says of the process that holds it. When the lock has ended and the content is still
// there, that process has died, or has left something in the cluster.
type Holder struct {
	Host    string    `json:"host"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Command string    `json:"command"`
	Work    Work      `json:"work,omitempty"`
	// Clients are the RADOS clients by which this process, and dead ones before it, may hold locks of the cluster.
	Clients []string `json:"clients,omitempty"`
}

// Work is what a folder's lock is taken for.
type Work string

// The kinds of work.
const (
	BackingUp Work = "backup" // may take hours
	Pruning   Work = "prune"  // takes seconds, as a rule
)

// isShort says whether it is about to end, as far as can be told: one that says nothing has just begun, or has just ended.
func (h Holder) isShort() bool { return h.PID == 0 || h.Work == Pruning }

// isDead says that it was a process of this host, and is none any more.
func (h Holder) isDead() bool {
	host, err := os.Hostname()
	return err == nil && h.Host == host && h.PID > 0 && errors.Is(unix.Kill(h.PID, 0), unix.ESRCH)
}

// maxClients bounds what a series of killed runs leaves behind.
const maxClients = 64

// Lock is a folder's lock. It ends with the process, however that ends.
type Lock struct {
	file   *os.File
	holder Holder
	dead   []string
}

// pruneWait is for how long a run waits for one that prunes.
const pruneWait = time.Minute

// AwaitLock takes the folder's lock. Where it is held by a run that prunes, or that does not say what it does, AwaitLock calls
// waiting, once, and waits for a minute at most. Otherwise it fails at once with a *LockedError, as it does in the end.
func (f *Folder) AwaitLock(ctx context.Context, work Work, waiting func(*LockedError)) (*Lock, error) {
	return f.awaitLock(ctx, work, pruneWait, waiting)
}

func (f *Folder) awaitLock(ctx context.Context, work Work, wait time.Duration, waiting func(*LockedError)) (*Lock, error) {
	for deadline, told := time.Now().Add(wait), false; ; told = true {
		l, err := f.lock(work)
		var locked *LockedError
		if !errors.As(err, &locked) || !locked.Holder.isShort() || time.Now().After(deadline) {
			return l, err
		}
		if !told {
			waiting(locked)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(lockPoll):
		}
	}
}

// Lock takes the folder's lock, or fails at once with a *LockedError.
func (f *Folder) Lock() (*Lock, error) { return f.lock("") }

func (f *Folder) lock(work Work) (*Lock, error) {
	path := f.StatePath("lock")
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, fmt.Errorf("lock folder: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			holder := awaitHolder(file)
			if holder.isDead() {
				holder = Holder{} // somebody else has it, flock(1) for instance
			}
			return nil, &LockedError{f.Dir, holder}
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	host, _ := os.Hostname() // for people only
	l := &Lock{
		file:   file,
		dead:   readHolder(file).Clients,
		holder: Holder{Host: host, PID: os.Getpid(), Started: time.Now().UTC(), Command: strings.Join(os.Args, " "), Work: work},
	}
	l.holder.Clients = l.dead
	// On a full disk it goes on without saying who it is: what removes points makes room.
	if err := l.write(); err != nil && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		file.Close()
		return nil, err
	}
	return l, nil
}

// DeadClients are RADOS clients of runs that ended and may have left a lock in the cluster: what they hold, nobody
// uses any more.
func (l *Lock) DeadClients() []string { return l.dead }

// Forget drops clients of which it is known that they hold nothing and never will.
func (l *Lock) Forget(clients ...string) {
	l.holder.Clients = slices.DeleteFunc(slices.Clone(l.holder.Clients), func(c string) bool {
		return slices.Contains(clients, c)
	})
}

// AddClient records a RADOS client of this process, on disk, before it is put to use.
func (l *Lock) AddClient(client string) error {
	if slices.Contains(l.holder.Clients, client) {
		return nil
	}
	l.holder.Clients = append(slices.Clone(l.holder.Clients), client)
	if excess := len(l.holder.Clients) - maxClients; excess > 0 {
		l.holder.Clients = l.holder.Clients[excess:]
	}
	return l.write()
}

// Unlock ends the lock and what it says, unless there are clients in it for the next run to look after.
func (l *Lock) Unlock() error {
	if len(l.holder.Clients) > 0 {
		return errors.Join(l.write(), l.file.Close())
	}
	return errors.Join(l.file.Truncate(0), l.file.Close())
}

func (l *Lock) write() error {
	b, err := json.Marshal(&l.holder)
	if err != nil {
		return err
	}
	if _, err := l.file.WriteAt(b, 0); err != nil {
		return fmt.Errorf("write lock file: %w", err)
	}
	if err := l.file.Truncate(int64(len(b))); err != nil {
		return fmt.Errorf("write lock file: %w", err)
	}
	return l.file.Sync()
}

// readHolder reads as much as there is; a lock file is for reading by people first. Behind the first value may be the
// rest of a longer one, where a run was killed in between.
func readHolder(f *os.File) (h Holder) {
	_ = json.NewDecoder(io.NewSectionReader(f, 0, 64<<10)).Decode(&h)
	return h
}

// awaitHolder reads who has the lock: who has just taken it is about to write that.
func awaitHolder(f *os.File) (h Holder) {
	for range 100 {
		if h = readHolder(f); h.PID != 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return h
}
