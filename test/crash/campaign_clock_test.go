package crash

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/programtest"
)

// clockJump is added to package time of the program that a campaign runs. Go asks the kernel's page for the time, not libc, so that
// nothing can be put between.
const clockJump = `package time

import "syscall"

// clockJump is by how many seconds the clock is wrong from so many nanoseconds after the start on.
var clockJump, clockJumpAfter = func() (seconds, after int64) {
	s, _ := syscall.Getenv("RBD2QCOW2_CRASH_CLOCK")
	for i := range s {
		if s[i] == ' ' {
			n, _ := atoi(s[:i])
			ms, _ := atoi(s[i+1:])
			return int64(n), int64(ms) * 1e6
		}
	}
	return 0, 0
}()

func jump(mono int64) int64 {
	if mono-startNano < clockJumpAfter {
		return 0
	}
	return clockJump
}
`

// buildWithClock builds the program with a clock that jumps by as many seconds as RBD2QCOW2_CRASH_CLOCK says, so many milliseconds
// after the start: "-3600 200".
func buildWithClock(t *testing.T) programtest.Program {
	dir := t.TempDir()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	std := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	text, err := os.ReadFile(filepath.Join(std, "time.go"))
	if err != nil {
		t.Fatal(err)
	}
	const now = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	if strings.Count(string(text), now) != 1 {
		t.Fatalf("this Go has another time.Now")
	}
	files := map[string]string{
		"time.go": strings.Replace(string(text), now, now+"\tsec += jump(mono)\n", 1),
		"jump.go": clockJump,
	}
	replace := map[string]string{}
	for name, text := range files {
		replace[filepath.Join(std, name)] = filepath.Join(dir, name)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	p := programtest.Program{Path: filepath.Join(dir, "rbd2qcow2")}
	build := exec.Command("sh", "-c", `exec go build -race -overlay "$1" -tags "$(scripts/ceph-tag) crashtest" -o "$2" ./cmd/rbd2qcow2`,
		"sh", filepath.Join(dir, "overlay.json"), p.Path)
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the program: %v\n%s", err, out)
	}
	return p
}
