package e2e

import (
	"bufio"
	"bytes"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// running is a program under way, whose log is read while it grows.
type running struct {
	*exec.Cmd
	log   *bufio.Scanner
	lines []string // read so far
}

// live starts a live restore, or goes on with one.
func (d *disk) live(t *testing.T, point repo.PointName, image string, more ...string) *running {
	t.Helper()
	return start(t, d.restoreArgs(point, d.target(image), append([]string{"--live", "--verbose"}, more...)...)...)
}

// start starts the program; the test's end kills it.
func start(t *testing.T, args ...string) *running {
	t.Helper()
	c := program.Command(t.Context(), args...)
	c.Stderr = nil
	log, err := c.StderrPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	return &running{Cmd: c, log: bufio.NewScanner(log)}
}

// awaits reads the log until a line has the phrase.
func (r *running) awaits(t *testing.T, phrase string) {
	t.Helper()
	for r.log.Scan() {
		r.lines = append(r.lines, r.log.Text())
		if strings.Contains(r.log.Text(), phrase) {
			return
		}
	}
	_ = r.Wait()
	t.Fatalf("%v ended without saying %q:\n%s", r.Args, phrase, strings.Join(r.lines, "\n"))
}

// ends waits for the end, with that status, and gives the log.
func (r *running) ends(t *testing.T, code int) string {
	t.Helper()
	for r.log.Scan() {
		r.lines = append(r.lines, r.log.Text())
	}
	_ = r.Wait()
	log := strings.Join(r.lines, "\n")
	if got := r.ProcessState.ExitCode(); got != code || strings.Contains(log, "DATA RACE") {
		t.Fatalf("%v: %v, want exit status %d\n%s", r.Args, r.ProcessState, code, log)
	}
	return log
}

func (r *running) signals(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := r.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// guest is a qemu-io that keeps an image open, as a virtual machine would.
type guest struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader

	failed bool // a command, which the exit status tells
}

const prompt = "qemu-io> "

func openGuest(t *testing.T, pool *cephtest.Pool, image string) *guest {
	t.Helper()
	g := &guest{cmd: exec.CommandContext(t.Context(), "qemu-io", "-f", "raw", "-d", "unmap", pool.QEMUName(image))}
	out, err := g.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	g.cmd.Stderr = g.cmd.Stdout
	if g.in, err = g.cmd.StdinPipe(); err == nil {
		err = g.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	g.out = bufio.NewReader(out)
	g.said(t)
	return g
}

// said reads up to the next prompt.
func (g *guest) said(t *testing.T) string {
	t.Helper()
	var b bytes.Buffer
	for !bytes.HasSuffix(b.Bytes(), []byte(prompt)) {
		c, err := g.out.ReadByte()
		if err != nil {
			t.Fatalf("qemu-io: %v\n%s", err, b.String())
		}
		b.WriteByte(c)
	}
	return strings.TrimSuffix(b.String(), prompt)
}

// try runs a command and tells whether it succeeded.
func (g *guest) try(t *testing.T, command string) (string, bool) {
	t.Helper()
	if _, err := io.WriteString(g.in, command+"\n"); err != nil {
		t.Fatal(err)
	}
	said := g.said(t)
	failed := strings.Contains(said, "failed")
	g.failed = g.failed || failed
	return said, !failed
}

func (g *guest) do(t *testing.T, commands ...string) {
	t.Helper()
	for _, c := range commands {
		if said, ok := g.try(t, c); !ok {
			t.Errorf("guest: %s: %s", c, said)
		}
	}
}

func (g *guest) close(t *testing.T) {
	t.Helper()
	if err := g.in.Close(); err != nil {
		t.Error(err)
	}
	if err := g.cmd.Wait(); err != nil && !g.failed {
		t.Errorf("guest: %v", err)
	}
}
