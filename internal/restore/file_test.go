package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rbd2qcow2/rbd2qcow2/internal/compress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// someone is neither root nor who runs the tests.
const someone = 12345

// rights are mode, owner and group of a file, as text.
func rights(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	s := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%v %d:%d", info.Mode(), s.Uid, s.Gid)
}

// put makes a file.
func put(t *testing.T, path string, mode fs.FileMode) {
	t.Helper()
	if err := errors.Join(os.WriteFile(path, []byte("old"), 0o600), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
}

// overwriteFile restores an empty disk over a file.
func overwriteFile(ctx context.Context, path string) error {
	f, err := CreateRaw(path, 1<<20, true)
	if err == nil {
		err = f.Finish(ctx)
	}
	if err != nil {
		return err
	}
	if info, err := os.Stat(path); err != nil || info.Size() != 1<<20 {
		return fmt.Errorf("not overwritten: %v, %w", info, err)
	}
	return nil
}

// TestOverwriteKeepsRights: the new file is whose the old one was, with the same mode.
func TestOverwriteKeepsRights(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "disk")
	put(t, path, 0o640)
	if os.Geteuid() == 0 { // others can only have what is theirs already
		if err := os.Chown(path, someone, someone+1); err != nil {
			t.Fatal(err)
		}
	}
	before := rights(t, path)
	if err := overwriteFile(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if after := rights(t, path); after != before {
		t.Errorf("now %s, before %s", after, before)
	}
}

// TestOverwriteOfOthers: who may not give files away gets his own, and no group more rights than everybody has.
func TestOverwriteOfOthers(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		qemutest.Missing(t, "to become somebody else needs root")
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	put(t, path, 0o664)
	if err := errors.Join(os.Chown(path, 0, someone+1), os.Chmod(dir, 0o777), os.Chmod(filepath.Dir(dir), 0o755)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread, which is somebody else, ends with the goroutine
		err := errors.Join(unix.Setfsgid(someone), unix.Setfsuid(someone))
		if err == nil {
			err = overwriteFile(t.Context(), path)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got, want := rights(t, path), fmt.Sprintf("-rw-r--r-- %d:%d", someone, someone); got != want {
		t.Errorf("now %s, want %s", got, want)
	}
}

// TestLinks: a link stands for the file behind it, which has to be there.
func TestLinks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, link, lost := filepath.Join(dir, "file"), filepath.Join(dir, "link"), filepath.Join(dir, "lost")
	put(t, file, 0o600)
	if err := errors.Join(os.Symlink("file", link), os.Symlink("nothing", lost)); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateRaw(link, 1, false); !errors.Is(err, fs.ErrExist) {
		t.Errorf("link to a file: %v, want %v", err, fs.ErrExist)
	}
	for _, overwrite := range []bool{false, true} {
		if _, err := CreateRaw(lost, 1, overwrite); err == nil {
			t.Errorf("link to nothing, overwrite %t: no error", overwrite)
		}
	}
	if err := overwriteFile(t.Context(), link); err != nil {
		t.Error(err)
	}
	if to, err := os.Readlink(link); err != nil || to != "file" {
		t.Errorf("the link leads to %q, %v", to, err)
	}
	if info, err := os.Lstat(file); err != nil || !info.Mode().IsRegular() || info.Size() != 1<<20 {
		t.Errorf("behind the link: %v, %v", info, err)
	}
}

// noEncoder is a codec that can't compress.
type noEncoder struct{ qcow2.Codec }

var errNoEncoder = errors.New("no encoder")

func (noEncoder) NewEncoder() (qcow2.Encoder, error) { return nil, errNoEncoder }

// TestNoEncoder: a target that can't be made leaves nothing open.
func TestNoEncoder(t *testing.T) {
	_, codec, err := compress.Parse("zstd")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := CreateQCOW2(filepath.Join(dir, "disk.qcow2"), 1<<20, noEncoder{codec}, false); !errors.Is(err, errNoEncoder) {
		t.Fatalf("error %v, want %v", err, errNoEncoder)
	}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range open {
		if to, _ := os.Readlink("/proc/self/fd/" + fd.Name()); filepath.Dir(to) == dir {
			t.Errorf("%s is still open", to)
		}
	}
}
