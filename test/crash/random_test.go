package crash

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
)

const (
	randomSize  = 96 << 20 // bytes of the image; a run takes about a second
	chainLength = 5        // kills of increments of one chain
)

// TestKillAtRandom kills first backups and increments at moments spread evenly over the time that an undisturbed
// run takes.
func TestKillAtRandom(t *testing.T) {
	pool := cephtest.Require(t).Pool(t)
	moments := random(t)
	n := rounds(t)

	t.Run("full", func(t *testing.T) {
		s := newScene(t, pool, "full", randomSize, overwrite(randomFile(t), randomSize)...)
		undisturbed := s.timeOfRun(t)
		where := histogram{}
		for range n {
			t.Run("", func(t *testing.T) { // which frees the space of its copies
				s.startOver(t)
				s.killAfter(t, where, time.Duration(moments.Int64N(int64(undisturbed))))
			})
		}
		t.Logf("undisturbed run %v, killed in%v", undisturbed.Round(time.Millisecond), where)
	})
	t.Run("increment", func(t *testing.T) {
		s := newScene(t, pool, "increment", randomSize)
		where := histogram{}
		for first := 0; first < n; first += chainLength {
			t.Run("", func(t *testing.T) {
				s.startOver(t)
				s.checkNext(t)
				s.write(t, overwrite(randomFile(t), randomSize)...)
				undisturbed := s.timeOfRun(t)
				for range min(chainLength, n-first) {
					s.write(t, overwrite(randomFile(t), randomSize)...)
					s.killAfter(t, where, time.Duration(moments.Int64N(int64(undisturbed))))
				}
			})
		}
		t.Logf("killed in%v", where)
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

// startOver gives the image a new repository, and takes away the snapshots of the old one.
func (s *scene) startOver(t *testing.T) {
	t.Helper()
	for _, name := range s.ownSnapshots(t) {
		s.pool.RemoveSnapshot(t, s.image+"@"+name)
	}
	s.dir, s.points = program.Init(t), map[string]string{}
	s.current = s.pool.Export(t, s.image)
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

// phaseOf tells where a kill struck: from the log, and from whether the point is there.
func phaseOf(p *process, committed bool) string {
	switch {
	case p.killedBy() == 0:
		return "done"
	case committed:
		return "committed"
	}
	return p.lastPhase()
}

// lastPhase is the last phase that the log of a run names.
func (p *process) lastPhase() string {
	if lines := phaseLine.FindAllStringSubmatch(p.stderr(), -1); len(lines) > 0 {
		return lines[len(lines)-1][1]
	}
	if strings.Contains(p.stderr(), "msg=connected") {
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
