package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd2qcow2/rbd2qcow2/internal/crashpoint"
)

// strike is what an adversary does in a round.
type strike struct {
	name     string
	harmless bool                           // all runs have to succeed
	signal   syscall.Signal                 // that ends runs
	dir      string                         // where the runs find the repository; "": where it is
	env      []string                       // of the runs
	alone    bool                           // one run at a time
	before   func(t *testing.T)             // before they start
	during   func(t *testing.T, runs []*op) // while they are at work
	after    func(t *testing.T)             // when they have ended
}

// pickStrike chooses an adversary.
func (l *life) pickStrike(t *testing.T) *strike {
	strikes := []struct {
		weight int
		make   func(t *testing.T) *strike
	}{
		{2, func(*testing.T) *strike { return &strike{name: "none", harmless: true} }},
		{5, l.signalStrike},
		{4, l.stepStrike},
		{2, l.freezeStrike},
		{1, l.restartStrike},
		{2, l.blocklistStrike},
		{1, l.quotaStrike},
		{2, l.fullDiskStrike},
		{3, l.clockStrike},
		{4, l.behindStrike},
		{6, l.damageStrike},
		{4, l.ioErrorStrike},
	}
	total := 0
	for _, s := range strikes {
		total += s.weight
	}
	at := l.rng.IntN(total)
	for _, s := range strikes {
		if at -= s.weight; at < 0 {
			return s.make(t)
		}
	}
	return nil
}

// moment is when something strikes, after the start of a run.
func (l *life) moment() time.Duration {
	return time.Duration(l.rng.Int64N(int64(600 * time.Millisecond)))
}

// runOps runs the program once or twice while an adversary strikes.
func (l *life) runOps(t *testing.T, s *strike) {
	dir := l.dir
	if s.dir != "" {
		dir = s.dir
	}
	ops := []*op{l.pickOp(t, dir)}
	if !s.alone && l.chance(3) {
		second := l.pickOp(t, dir)
		if second.image != nil && second.image == ops[0].image {
			second = l.backupOp(dir)
		}
		ops = append(ops, second)
	}
	if s.before != nil {
		s.before(t)
	}
	for i, o := range ops {
		if i > 0 {
			time.Sleep(l.moment() / 3)
		}
		l.start(t, o, s.env...)
	}
	if s.during != nil {
		s.during(t, ops)
	}
	for _, o := range ops {
		l.finish(t, o)
	}
	if s.after != nil {
		s.after(t)
	}
	s.harmless = s.harmless && len(ops) == 1
	for _, o := range ops {
		l.checkExit(t, o, s)
		l.checkTarget(t, o)
	}
}

// at waits for a moment after the start of a run.
func (o *op) at(moment time.Duration) {
	select {
	case <-time.After(time.Until(o.started.Add(moment))):
	case <-o.exited:
	}
}

func (l *life) signalStrike(*testing.T) *strike {
	signal := pick(l, syscall.SIGKILL, syscall.SIGKILL, syscall.SIGTERM, syscall.SIGINT)
	moment := l.moment()
	return &strike{name: signal.String(), signal: signal, during: func(t *testing.T, runs []*op) {
		for _, o := range runs {
			o.signal(t, signal, moment)
			l.tally["signal "+signal.String()]++
		}
	}}
}

func (l *life) stepStrike(*testing.T) *strike {
	steps := crashpoint.BackupSteps()[3:]
	if l.chance(3) {
		steps = crashpoint.FoldSteps()
	}
	return &strike{name: "killed at a step", signal: syscall.SIGKILL, env: []string{"RBD2QCOW2_CRASH_AT=" + pick(l, steps...)}}
}

// freezeStrike stops a daemon as a dying disk or switch would, for less or for more than the program waits.
func (l *life) freezeStrike(*testing.T) *strike {
	daemon := pick(l, "osd.0", "mon.a")
	moment, length := l.moment(), time.Duration(l.rng.Int64N(int64(9*time.Second)))
	return &strike{name: "freeze " + daemon, during: func(t *testing.T, runs []*op) {
		runs[0].at(moment)
		l.cluster.kill(t, daemon, syscall.SIGSTOP)
		defer l.cluster.kill(t, daemon, syscall.SIGCONT)
		l.say("%s stopped for %v", daemon, length)
		time.Sleep(length)
	}}
}

func (l *life) restartStrike(*testing.T) *strike {
	moment := l.moment()
	return &strike{
		name: "kill osd.0",
		during: func(t *testing.T, runs []*op) {
			runs[0].at(moment)
			l.cluster.kill(t, "osd.0", syscall.SIGKILL)
			l.cluster.restartOSD(t)
		},
	}
}

