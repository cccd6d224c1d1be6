package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// contestant is one way to do a work.
type contestant struct {
	name    string
	before  func(context.Context) error // prepares a run; not measured
	command func() []string
	file    func() (string, error)      // what a run has written, if its size matters
	after   func(context.Context) error // cleans up; not measured
}

// run is what one run of a contestant gave. All runs are kept, one JSON object per line.
type run struct {
	Workload   string    `json:"workload"`
	Contestant string    `json:"contestant"`
	LatencyMS  int       `json:"latency_ms"` // added to each operation on the cluster
	Round      int       `json:"round"`
	Started    time.Time `json:"started"`
	Seconds    float64   `json:"seconds"`
	CPUSeconds float64   `json:"cpu_seconds"` // of all threads, not of the cluster
	PeakBytes  int64     `json:"peak_bytes"`  // of resident memory
	Apparent   int64     `json:"apparent_bytes"`
	Allocated  int64     `json:"allocated_bytes"`
	Changed    int64     `json:"changed_bytes"` // what was written to the image before; 0 if everything is new
	Command    []string  `json:"command"`
	Report     *report   `json:"report,omitempty"`
}

// report is what our program says of an image in "backup --json" or "prune --json" (docs/json.md).
type report struct {
	Status  string `json:"status"`
	Method  string `json:"method,omitempty"`
	Reason  string `json:"reason,omitempty"`
	Diff    int64  `json:"diff_bytes,omitempty"`
	Read    int64  `json:"read_bytes,omitempty"`
	Stored  int64  `json:"stored_bytes,omitempty"`
	Written int64  `json:"written_bytes,omitempty"`
	Freed   int64  `json:"freed_bytes,omitempty"`
	Removed int    `json:"removed,omitempty"`
}

// compare runs the contestants in turn, for some rounds. change, if any, is called before each round; it returns the bytes changed.
func (l *lab) compare(ctx context.Context, workload string, rounds int, change func(context.Context) (int64, error), all ...contestant) error {
	for round := range rounds {
		var changed int64
		if change != nil {
			var err error
			if changed, err = change(ctx); err != nil {
				return err
			}
		}
		for _, c := range all {
			r, err := l.measure(ctx, c)
			if err != nil {
				return fmt.Errorf("%s: %s: %w", workload, c.name, err)
			}
			r.Workload, r.Round, r.Changed = workload, round, changed
			if c.name == oursAuto && r.Report.Method != "narrowed" {
				l.note("%s: %s found the changes by method %q: %s", workload, c.name, r.Report.Method, r.Report.Reason)
			}
			if err := l.keep(r); err != nil {
				return err
			}
			l.say("%-14s %2d ms  %d/%d  %-22s %7.2f s  %5.0f MiB memory", workload, r.LatencyMS, round+1, rounds, c.name,
				r.Seconds, float64(r.PeakBytes)/(1<<20))
		}
	}
	return nil
}

func (l *lab) measure(ctx context.Context, c contestant) (r run, err error) {
	if c.before != nil {
		if err := c.before(ctx); err != nil {
			return r, err
		}
	}
	r, err = l.time(ctx, c.command())
	if err != nil {
		return r, err
	}
	r.Contestant = c.name
	if c.file != nil {
		name, err := c.file()
		if err != nil {
			return r, err
		}
		if r.Apparent, r.Allocated, err = sizes(name); err != nil {
			return r, err
		}
	}
	if c.after != nil {
		err = c.after(ctx)
	}
	return r, err
}

// time runs a command, behind the latency if there is one.
func (l *lab) time(ctx context.Context, argv []string) (run, error) {
	var out, said bytes.Buffer
	c := l.command(ctx, argv...)
	c.Stderr = &said
	if argv[0] == l.program {
		c.Stdout = &out
	}
	r := run{LatencyMS: l.latencyMS, Started: time.Now().UTC(), Command: argv}
	start := time.Now()
	err := l.start(c.Start)
	if err == nil {
		err = c.Wait()
	}
	r.Seconds = time.Since(start).Seconds()
	if err != nil {
		return r, failure(ctx, argv, err, out.Bytes(), said.Bytes())
	}
	usage, ok := c.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return r, errors.New("no resource usage on this system")
	}
	r.PeakBytes = usage.Maxrss << 10
	r.CPUSeconds = (c.ProcessState.UserTime() + c.ProcessState.SystemTime()).Seconds()
	if argv[0] == l.program && (argv[1] == "backup" || argv[1] == "prune") {
		r.Report, err = parseReport(out.Bytes())
	}
	return r, err
}

func (l *lab) start(start func() error) (err error) {
	if !l.inside {
		return start()
	}
	l.network.do(func() { err = start() })
	return err
}

func parseReport(out []byte) (*report, error) {
	var all struct {
		Images []report `json:"images"`
	}
	if err := json.Unmarshal(out, &all); err != nil {
		return nil, fmt.Errorf("read report: %w", err)
	}
	if len(all.Images) != 1 || all.Images[0].Status != "done" {
		return nil, fmt.Errorf("read report: want one image that is done, got %s", tail(out))
	}
	return &all.Images[0], nil
}

func (l *lab) keep(r run) error {
	l.runs = append(l.runs, r)
	line, err := json.Marshal(r)
	if err == nil {
		_, err = l.raw.Write(append(line, '\n'))
	}
	if err != nil {
		return fmt.Errorf("keep result: %w", err)
	}
	return nil
}

// sizes returns the apparent and the allocated size of a file.
func sizes(name string) (apparent, allocated int64, err error) {
	info, err := os.Stat(name)
	if err != nil {
		return 0, 0, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, fmt.Errorf("stat %s: no block count", name)
	}
	return info.Size(), stat.Blocks * 512, nil
}

// newest returns the newest point of an image. Names of points sort by time.
func newest(repository, image string) (string, error) {
	points, err := filepath.Glob(filepath.Join(repository, image, "*.qcow2"))
	if err == nil && len(points) == 0 {
		err = &fs.PathError{Op: "find point", Path: repository, Err: fs.ErrNotExist}
	}
	if err != nil {
		return "", err
	}
	return points[len(points)-1], nil
}
