package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const launcher = "test/cluster/ceph-cluster"

// lab is a cluster, a place to write to, and what has been measured so far.
type lab struct {
	scale
	quick     bool
	program   string // absolute
	folder    string // of the results
	disk      string // temporary folder of the cluster
	target    string // temporary folder where contestants write
	env       []string
	raw       *os.File
	runs      runs
	notes     []string
	facts     facts
	network   *farNetwork
	inside    bool // of the far network are the runs from now on
	latencyMS int  // that it adds, in milliseconds
	series    map[string]*series
}

// newLab starts the cluster. The caller closes the lab.
func newLab(ctx context.Context, o options, folder string) (l *lab, err error) {
	raw, err := os.Create(filepath.Join(folder, "runs.jsonl"))
	if err != nil {
		return nil, fmt.Errorf("keep results: %w", err)
	}
	l = &lab{raw: raw, scale: usual(), quick: o.quick, folder: folder, series: map[string]*series{}}
	if o.quick {
		l.scale = quick()
	}
	if o.rounds > 0 {
		l.rounds, l.farRounds = o.rounds, min(o.rounds, l.farRounds)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if l.program, err = filepath.Abs(o.program); err != nil {
		return l, err
	}
	if err := l.makeFolders(o); err != nil {
		return l, err
	}
	if err := l.startCluster(ctx); err != nil {
		return l, err
	}
	if l.facts, err = l.gather(ctx); err != nil {
		return l, err
	}
	return l, nil
}

func (l *lab) makeFolders(o options) (err error) {
	for _, f := range []struct {
		parent string
		made   *string
	}{{o.dir, &l.disk}, {o.target, &l.target}} {
		if *f.made, err = os.MkdirTemp(f.parent, "rbd2qcow2-bench-"); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
		if *f.made, err = filepath.Abs(*f.made); err != nil {
			return err
		}
	}
	if fileSystem(l.disk) == "tmpfs" {
		return fmt.Errorf("%s is in memory: a cluster there says nothing of real ones; name another folder by -dir", o.dir)
	}
	return nil
}

func (l *lab) cluster() string { return filepath.Join(l.disk, "ceph") }

func (l *lab) startCluster(ctx context.Context) error {
	l.say("start a cluster in %s", l.cluster())
	if err := l.do(ctx, launcher, "--store", "bluestore", "--size", "24G", "start", l.cluster()); err != nil {
		return err
	}
	l.env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "CEPH_") })
	l.env = append(l.env, "CEPH_CONF="+filepath.Join(l.cluster(), "ceph.conf"))
	return nil
}

// Close stops the cluster and removes all but the results.
func (l *lab) Close() (err error) {
	if l.network != nil {
		l.network.Close()
	}
	if _, e := os.Stat(filepath.Join(l.cluster(), "ceph.conf")); l.disk != "" && e == nil {
		l.say("stop the cluster")
		// Also when interrupted.
		err = l.do(context.Background(), launcher, "stop", l.cluster())
	}
	for _, folder := range []string{l.disk, l.target} {
		if folder != "" {
			err = errors.Join(err, os.RemoveAll(folder))
		}
	}
	return errors.Join(err, l.raw.Close())
}

func (l *lab) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}

// note says what a reader of the table has to know.
func (l *lab) note(format string, args ...any) {
	note := fmt.Sprintf(format, args...)
	if !slices.Contains(l.notes, note) {
		l.notes = append(l.notes, note)
		l.say("NOTE: %s", note)
	}
}

// command is a process group of its own: Ctrl-C at a terminal is for us, and ends it by way of ctx.
func (l *lab) command(ctx context.Context, argv ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Env = l.env
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return unix.Kill(-c.Process.Pid, unix.SIGTERM) }
	c.WaitDelay = 10 * time.Second
	return c
}

// do runs a command that is not measured.
func (l *lab) do(ctx context.Context, argv ...string) error { return l.feed(ctx, nil, argv...) }

// feed is do with a standard input.
func (l *lab) feed(ctx context.Context, input io.Reader, argv ...string) error {
	c := l.command(ctx, argv...)
	c.Stdin = input
	if said, err := c.CombinedOutput(); err != nil {
		return failure(ctx, argv, err, said)
	}
	return nil
}

// output runs a command that is not measured and returns its standard output.
func (l *lab) output(ctx context.Context, argv ...string) ([]byte, error) {
	var said bytes.Buffer
	c := l.command(ctx, argv...)
	c.Stderr = &said
	out, err := c.Output()
	if err != nil {
		return nil, failure(ctx, argv, err, said.Bytes())
	}
	return out, nil
}

// failure names a command that has failed, and ends with what it said.
func failure(ctx context.Context, argv []string, err error, said ...[]byte) error {
	var ends []byte
	for _, s := range said {
		ends = append(ends, tail(s)...)
	}
	return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), errors.Join(context.Cause(ctx), err), ends)
}

// tail is the end of what a program said.
func tail(said []byte) []byte {
	said = bytes.TrimSpace(said)
	return said[max(0, len(said)-1000):]
}
