// Package progress shows people how far a run is: bars on a terminal, lines of a log everywhere else.
package progress

import (
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"
)

// Reporter is told how far a run is. Its methods, and those of its tasks, are called by several goroutines.
type Reporter interface {
	// Images says how many images there will be. It is the first call.
	Images(n int)
	// Start begins an image.
	Start(image string) Task
}

// Task is the progress of one image.
type Task interface {
	Phase(what string) // "clean-up", "snapshot", "diff", "verify", "copy", "commit"
	// Advance says how far a phase other than the copy is, in bytes or whatever.
	Advance(done, total int64)
	Total(bytes int64) // to be copied
	Add(bytes int64)   // copied
	End()              // the last call
}

// logInterval is how often an image that is being copied gets a line.
const logInterval = 10 * time.Second

// Log reports by way of a logger.
type Log struct{ Logger *slog.Logger }

// Images does nothing: the lines speak for themselves.
func (l Log) Images(int) {}

// Start begins an image.
func (l Log) Start(image string) Task {
	t := &logTask{log: l.Logger.With("image", image), stop: make(chan struct{})}
	t.phase.Store(&phase{})
	go t.tick()
	return t
}

type logTask struct {
	log    *slog.Logger
	phase  atomic.Pointer[phase]
	total  atomic.Int64
	copied atomic.Int64
	once   sync.Once
	stop   chan struct{}
}

func (t *logTask) tick() {
	ticker := time.NewTicker(logInterval)
	defer ticker.Stop()
	start := time.Now()
	for {
		select {
		case <-t.stop:
			return
		case <-ticker.C:
			copied, total := t.copied.Load(), t.total.Load()
			if total == 0 {
				if p := t.phase.Load(); p.percent > 0 {
					t.log.Info("working", "phase", p.name, "percent", p.percent)
				}
				continue
			}
			rate := float64(copied) / time.Since(start).Seconds()
			t.log.Info("copying", "percent", copied*100/total, "copied", Bytes(copied), "total", Bytes(total),
				"rate", Bytes(int64(rate))+"/s", "eta", eta(total-copied, rate))
		}
	}
}

func eta(left int64, rate float64) string {
	if rate < 1 {
		return "unknown"
	}
	return time.Duration(float64(left) / rate * float64(time.Second)).Round(time.Second).String()
}

func (t *logTask) Phase(what string) {
	t.phase.Store(&phase{name: what})
	t.log.Debug("phase", "phase", what)
}

func (t *logTask) Advance(done, total int64) { t.phase.Store(t.phase.Load().advance(done, total)) }
func (t *logTask) Total(bytes int64)         { t.total.Store(bytes) }
func (t *logTask) Add(bytes int64)           { t.copied.Add(bytes) }
func (t *logTask) End()                      { t.once.Do(func() { close(t.stop) }) }

// phase is what a task is at. It never changes: it is replaced by the next one.
type phase struct {
	name    string
	percent int64 // 0: not known
}

// advance gives the same phase at another percentage, at least 1, so that what has begun shows.
func (p *phase) advance(done, total int64) *phase {
	return &phase{p.name, max(1, int64(100*float64(done)/float64(max(total, 1))))}
}

func (p *phase) String() string {
	if p.percent == 0 {
		return p.name
	}
	return fmt.Sprintf("%s %d%%", p.name, p.percent)
}

// Bytes is a size for people.
func Bytes(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
