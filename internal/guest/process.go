package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// stopTime is how long a program may take to end when it is asked to, before it is killed.
const stopTime = 10 * time.Second

// lookUp finds a program. Those that are for root are not in everybody's PATH.
func lookUp(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil || strings.ContainsRune(name, '/') {
		return path, err
	}
	for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path, nil
		}
	}
	return "", err
}

// command prepares a program that ends when ctx does: killed, by its process id. It has a process group of its own, so that
// Ctrl-C is for this program alone, which then clears away in order. If this one is killed, the kernel kills the other.
func command(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	path, err := lookUp(name)
	if err != nil {
		return nil, err
	}
	c := exec.CommandContext(ctx, path, args...)
	c.Env = append(os.Environ(), "LC_ALL=C")
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	c.WaitDelay = stopTime // for a child of its own that has kept the pipes
	return c, nil
}

// outcome is what a program has left that has run to its end.
type outcome struct {
	code           int    // exit status
	stdout, stderr string // their ends
}

// said gives the last line, of standard error where there is one, fit to be printed.
func (o outcome) said() string {
	if line := lastLine(o.stderr); line != "" {
		return line
	}
	return lastLine(o.stdout)
}

// finding gives the first line that tells something: none that begins like one of the usual ones.
func (o outcome) finding(usual ...string) string {
	for line := range strings.Lines(o.stdout + "\n" + o.stderr) {
		isUsual := slices.ContainsFunc(usual, func(prefix string) bool { return strings.HasPrefix(line, prefix) })
		if line = strings.TrimSpace(line); line != "" && !isUsual {
			return harmless(line)
		}
	}
	return o.said()
}

// run runs a program to its end. An exit status is no error; that it could not run, or was killed, is.
func run(ctx context.Context, name string, args ...string) (outcome, error) {
	c, err := command(ctx, name, args...)
	if err != nil {
		return outcome{}, err
	}
	var stdout, stderr tail
	c.Stdout, c.Stderr = &stdout, &stderr
	err = c.Run()
	o := outcome{c.ProcessState.ExitCode(), stdout.String(), stderr.String()}
	switch {
	case ctx.Err() != nil:
		return o, context.Cause(ctx)
	case o.code >= 0 && errors.As(err, new(*exec.ExitError)):
		return o, nil
	case err != nil:
		return o, fmt.Errorf("run %s: %w", name, err)
	}
	return o, nil
}

// succeed is run for programs that have to exit with 0.
func succeed(ctx context.Context, name string, args ...string) error {
	o, err := run(ctx, name, args...)
	if err == nil && o.code != 0 {
		err = fmt.Errorf("run %s: exit status %d: %s", name, o.code, o.said())
	}
	return err
}

// tail keeps the end of what a program prints.
type tail struct{ end []byte }

// maxTail bounds what is kept, in bytes: far more than all that is read of any program.
const maxTail = 64 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.end = append(t.end, p...)
	if n := len(t.end) - maxTail; n > 0 {
		t.end = append(t.end[:0], t.end[n:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.end) }

// lastLine gives the last line that is not blank, fit to be printed.
func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return harmless(text[strings.LastIndexByte(text, '\n')+1:])
}
