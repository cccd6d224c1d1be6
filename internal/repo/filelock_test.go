package repo

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
)

// mustLockPoints locks points for the length of a test, or until the lock is closed.
func mustLockPoints(t *testing.T, f *Folder, names ...PointName) *PointLock {
	t.Helper()
	l, err := f.LockPoints(names...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func wantInUse(t *testing.T, f *Folder, used PointName, names ...PointName) {
	t.Helper()
	l, err := f.LockPoints(names...)
	var inUse *InUseError
	if !errors.As(err, &inUse) || inUse.Path != f.Path(used) {
		t.Errorf("lock of %v while %s is in use: %v", names, used, err)
	}
	if err == nil {
		_ = l.Close()
	}
}

func TestLockPointsAndReaders(t *testing.T) {
	s := newScene(t, 3)
	chain, err := s.OpenChain(s.t.Context(), s.points[1])
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.OpenProvedChain(s.t.Context(), s.points[1]) // readers share
	if err != nil {
		t.Fatal(err)
	}
	wantInUse(t, s.Folder, s.points[1], s.points[2], s.points[1])
	_ = mustLockPoints(t, s.Folder, s.points[2]).Close() // the failed attempt has left no lock
	_ = chain.Close()
	wantInUse(t, s.Folder, s.points[0], s.points[0])
	_ = second.Close()

	l := mustLockPoints(t, s.Folder, s.points[0], s.points[1])
	wantInUse(t, s.Folder, s.points[1], s.points[1])
	if f, err := openShared(s.t.Context(), s.Path(s.points[0]), time.Now()); err == nil || !strings.Contains(err.Error(), "another run") {
		t.Errorf("opened a locked file: %v, %v", f, err)
	}
	own, err := s.OpenLockedChain(s.t.Context(), s.points[2], l)
	if err != nil {
		t.Fatal(err)
	}
	if len(own.Points) != 3 || len(own.files) != 1 {
		t.Errorf("chain of %d points and %d files of its own", len(own.Points), len(own.files))
	}
	_ = own.Close()
	if _, err := l.File(s.points[0]).Stat(); err != nil {
		t.Errorf("the chain has closed the lock's file: %v", err)
	}
}

// TestReaderWaits has a reader wait for a fold that gives the file's name to another one.
func TestReaderWaits(t *testing.T) {
	s := newScene(t, 2)
	l := mustLockPoints(t, s.Folder, s.points...)
	type opened struct {
		chain *Chain
		err   error
	}
	done := make(chan opened)
	go func() {
		chain, err := s.OpenChain(s.t.Context(), s.points[1])
		done <- opened{chain, err}
	}()
	select {
	case o := <-done:
		t.Fatalf("a reader did not wait: %v", o.err)
	case <-time.After(3 * lockPoll):
	}
	content, err := os.ReadFile(s.Path(s.points[1]))
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(s.Dir, "other")
	if err := errors.Join(os.WriteFile(other, content, 0o440), os.Rename(other, s.Path(s.points[1]))); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	o := <-done
	if o.err != nil {
		t.Fatal(o.err)
	}
	defer func() { _ = o.chain.Close() }()
	if !isNamed(s.Path(s.points[1]), o.chain.files[0]) {
		t.Error("the reader has the file that was replaced")
	}
}

func TestLockPointsAndQEMU(t *testing.T) {
	qemutest.Require(t, "qemu-io", "qemu-img")
	s := newScene(t, 2)
	file := s.Path(s.points[1])
	for name, args := range map[string][]string{
		"reading": {"-r", "-f", "qcow2", file}, "reading without locks for itself": {"-r", "-U", "-f", "qcow2", file},
		"writing": {"-f", "qcow2", file},
	} {
		t.Run(name, func(t *testing.T) {
			stop := startQEMU(t, args...)
			wantInUse(t, s.Folder, s.points[1], s.points[1])
			wantInUse(t, s.Folder, s.points[0], s.points[0]) // as a backing file
			stop()
			_ = mustLockPoints(t, s.Folder, s.points...).Close()
		})
	}
	l := mustLockPoints(t, s.Folder, s.points[0])
	if _, err := qemutest.Try("qemu-img", "map", "-f", "qcow2", file); err == nil || !strings.Contains(err.Error(), "lock") {
		t.Errorf("qemu-img reads what is locked: %v", err)
	}
	_ = l.Close()

	// QEMU reads beside our readers, and does not write.
	chain, err := s.OpenChain(s.t.Context(), s.points[1])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = chain.Close() }()
	qemutest.Run(t, "qemu-img", "map", "-f", "qcow2", file)
	if _, err := qemutest.Try("qemu-io", "-f", "qcow2", "-c", "write 0 4k", file); err == nil {
		t.Error("qemu-io writes what we read")
	}
}

// startQEMU has qemu-io open a file until stop is called.
func startQEMU(t *testing.T, args ...string) (stop func()) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "qemu-io", args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("read 0 512\n")); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan() && !strings.Contains(lines.Text(), "read 512/512"); {
	}
	return func() {
		_ = in.Close()
		_ = cmd.Wait()
	}
}

// TestOpenWritableAsUser opens a point's file for writing without being root.
func TestOpenWritableAsUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("run as a user: nothing to pretend")
	}
	dir, err := os.MkdirTemp("", "repo") // t.TempDir lies in a directory that only its owner may enter
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path := filepath.Join(dir, "point")
	if err := os.WriteFile(path, nil, pointMode); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		const nobody = 65534
		if err := errors.Join(os.Chown(path, nobody, nobody), os.Chmod(dir, 0o755)); err != nil {
			t.Fatal(err)
		}
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		_ = unix.Setfsuid(nobody)
		defer func() { _ = unix.Setfsuid(0) }()
	}
	if file, err := os.OpenFile(path, os.O_RDWR, 0); err == nil {
		file.Close()
		t.Fatal("the file is writable as it is")
	}
	file, err := openExclusive(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteString("content"); err != nil {
		t.Error(err)
	}
	if info, err := file.Stat(); err != nil || info.Mode().Perm() != pointMode {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}
