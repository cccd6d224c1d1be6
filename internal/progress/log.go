// Package progress shows people how far a run is: bars on a terminal, lines of a log everywhere else.
package progress

import (
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/rbd2qcow2/rbd2qcow2/internal/backup"
)

// logInterval is how often an image that is being copied gets a line.
const logInterval = 10 * time.Second

// Log reports by way of a logger.
type Log struct{ Logger *slog.Logger }

// Images does nothing: the lines speak for themselves.
func (l Log) Images(int) {}

// Start begins an image.
func (l Log) Start(image string) backup.Task {
	t := &logTask{log: l.Logger.With("image", image), stop: make(chan struct{})}
	go t.tick()
	return t
}

type logTask struct {
	log    *slog.Logger
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
				continue
			}
			rate := float64(copied) / time.Since(start).Seconds()
			t.log.Info("copying", "percent", copied*100/total, "copied", bytesText(copied), "total", bytesText(total),
				"rate", bytesText(int64(rate))+"/s", "eta", eta(total-copied, rate))
		}
	}
}

func eta(left int64, rate float64) string {
	if rate < 1 {
		return "unknown"
	}
	return time.Duration(float64(left) / rate * float64(time.Second)).Round(time.Second).String()
}

func (t *logTask) Phase(what string) { t.log.Debug("phase", "phase", what) }
func (t *logTask) Total(bytes int64) { t.total.Store(bytes) }
func (t *logTask) Add(bytes int64)   { t.copied.Add(bytes) }
func (t *logTask) End(r backup.ImageReport) {
	t.once.Do(func() { close(t.stop) })
	logOutcome(t.log, &r)
}

// logOutcome writes the line that remains of an image. The image's name is with the logger.
func logOutcome(log *slog.Logger, r *backup.ImageReport) {
	switch r.Status {
	case backup.Failed:
		log.Error("failed", "error", r.Error)
	case backup.Skipped:
		log.Info("skipped", "reason", r.Reason)
	case backup.Planned:
		log.Info("would be backed up", "method", r.Method, "reason", r.Reason, "read", bytesText(r.ReadBytes))
	case backup.Done:
		for _, p := range r.Points {
			log.Info("done", "point", p.Point, "method", r.Method, "reason", r.Reason, "changed", bytesText(r.DiffBytes),
				"read", bytesText(r.ReadBytes), "stored", bytesText(r.StoredBytes),
				"seconds", fmt.Sprintf("%.1f", r.Seconds))
		}
	}
}

func bytesText(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
