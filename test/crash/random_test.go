package crash

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
)

const randomSize = 160 << 20 // bytes of the image; a run takes more than a second

// TestKillAtRandom kills first backups and increments at moments spread evenly over the time that an undisturbed
// run takes.
func TestKillAtRandom(t *testing.T) {
	pool := cephtest.Require(t).Pool(t)
	moments := random(t)
	first := newScene(t, pool, "full", randomSize, overwrite(randomFile(t), randomSize)...)
	second := newScene(t, pool, "increment", randomSize)
	second.checkNext(t)

	t.Run("full", func(t *testing.T) {
		undisturbed := first.timeOfRun(t)
		where := histogram{}
		for range rounds(t) {
			first.startOver(t)
			first.killAfter(t, where, time.Duration(moments.Int64N(int64(undisturbed))))
		}
		t.Logf("undisturbed run %v, killed in %v", undisturbed, where)
	})
	t.Run("increment", func(t *testing.T) {
		second.write(t, overwrite(randomFile(t), randomSize)...)
		undisturbed := second.timeOfRun(t)
		where := histogram{}
		for range rounds(t) {
			second.write(t, overwrite(randomFile(t), randomSize)...)
			second.killAfter(t, where, time.Duration(moments.Int64N(int64(undisturbed))))
		}
		t.Logf("undisturbed run %v, killed in %v", undisturbed, where)
	})
}

// timeOfRun makes a point and says how long the program took.
func (s *scene) timeOfRun(t *testing.T) time.Duration {
	t.Helper()
	p := start(t, s.args())
	p.wait(t)
	elapsed := time.Since(p.started)
	if !p.ProcessState.Success() {
		t.Fatalf("undisturbed run: %v\n%s", p.ProcessState, p.stderr())
	}
	s.checkLeft(t)
	return elapsed
}

// startOver gives the image a new repository, and takes away the snapshot of the old one.
func (s *scene) startOver(t *testing.T) {
	t.Helper()
	for _, name := range s.ownSnapshots(t) {
		s.pool.RemoveSnapshot(t, s.image+"@"+name)
	}
	s.dir, s.points = program.Init(t), map[string]string{}
}

// killAfter kills a backup at a moment, changes the image a little, and checks that run and the next.
func (s *scene) killAfter(t *testing.T, where histogram, moment time.Duration) {
	t.Helper()
	p := start(t, s.args())
	p.signal(t, syscall.SIGKILL, moment)
	p.wait(t)
	appeared := s.checkLeft(t)
	phase := phaseOf(p, len(appeared) > 0)
	where[phase]++
	s.write(t, "write -P 7 1M 10k", "write -z 2M 100k")
	began := time.Now()
	s.checkNext(t)
	t.Logf("killed after %v in %s; next run and its check took %v", moment.Round(time.Millisecond), phase,
		time.Since(began).Round(time.Millisecond))
}

// histogram counts the phases in which kills struck.
type histogram map[string]int

func (h histogram) String() string {
	s := ""
	for _, phase := range []string{"start", "connected", "snapshot", "diff", "copy", "commit", "committed", "done"} {
		s += fmt.Sprintf(" %s:%d", phase, h[phase])
	}
	return s
}

var phaseLine = regexp.MustCompile(`msg=phase .*phase=(\w+)`)

// phaseOf tells from a killed run's log, and from whether its point is there, how far it had come.
func phaseOf(p *process, committed bool) string {
	lines := phaseLine.FindAllStringSubmatch(p.stderr(), -1)
	switch {
	case p.killedBy() == 0:
		return "done"
	case committed:
		return "committed"
	case len(lines) > 0:
		return lines[len(lines)-1][1]
	case len(p.stderr()) > 0:
		return "connected"
	}
	return "start"
}

const randomFileSize = 1 << 20

// randomFile makes a file of a mebibyte that does not compress.
func randomFile(t *testing.T) string {
	t.Helper()
	b := make([]byte, randomFileSize)
	_, _ = rand.Read(b) // never fails
	name := filepath.Join(t.TempDir(), "random")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// overwrite gives the commands of qemu-io that fill an image with the content of a file.
func overwrite(file string, size int64) (commands []string) {
	for off := int64(0); off < size; off += randomFileSize {
		commands = append(commands, fmt.Sprintf("write -q -s %s %d %d", file, off, min(size-off, randomFileSize)))
	}
	return commands
}
