package crash

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/programtest"
)

// maxInterrupted is how long a run may go on after a signal. It is twice the two seconds that are promised, as the
// race detector is slow and other tests run at the same time.
const maxInterrupted = 4 * time.Second

// TestInterrupt interrupts backups of several images at random moments.
func TestInterrupt(t *testing.T) {
	pool := cephtest.Require(t).Pool(t)
	scenes := fullLoad(t, pool)
	dir := scenes[0].dir
	args := programtest.BackupArgs(pool, dir, "--verbose", "--full", "--compress", "zstd")

	// What they shall be like after each interruption: with one point, which is the base.
	undisturbed := start(t, args)
	undisturbed.wait(t)
	duration := time.Since(undisturbed.started)
	for _, s := range scenes {
		s.checkLeft(t)
	}
	moments := random(t)
	longest := time.Duration(0)
	where := histogram{}
	for i := range 2 * rounds(t) {
		signal := []syscall.Signal{syscall.SIGINT, syscall.SIGTERM}[i%2]
		p := start(t, args)
		p.signal(t, signal, time.Duration(moments.Int64N(int64(duration))))
		sent := time.Now()
		p.wait(t)
		took := time.Since(sent)
		longest = max(longest, took)
		where[p.lastPhase()]++
		t.Logf("%v after %v, ended %v later with %v", signal, sent.Sub(p.started).Round(time.Millisecond),
			took.Round(time.Millisecond), p.ProcessState)
		p.checkInterrupted(t, signal)
		if took > maxInterrupted {
			t.Errorf("ended %v after the signal\n%s", took, p.stderr())
		}
		for _, s := range scenes {
			s.checkLeft(t)
			s.checkOneSnapshot(t)
		}
		scenes[0].checkTidy(t)
	}
	t.Logf("undisturbed run %v; ended at most %v after the signal; last phase begun:%v", duration.Round(time.Millisecond),
		longest.Round(time.Millisecond), where)
	for _, s := range scenes {
		s.write(t, "write -P 1 1M 100k")
		s.checkNext(t)
	}
}

// checkInterrupted checks the exit status. A signal may come when all is done, or before the program has begun.
func (p *process) checkInterrupted(t *testing.T, signal syscall.Signal) {
	t.Helper()
	finished := p.ProcessState.Success() && strings.Contains(p.stderr(), "msg=finished")
	early := p.killedBy() == signal && p.stderr() == ""
	if p.ProcessState.ExitCode() != 128+int(signal) && !finished && !early {
		t.Errorf("%v: %v\n%s", signal, p.ProcessState, p.stderr())
	}
}

// checkOneSnapshot fails unless the newest point's snapshot is the only one of ours.
func (s *scene) checkOneSnapshot(t *testing.T) {
	t.Helper()
	points, own := s.visiblePoints(t), s.ownSnapshots(t)
	if len(own) != 1 || !strings.HasSuffix(own[0], "."+points[len(points)-1]) {
		t.Errorf("image %s: snapshots %v, points %v", s.image, own, points)
	}
}

// fullLoad makes four images with content that does not compress and one repository.
func fullLoad(t *testing.T, pool *cephtest.Pool) (scenes []*scene) {
	t.Helper()
	const size = 24 << 20
	for _, image := range []string{"a", "b", "c", "d"} {
		s := newScene(t, pool, image, size, overwrite(randomFile(t), size)...)
		if len(scenes) > 0 {
			s.dir = scenes[0].dir
		}
		scenes = append(scenes, s)
	}
	return scenes
}

// TestSecondSignal sends signals until the run ends: the first asks it to, the next one kills it.
func TestSecondSignal(t *testing.T) {
	pool := cephtest.Require(t).Pool(t)
	scenes := fullLoad(t, pool)
	args := programtest.BackupArgs(pool, scenes[0].dir, "--verbose")
	killed := 0
	for attempt := 0; killed == 0 && attempt < 10; attempt++ {
		p := startWatched(t, args, "phase=copy")
		began := time.Now()
		for ended := false; !ended; {
			_ = p.Process.Signal(os.Interrupt)
			select {
			case <-p.exited:
				ended = true
			case <-time.After(time.Millisecond):
			}
		}
		took := time.Since(began).Round(time.Millisecond)
		t.Logf("ended after %v with %v", took, p.ProcessState)
		if p.killedBy() == syscall.SIGINT {
			killed++
		} else if code := p.ProcessState.ExitCode(); code != 130 {
			t.Errorf("exit status %d", code)
		}
		if took > time.Second {
			t.Errorf("ended after %v of signals", took)
		}
	}
	if killed == 0 {
		t.Error("no second signal has ended a run at once")
	}
	for _, s := range scenes {
		s.checkLeft(t)
	}
	program.Backup(t, pool, scenes[0].dir)
	for _, s := range scenes {
		s.checkLeft(t)
		s.checkOneSnapshot(t)
	}
	scenes[0].checkTidy(t)
}
