// Package crash kills and interrupts backups and prunes and looks at what they leave: at every named step of
// internal/crashpoint, at random moments, inside a change of snapshots, and by signals. And it cuts the power of the disk that
// prunes work on. A campaign does all that, and whatever else can break, to random histories.
//
// Some environment variables change what "go test" does:
//
//	RBD2QCOW2_CRASH_ROUNDS  kills at random moments, each for full and for incremental backups and for prunes, and power cuts
//	                        on each file system (5; a full run has 20, for prunes 100); twice as many interruptions
//	RBD2QCOW2_CRASH_SEED    the seed of those moments, as a failed run has printed it
//	RBD2QCOW2_CAMPAIGN      how long the campaign takes (2m); go test has to be given a longer -timeout
//	RBD2QCOW2_SEED          the seed of the one life of a campaign that is to be repeated, as a failed run has printed it
//	RBD2QCOW2_CAMPAIGN_KEEP a folder where the repositories of failed lives are kept
package crash

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/programtest"
)

var program programtest.Program

func TestMain(m *testing.M) { os.Exit(programtest.Main(m, &program, "crashtest")) }

// rounds is how often to kill at random.
func rounds(t *testing.T) int { return int(number(t, "RBD2QCOW2_CRASH_ROUNDS", 5)) }

// random gives the source of a test's random moments, and logs its seed.
func random(t *testing.T) *rand.Rand {
	seed := uint64(number(t, "RBD2QCOW2_CRASH_SEED", time.Now().UnixNano()))
	t.Logf("RBD2QCOW2_CRASH_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func number(t *testing.T, variable string, otherwise int64) int64 {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}

// process is a run of the program that is going to be killed or interrupted.
type process struct {
	*exec.Cmd
	log     *watchedLog
	started time.Time
	exited  chan struct{} // closed when it has ended
}

// start starts the program with more environment variables.
func start(t *testing.T, args []string, env ...string) *process {
	t.Helper()
	p := &process{Cmd: program.Command(t.Context(), args...), log: &watchedLog{}, exited: make(chan struct{})}
	p.Env = append(p.Env, env...)
	p.Stderr = p.log
	p.begin(t)
	return p
}

// startWatched starts the program and waits until it has logged a phrase.
func startWatched(t *testing.T, args []string, phrase string) *process {
	t.Helper()
	log := &watchedLog{phrase: phrase, seen: make(chan struct{})}
	p := &process{Cmd: program.Command(t.Context(), args...), log: log, exited: make(chan struct{})}
	p.Stderr = log
	p.begin(t)
	select {
	case <-log.seen:
	case <-p.exited:
		t.Fatalf("%q was not logged\n%s", phrase, p.stderr())
	}
	return p
}

func (p *process) begin(t *testing.T) {
	t.Helper()
	p.started = time.Now()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.Wait() // ProcessState tells
		close(p.exited)
	}()
}

// signal sends a signal after a while. It is fine if the process has ended.
func (p *process) signal(t *testing.T, s os.Signal, after time.Duration) {
	t.Helper()
	select {
	case <-time.After(time.Until(p.started.Add(after))):
	case <-p.exited:
	}
	if err := p.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
}

// wait waits until the process has ended.
func (p *process) wait(t *testing.T) {
	t.Helper()
	select {
	case <-p.exited:
	case <-time.After(time.Minute):
		_ = p.Process.Kill()
		t.Fatalf("%v does not end", p.Args)
	}
}

// killedBy says by which signal the process has ended, 0 if by none.
func (p *process) killedBy() syscall.Signal {
	if status, ok := p.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return status.Signal()
	}
	return 0
}

// stderr is what it has said so far.
func (p *process) stderr() string {
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	return p.log.written.String()
}

// watchedLog collects what is written to it, and tells when there is a phrase in it.
type watchedLog struct {
	phrase string
	seen   chan struct{} // closed then; nil: there is no phrase

	mu      sync.Mutex
	written bytes.Buffer
	found   bool
}

func (l *watchedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.written.Write(p)
	if l.seen != nil && !l.found && bytes.Contains(l.written.Bytes(), []byte(l.phrase)) {
		l.found = true
		close(l.seen)
	}
	return len(p), nil
}