// blocklistStrike bans the first run's client, which it stops for that, lest it be done before.
func (l *life) blocklistStrike(*testing.T) *strike {
	moment := l.moment()
	return &strike{name: "blocklist", alone: true, during: func(t *testing.T, runs []*op) {
		o := runs[0]
		o.signal(t, syscall.SIGSTOP, moment)
		defer o.signal(t, syscall.SIGCONT, 0)
		for _, user := range []string{l.pool.User, l.user} {
			address, err := l.cluster.addressOf(user)
			if err != nil {
				t.Fatal(err)
			}
			if address != "" {
				l.say("blocklist %s", address)
				l.tally["strike blocklist that met a client"]++
				l.cluster.Ceph(t, "osd", "blocklist", "add", address, "60")
			}
		}
	}}
}

func (l *life) quotaStrike(*testing.T) *strike {
	return &strike{
		name:   "pool full",
		before: func(t *testing.T) { l.cluster.setQuota(t, l.pool.Name, true) },
		after:  func(t *testing.T) { l.cluster.setQuota(t, l.pool.Name, false) },
	}
}

// fullDiskStrike leaves little room on the repository's file system.
func (l *life) fullDiskStrike(*testing.T) *strike {
	ballast := filepath.Join(l.root, "ballast")
	room := l.rng.Int64N(pick[int64](l, 64<<10, 1<<20, 8<<20))
	return &strike{
		name: "disk full",
		before: func(t *testing.T) {
			var s unix.Statfs_t
			if err := unix.Statfs(l.root, &s); err != nil {
				t.Fatal(err)
			}
			size := max(int64(s.Bavail)*s.Bsize-room, 0)
			f, err := os.Create(ballast)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for step := int64(1 << 20); size > 0; { // less than asked where the file system needs some for itself
				if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err == nil {
					return
				}
				size -= step
			}
		},
		after: func(t *testing.T) {
			if err := os.Remove(ballast); err != nil {
				t.Fatal(err)
			}
		},
	}
}

// clockStrike has the clock be wrong, from the beginning or from a moment on.
func (l *life) clockStrike(*testing.T) *strike {
	by := pick(l, -3600, -86400*30, -2, 3600, 86400*3)
	after := pick(l, int64(0), l.moment().Milliseconds())
	env := []string{fmt.Sprintf("RBD2QCOW2_CRASH_CLOCK=%d %d", by, after)}
	name := "clock backwards"
	if by > 0 {
		name = "clock forwards"
	}
	return &strike{name: name, harmless: true, env: env}
}

// behindStrike changes an image while a program is at work on it.
func (l *life) behindStrike(t *testing.T) *strike {
	if len(l.images) == 0 {
		return l.signalStrike(t)
	}
	i, moment := pick(l, l.images...), l.moment()
	s := &strike{alone: true}
	at := func(do func(t *testing.T)) {
		s.during = func(t *testing.T, runs []*op) {
			runs[0].at(moment)
			if i == runs[0].image {
				return // a restore in place: nobody else may use the image
			}
			do(t)
		}
	}
	switch l.rng.IntN(6) {
	case 0, 1:
		s.name = "snapshots removed"
		at(func(t *testing.T) { l.removeOwnSnapshots(t, i) })
	case 2:
		s.name = "written to"
		at(func(t *testing.T) { l.modified[i.id] = true; l.write(t, i) })
	case 3:
		s.name = "resized"
		at(func(t *testing.T) { l.modified[i.id] = true; l.resize(t, i) })
	case 4:
		s.name = "renamed"
		at(func(t *testing.T) { l.rename(t, i) })
	case 5:
		if i.parent || i.clone {
			return l.signalStrike(t)
		}
		s.name = "made anew"
		at(func(t *testing.T) { l.recreateInUse(t, i) })
	}
	return s
}

func (l *life) removeOwnSnapshots(t *testing.T, i *liveImage) {
	prefix := l.repository(t).SnapshotPrefix()
	for _, s := range l.pool.Snapshots(t, i.name) {
		if strings.HasPrefix(s.Name, prefix) {
			l.say("%s: remove snapshot %s", i.name, s.Name)
			if _, err := l.pool.TryRBD("snap", "rm", "--no-progress", l.pool.Spec(i.name+"@"+s.Name)); err != nil {
				l.say("%v", err) // the program was faster
			}
		}
	}
}

// recreateInUse is recreate, unless the program keeps the image from being removed.
func (l *life) recreateInUse(t *testing.T, i *liveImage) {
	l.say("remove %s", i.name)
	for _, args := range [][]string{{"snap", "purge", "--no-progress"}, {"rm", "--no-progress"}} {
		if _, err := l.pool.TryRBD(append(args, l.pool.Spec(i.name))...); err != nil {
			l.say("%v", err)
			i.snapshots = nil
			return
		}
	}
	l.images = slices.DeleteFunc(l.images, func(other *liveImage) bool { return other == i })
	l.create(t, i.name)
}
