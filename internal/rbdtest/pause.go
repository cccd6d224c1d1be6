package rbdtest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"syscall"
	"time"
)

// Paused is an rbd program that was stopped in the middle.
type Paused struct {
	cmd   *exec.Cmd
	ended chan error
}

// PauseAt runs the rbd program on the image, which is closed until [Paused.Resume], and stops it as soon as librbd logs a
// phrase.
func (i *Image) PauseAt(phrase string, verb ...string) (*Paused, error) {
	if err := i.Close(); err != nil {
		return nil, err
	}
	args := []string{"--conf", i.pool.Conf, "--debug-rbd=20", "--log-file=", "--log-to-stderr=true"}
	cmd := exec.Command("rbd", append(args, verb...)...)
	log, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &Paused{cmd: cmd, ended: make(chan error, 1)}
	reached := make(chan error, 1)
	go func() {
		lines := bufio.NewScanner(log)
		for seen := false; lines.Scan(); {
			if !seen && bytes.Contains(lines.Bytes(), []byte(phrase)) {
				seen = true
				reached <- cmd.Process.Signal(syscall.SIGSTOP)
			}
		}
		p.ended <- cmd.Wait()
	}()
	select {
	case err := <-reached:
		return p, err
	case err := <-p.ended:
		return nil, fmt.Errorf("rbd %v ended without logging %q: %w", verb, phrase, err)
	case <-time.After(time.Minute):
		return nil, errors.Join(fmt.Errorf("rbd %v does not log %q", verb, phrase), cmd.Process.Kill())
	}
}

// Resume lets the program go on and waits for its end.
func (p *Paused) Resume() error {
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		return err
	}
	return <-p.ended
}
