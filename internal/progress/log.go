// Package progress shows people how far a run is: bars on a terminal, lines of a log everywhere else.
package progress

import (
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
	// Searched says how far the search for changes is, in bytes of the disk.
	Searched(done, total int64)
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
	go t.tick()
	return t
}

type logTask struct {
	log    *slog.Logger
	search atomic.Int64 // percent
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
				if percent := t.search.Load(); percent > 0 {
					t.log.Info("finding changes", "percent", percent)
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

func (t *logTask) Phase(what string)          { t.log.Debug("phase", "phase", what) }
func (t *logTask) Searched(done, total int64) { t.search.Store(percent(done, total)) }
func (t *logTask) Total(bytes int64)          { t.total.Store(bytes) }
func (t *logTask) Add(bytes int64)            { t.copied.Add(bytes) }
func (t *logTask) End()                       { t.once.Do(func() { close(t.stop) }) }

// percent is at least 1, so that what has begun shows.
func percent(done, total int64) int64 { return max(1, int64(100*float64(done)/float64(max(total, 1)))) }

// Bytes is a size for people.
func Bytes(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
