package guest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/verify"
)

// errTimeout is the cause of a context whose time is up.
var errTimeout = errors.New("time is up")

// errCrashed says that QEMU itself has crashed.
var errCrashed = errors.New("it has crashed")

// boot starts a virtual machine on the point and waits until it has come up. The error says why that could not be tried.
func (b *Boot) boot(ctx context.Context, point string) (*verify.Trial, error) {
	if slices.Contains(b.Args, "-accel") {
		return b.bootWith(ctx, point)
	}
	t, err := b.bootWith(ctx, point, "-accel", "kvm", "-accel", "tcg") // QEMU takes the first that it can open
	if errors.Is(err, errCrashed) {
		// As it does where KVM is not all that it says, in some virtual machines.
		t, err = b.bootWith(ctx, point, "-accel", "tcg")
	}
	return t, err
}

// bootWith is boot with more arguments.
func (b *Boot) bootWith(ctx context.Context, point string, more ...string) (*verify.Trial, error) {
	disk, err := newOverlay(ctx, point)
	if err != nil {
		return nil, err
	}
	defer disk.remove()
	working, stop := context.WithTimeoutCause(ctx, b.Timeout, errTimeout)
	defer stop()
	vm, err := command(working, b.QEMU, append(b.args(disk), more...)...)
	if err != nil {
		return nil, err
	}
	var stderr tail
	screen := newConsole(b.Expect)
	vm.Stdout, vm.Stderr = screen, &stderr
	if err := vm.Start(); err != nil {
		return nil, fmt.Errorf("run %s: %w", b.QEMU, err)
	}
	start := time.Now()
	ended := make(chan error, 1)
	go func() { ended <- vm.Wait() }()
	select {
	case <-screen.found:
		stop()
		err = <-ended // it was killed
	case err = <-ended:
	}
	after := time.Since(start).Round(time.Second)
	switch {
	case screen.seen:
		return &verify.Trial{Status: verify.TrialPassed}, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case working.Err() != nil:
		return failedBoot(screen, "its console has not shown %q within %s", b.Expect, b.Timeout), nil
	case err == nil:
		return failedBoot(screen, "the virtual machine has ended after %s, its console has not shown %q", after, b.Expect), nil
	case vm.ProcessState.ExitCode() < 0:
		err = fmt.Errorf("%w: %w", errCrashed, err)
	}
	return nil, fmt.Errorf("run %s: %w: %s", b.QEMU, err, lastLine(stderr.String()))
}

func failedBoot(screen *console, format string, args ...any) *verify.Trial {
	return &verify.Trial{Status: verify.TrialFailed, Message: fmt.Sprintf(format, args...), Console: screen.end()}
}

// args are QEMU's arguments. There is no network: the guest believes to be the original, which may be running.
func (b *Boot) args(disk *overlay) []string {
	args := []string{"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-m", b.Memory, "-cpu", "max", "-blockdev", disk.node("disk")}
	if !slices.ContainsFunc(b.Args, func(arg string) bool { return strings.Contains(arg, "drive=disk") }) {
		args = append(args, "-device", "virtio-blk-pci,drive=disk")
	}
	return append(args, b.Args...) // of options that are given twice QEMU takes the last
}
