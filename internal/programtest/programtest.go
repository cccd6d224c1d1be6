// Package programtest builds the program and runs it as its users do, for tests only.
package programtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/backup"
	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
)

// Program is a built program.
type Program struct{ Path string }

// Main builds the program with more build tags, runs the tests of a package, and gives the exit status:
//
//	var program programtest.Program
//	func TestMain(m *testing.M) { os.Exit(programtest.Main(m, &program)) }
func Main(m *testing.M, p *Program, tags ...string) int {
	dir, err := os.MkdirTemp("", "rbd2qcow2-test-")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	p.Path = filepath.Join(dir, "rbd2qcow2")
	script := `exec go build -race -tags "$(scripts/ceph-tag) $2" -o "$1" ./cmd/rbd2qcow2`
	build := exec.Command("sh", "-c", script, "sh", p.Path, join(tags))
	build.Dir = moduleRoot()
	if out, err := build.CombinedOutput(); err != nil {
		panic("build the program: " + err.Error() + "\n" + string(out))
	}
	return m.Run()
}

func join(tags []string) string {
	s := ""
	for _, t := range tags {
		s += t + " "
	}
	return s
}

// moduleRoot is the folder with go.mod: tests run in the folder of their package.
func moduleRoot() string {
	dir, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// Result is what a finished run has left.
type Result struct {
	Code           int // exit status; -1: killed by a signal
	Stdout, Stderr string
	Elapsed        time.Duration
}

// Run runs the program to its end, at most for two minutes.
func (p Program) Run(t testing.TB, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	return wait(t, p.Command(ctx, args...))
}

// Command prepares a run with its output collected, for those who start and signal it themselves.
func (p Program) Command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, p.Path, args...)
	c.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0") // or the race detector adds a second to every run
	c.Stdout, c.Stderr = new(bytes.Buffer), new(bytes.Buffer)
	return c
}

func wait(t testing.TB, c *exec.Cmd) Result {
	t.Helper()
	start := time.Now()
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("run %v: %v", c.Args, err)
	}
	return Result{
		Code:    c.ProcessState.ExitCode(),
		Stdout:  c.Stdout.(*bytes.Buffer).String(),
		Stderr:  c.Stderr.(*bytes.Buffer).String(),
		Elapsed: time.Since(start),
	}
}

// BackupArgs are the arguments of a backup of a pool by its least-privileged user.
func BackupArgs(pool *cephtest.Pool, dir string, more ...string) []string {
	args := append([]string{"backup"}, CephArgs(pool)...)
	return append(append(args, pool.String(), dir), more...)
}

// CephArgs are the options by which the program finds the cluster, as the user for backups.
func CephArgs(pool *cephtest.Pool) []string {
	return []string{"--conf", pool.Conf, "--id", pool.User, "--keyring", pool.Keyring, "--timeout", "20s"}
}

// Backup backs up and fails the test unless everything was done. It gives the report that --json prints.
func (p Program) Backup(t testing.TB, pool *cephtest.Pool, dir string, more ...string) backup.Report {
	t.Helper()
	r := p.Run(t, BackupArgs(pool, dir, append([]string{"--json"}, more...)...)...)
	if r.Code != 0 {
		t.Fatalf("backup: exit status %d\n%s", r.Code, r.Stderr)
	}
	return r.Report(t)
}

// Report decodes what backup --json has printed.
func (r Result) Report(t testing.TB) (report backup.Report) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil {
		t.Fatalf("report: %v\n%s\n%s", err, r.Stdout, r.Stderr)
	}
	return report
}

// Init makes a repository in a new folder and gives its path.
func (p Program) Init(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "repository")
	if r := p.Run(t, "init", dir); r.Code != 0 {
		t.Fatalf("init: exit status %d\n%s", r.Code, r.Stderr)
	}
	return dir
}
