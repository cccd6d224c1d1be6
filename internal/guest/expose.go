package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// storageDaemon is the part of QEMU that shows a disk, or a partition, as a file, by way of FUSE. It needs neither root nor a
// kernel module for network block devices.
const storageDaemon = "qemu-storage-daemon"

// exposeTime is how long that may take: as long as it takes to open the chain.
const (
	exposeTime = time.Minute
	exposePoll = 5 * time.Millisecond
)

// expose shows a part of an overlay as a raw file that can be written to, until the function is called that it gives. offset and
// length are in bytes; length 0 is all that follows.
func (o *overlay) expose(ctx context.Context, offset, length int64) (file string, hide func(), err error) {
	file = filepath.Join(o.dir, "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return "", nil, fmt.Errorf("expose disk: %w", err)
	}
	part := blockdev{"driver": "raw", "node-name": "part", "file": "overlay", "offset": offset}
	if length > 0 {
		part["size"] = length
	}
	mount := blockdev{
		"type": "fuse", "id": "part", "node-name": "part", "mountpoint": file, "writable": true, "allow-other": "off",
	}
	// Who asks it to end has unmounted first what lies on it, so it outlives ctx.
	daemon, err := command(context.WithoutCancel(ctx), storageDaemon,
		"--blockdev", o.node("overlay"), "--blockdev", part.String(), "--export", mount.String())
	if err != nil {
		return "", nil, fmt.Errorf("expose disk: %w", err)
	}
	daemon.SysProcAttr.Pdeathsig = syscall.SIGTERM // upon which it unmounts
	var said tail
	daemon.Stdout, daemon.Stderr = &said, &said
	if err := daemon.Start(); err != nil {
		return "", nil, fmt.Errorf("expose disk: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = daemon.Wait() // what is of interest it has said
	}()
	hide = func() {
		_ = daemon.Process.Signal(syscall.SIGTERM) // or it has ended
		select {
		case <-ended:
		case <-time.After(stopTime):
			_ = daemon.Process.Kill()
			<-ended
			_ = unix.Unmount(file, unix.MNT_DETACH)
		}
	}
	if err := awaitMount(ctx, file, ended); err != nil {
		hide()
		return "", nil, fmt.Errorf("expose disk: %w", withReason(err, &said))
	}
	return file, hide, nil
}

// awaitMount waits until a file is on another device than the folder that it is in.
func awaitMount(ctx context.Context, file string, ended <-chan struct{}) error {
	var folder, mounted unix.Stat_t
	if err := unix.Stat(filepath.Dir(file), &folder); err != nil {
		return err
	}
	deadline := time.After(exposeTime)
	for {
		if err := unix.Stat(file, &mounted); err == nil && mounted.Dev != folder.Dev {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ended:
			return errors.New(storageDaemon + " has ended")
		case <-deadline:
			return fmt.Errorf("%s is not ready after %s", storageDaemon, exposeTime)
		case <-time.After(exposePoll):
		}
	}
}

// withReason adds what a program that has ended has said last. It names the program itself.
func withReason(err error, said *tail) error {
	if reason := strings.TrimPrefix(lastLine(said.String()), storageDaemon+": "); reason != "" {
		return fmt.Errorf("%w: %s", err, reason)
	}
	return err
}
