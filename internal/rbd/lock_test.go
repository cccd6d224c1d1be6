package rbd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
)

// childEnv makes the test binary a process that makes snapshots until it is
// killed; its value is "conf user keyring pool imageID".
const childEnv = "RBD_TEST_SNAPSHOT_LOOP"

func TestMain(m *testing.M) {
	if args := strings.Fields(os.Getenv(childEnv)); len(args) == 5 {
		fmt.Fprintln(os.Stderr, snapshotLoop(args))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func snapshotLoop(args []string) error {
	ctx := context.Background()
	c, err := Connect(ctx, Config{ConfFile: args[0], ID: args[1], Keyring: args[2]})
	if err != nil {
		return err
	}
	p, err := c.Pool(ctx, args[3], "")
	if err != nil {
		return err
	}
	client, err := c.SnapshotClient(ctx)
	if err != nil {
		return err
	}
	fmt.Println(client)
	for n := 0; ; n++ {
		name := fmt.Sprintf("%s-%d", client, n)
		if err := p.CreateSnapshot(ctx, args[4], name); err != nil {
			return err
		}
		if err := p.RemoveSnapshot(ctx, args[4], name); err != nil {
			return err
		}
	}
}

// leaveDeadLock kills a process of ours inside a snapshot call and returns its
// RADOS client, which then owns the lock of the image.
func leaveDeadLock(ctx context.Context, t *testing.T, tp *cephtest.Pool, p *Pool, id string) string {
	t.Helper()
	for attempt := range 30 {
		cmd := exec.CommandContext(ctx, os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+strings.Join([]string{tp.Conf, tp.User, tp.Keyring, tp.Name, id}, " "))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		client := strings.TrimSpace(line)
		for {
			owner, err := lockOwner(p.ioctx, id)
			if err != nil {
				t.Fatal(err)
			}
			if owner != nil && owner.client == client {
				break
			}
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		// What the dead process had sent may still be on its way: whether the
		// lock stays can't be polled for.
		for range 2 {
			owner, err := lockOwner(p.ioctx, id)
			if err != nil {
				t.Fatal(err)
			}
			if owner == nil {
				client = ""
			}
			time.Sleep(100 * time.Millisecond)
		}
		if client != "" {
			t.Logf("killed %s inside its call at attempt %d", client, attempt+1)
			return client
		}
	}
	t.Fatal("could not kill a process inside a snapshot call")
	return ""
}

func TestDeadLock(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	ctx, p := connectAs(t, tp)
	tp.CreateImage(t, "vm", 64<<20)
	id := tp.Info(t, "vm").ID
	client := leaveDeadLock(ctx, t, tp, p, id)

	// As long as the dead process seems to watch the image, nothing is broken.
	ours := func(c string) bool { return c == client }
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if broke, err := p.BreakDeadLock(short, id, ours); broke || !errors.Is(err, ErrLocked) {
		t.Errorf("broke %v, %v", broke, err)
	}

	start := time.Now()
	err := p.CreateSnapshot(ctx, id, "refused")
	t.Logf("snapshot beside a dead lock: %v after %v", err, time.Since(start).Round(time.Millisecond))
	var locked *LockedError
	if !errors.Is(err, ErrLocked) || !errors.Is(err, syscall.EROFS) || !errors.As(err, &locked) || locked.Client != client {
		t.Errorf("error %v, want ErrLocked by %s", err, client)
	}

	if broke, err := p.BreakDeadLock(ctx, id, func(string) bool { return false }); broke || err != nil {
		t.Errorf("lock of a stranger: broke %v, %v", broke, err)
	}
	start = time.Now()
	if broke, err := p.BreakDeadLock(ctx, id, ours); !broke || err != nil {
		t.Fatalf("broke %v, %v", broke, err)
	}
	t.Logf("broke the lock after %v", time.Since(start).Round(time.Millisecond))
	start = time.Now()
	if err := p.CreateSnapshot(ctx, id, "granted"); err != nil {
		t.Error(err)
	}
	t.Logf("snapshot after %v", time.Since(start).Round(time.Millisecond))
	if broke, err := p.BreakDeadLock(ctx, id, func(string) bool { return true }); broke || err != nil {
		t.Errorf("without a lock: broke %v, %v", broke, err)
	}
	_, address, _ := strings.Cut(locked.Address, ":") // without the protocol, "v1:"
	if out := tp.Ceph(t, "osd", "blocklist", "ls"); strings.Contains(string(out), address) {
		t.Errorf("the dead client was blocklisted: %s", out)
	}
}

// TestFrozenOwner has a virtual machine's QEMU own the lock and not answer.
func TestFrozenOwner(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	ctx, p := connectAs(t, tp)
	tp.CreateImage(t, "vm", 8<<20)
	id := tp.Info(t, "vm").ID
	vm := exec.CommandContext(ctx, "qemu-io", "-f", "raw", tp.QEMUName("vm"))
	in, err := vm.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = vm.Process.Kill()
		_ = vm.Wait()
	})
	fmt.Fprintln(in, "write -P 1 0 4k")
	var owner *locker
	for owner == nil {
		if owner, err = lockOwner(p.ioctx, id); err != nil {
			t.Fatal(err)
		}
	}
	// A living owner makes the snapshot for us.
	if err := p.CreateSnapshot(ctx, id, "granted"); err != nil {
		t.Error(err)
	}
	if err := vm.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	err = p.CreateSnapshot(ctx, id, "refused")
	var locked *LockedError
	if !errors.As(err, &locked) || locked.Client != owner.client || locked.Image != tp.Spec("vm") {
		t.Errorf("error %v, want ErrLocked by %s", err, owner.client)
	}
	if err := vm.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// The cluster may have given its watch up meanwhile, which it renews by itself.
	for deadline := time.Now().Add(time.Minute); ; {
		err := p.CreateSnapshot(ctx, id, "granted again")
		if err == nil {
			break
		}
		if !errors.Is(err, ErrLocked) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
