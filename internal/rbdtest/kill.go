package rbdtest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"time"

	"github.com/ceph/go-ceph/rados"
	librbd "github.com/ceph/go-ceph/rbd"
)

// KillAt runs the rbd program on the image, which is closed meanwhile, and kills it when it says that it has done so many
// percent; 101 lets it end. It works on one object after the other, so that there is a middle. Killed tells whether it was killed,
// by this or by a fault of its own. Afterwards the lock of the dead is broken.
func (i *Image) KillAt(percent int, verb ...string) (killed bool, err error) {
	return i.alone(func() (bool, error) { return i.run(percent, time.Hour, verb) })
}

// KillAfter is [Image.KillAt] with a time.
func (i *Image) KillAfter(d time.Duration, verb ...string) (killed bool, err error) {
	return i.alone(func() (bool, error) { return i.run(101, d, verb) })
}

// Race runs two rbd programs at the same time, the second when the first has the image's lock and has done so many percent, or
// has had some time for it. Two, and not this process, because librbd may abort the one that has the lock. The error is the
// second's. For what happens if the first is still opening the image, see the tests of package changes.
func (i *Image) Race(percent int, after time.Duration, first, second []string) error {
	_, err := i.alone(func() (bool, error) {
		p, progress, err := i.start(first)
		if err != nil {
			return false, err
		}
		reached, ended := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			waitFor(progress, percent)
			close(reached)
			waitFor(progress, 101)
			_ = p.Wait()
		}()
		err = i.waitForLock(ended)
		select {
		case <-time.After(after):
		case <-reached:
		}
		if err != nil {
			return false, err
		}
		_, err = i.run(101, time.Hour, second)
		<-ended
		return false, err
	})
	return err
}

// waitForLock waits until somebody has the image's lock, or ended is closed.
func (i *Image) waitForLock(ended <-chan struct{}) error {
	for {
		lockers, err := i.pool.ioctx.ListLockers("rbd_header."+i.ID, "rbd_lock")
		if err != nil && !errors.Is(err, rados.ErrNotFound) {
			return err
		}
		if err == nil && lockers.NumLockers > 0 {
			return nil
		}
		select {
		case <-ended:
			return nil
		case <-time.After(time.Millisecond):
		}
	}
}

// alone closes the image while do runs.
func (i *Image) alone(do func() (bool, error)) (bool, error) {
	if err := i.Close(); err != nil {
		return false, err
	}
	killed, err := do()
	return killed, errors.Join(err, i.Open(), i.breakLock())
}

func (i *Image) run(percent int, d time.Duration, verb []string) (killed bool, err error) {
	p, progress, err := i.start(verb)
	if err != nil {
		return false, err
	}
	stop := time.AfterFunc(d, func() { _ = p.Process.Kill() })
	defer stop.Stop()
	if waitFor(progress, percent) {
		_ = p.Process.Kill()
	}
	err = p.Wait()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && !exit.Exited() {
		return true, nil
	} else if err != nil {
		return false, fmt.Errorf("rbd %v: %w", verb, err)
	}
	return false, nil
}

func (i *Image) start(verb []string) (*exec.Cmd, *bufio.Scanner, error) {
	p := exec.Command("rbd", append([]string{"--conf", i.pool.Conf, "--rbd-concurrent-management-ops=1"}, verb...)...)
	said, err := p.StderrPipe()
	if err != nil {
		return nil, nil, err
	}
	progress := bufio.NewScanner(said)
	progress.Split(numbers)
	return p, progress, p.Start()
}

// waitFor reads until so many percent are done, or to the end.
func waitFor(progress *bufio.Scanner, percent int) bool {
	for progress.Scan() {
		if done, err := strconv.Atoi(progress.Text()); err == nil && percent <= 100 && done >= percent {
			return true
		}
	}
	return false
}

// breakLock breaks the lock of an owner that was killed, and blocklists it, so that nothing that it sent comes late.
func (i *Image) breakLock() error {
	owners, err := i.LockGetOwners()
	if errors.Is(err, librbd.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	for _, owner := range owners {
		if err := i.LockBreak(owner.Mode, owner.Owner); err != nil && !errors.Is(err, librbd.ErrNotFound) {
			return err
		}
	}
	return nil
}

// numbers splits into runs of digits.
func numbers(data []byte, atEOF bool) (advance int, token []byte, err error) {
	digit := func(r rune) bool { return r >= '0' && r <= '9' }
	start := bytes.IndexFunc(data, digit)
	if start < 0 {
		return len(data), nil, nil
	}
	n := bytes.IndexFunc(data[start:], func(r rune) bool { return !digit(r) })
	switch {
	case n >= 0:
		return start + n, data[start : start+n], nil
	case atEOF:
		return len(data), data[start:], nil
	}
	return start, nil, nil
}
