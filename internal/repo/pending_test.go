package repo

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// childEnv makes the test binary a writer that makes a named temporary in the folder it names, and waits to be killed.
const childEnv = "REPO_TEST_WRITER"

func TestMain(m *testing.M) {
	dir := os.Getenv(childEnv)
	if dir == "" {
		os.Exit(m.Run())
	}
	p, err := createNamed(dir, privateMode)
	if err == nil {
		_, err = os.Stdout.WriteString(p.name + "\n")
	}
	if err != nil {
		panic(err)
	}
	time.Sleep(time.Minute)
	p.Discard()
}

func names(t testing.TB, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestPending takes files with and without a name through their life.
func TestPending(t *testing.T) {
	for kind, create := range map[string]func(string, os.FileMode) (*Pending, error){"unnamed": CreatePending, "named": createNamed} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			p, err := create(dir, privateMode)
			if err != nil {
				t.Fatal(err)
			}
			content := []byte("content")
			if _, err := p.Write(content); err != nil {
				t.Fatal(err)
			}
			for _, name := range names(t, dir) {
				if !strings.HasPrefix(name, temporaryPrefix) {
					t.Errorf("file %s before the commit", name)
				}
			}
			made := time.Date(2026, 1, 2, 3, 4, 5, 678_000, time.UTC)
			if err := p.Commit("point", made); err != nil {
				t.Fatal(err)
			}
			p.Discard() // does nothing any more
			if got := names(t, dir); !slices.Equal(got, []string{"point"}) {
				t.Errorf("files %v after the commit", got)
			}
			path := filepath.Join(dir, "point")
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm() != pointMode || !info.ModTime().Equal(made) {
				t.Errorf("mode %v, mtime %v", info.Mode(), info.ModTime())
			}
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
				t.Errorf("content %q, %v", got, err)
			}

			again, err := create(dir, privateMode)
			if err != nil {
				t.Fatal(err)
			}
			if err := again.Commit("point", made); !errors.Is(err, fs.ErrExist) {
				t.Errorf("commit over another file: %v", err)
			}
			again.Discard()
			if got := names(t, dir); !slices.Equal(got, []string{"point"}) {
				t.Errorf("files %v after a refused commit", got)
			}
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
				t.Errorf("a refused commit left %q, %v", got, err)
			}
		})
	}
}

// TestRemoveDeadTemporaries has writers of named temporaries live and be killed.
func TestRemoveDeadTemporaries(t *testing.T) {
	dir := t.TempDir()
	live, err := createNamed(dir, privateMode)
	if err != nil {
		t.Fatal(err)
	}
	defer live.Discard()
	bystander := filepath.Join(dir, "."+temporaryPrefix)
	if err := os.WriteFile(bystander, nil, 0o600); err != nil {
		t.Fatal(err)
	}

	writer := exec.CommandContext(t.Context(), os.Args[0])
	writer.Env = append(os.Environ(), childEnv+"="+dir)
	out, err := writer.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := writer.Start(); err != nil {
		t.Fatal(err)
	}
	var line [4096]byte
	n, err := out.Read(line[:])
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimSpace(string(line[:n]))
	// A writer is killed after Chmod too, and its user need not be root.
	if err := os.Chmod(name, pointMode); err != nil {
		t.Fatal(err)
	}
	if removed, err := removeDeadTemporaries(dir); err != nil || len(removed) > 0 {
		t.Errorf("with both writers alive: removed %v, %v", removed, err)
	}
	_ = writer.Process.Kill()
	_ = writer.Wait()
	if removed, err := removeDeadTemporaries(dir); err != nil || !slices.Equal(removed, []string{filepath.Base(name)}) {
		t.Errorf("after one was killed: removed %v, %v; want %s", removed, err, name)
	}
	want := []string{filepath.Base(bystander), filepath.Base(live.name)}
	slices.Sort(want)
	if got := names(t, dir); !slices.Equal(got, want) {
		t.Errorf("files %v, want %v", got, want)
	}
	if err := live.Commit("point", time.Now()); err != nil {
		t.Errorf("commit of the one alive: %v", err)
	}
}

// TestLinkedTwice is what a kill leaves on a file system that can't rename without replacing.
func TestLinkedTwice(t *testing.T) {
	dir := t.TempDir()
	p, err := createNamed(dir, privateMode)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Link(p.name, filepath.Join(dir, "point")); err != nil {
		t.Fatal(err)
	}
	p.Close()
	if _, err := removeDeadTemporaries(dir); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); !slices.Equal(got, []string{"point"}) {
		t.Errorf("files %v", got)
	}
}
