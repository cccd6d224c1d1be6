package crash

import (
	"bytes"
	"os"
	"syscall"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/crashpoint"
	"github.com/rbd2qcow2/rbd2qcow2/internal/programtest"
)

// TestKillRepair kills the repair of a full point and that of the newest one at every step: its file is the old one or the new one.
func TestKillRepair(t *testing.T) {
	pool := cephtest.Require(t).Pool(t)
	for _, which := range []string{"full", "newest"} {
		for _, step := range []string{crashpoint.Synced, crashpoint.Linked, crashpoint.DirectorySynced} {
			t.Run(which+" "+step, func(t *testing.T) {
				t.Parallel()
				s := newScene(t, pool, which+"-"+step, 24<<20, "write -P 1 64k 6M", "write -P 2 9M 100k")
				for _, command := range []string{"write -P 3 10M 300k", "write -P 4 12M 64k", "write -P 5 1M 64k"} {
					program.Backup(t, pool, s.dir, s.image, "--compress", "none")
					s.checkLeft(t)
					s.write(t, command)
				}
				points := s.visiblePoints(t)
				point, content := points[0], byte(1)
				if which == "newest" {
					point, content = points[2], 4
				}
				s.rot(t, s.file(point), content)
				damaged := read(t, s.file(point))
				p := start(t, s.repairArgs(), "RBD2QCOW2_CRASH_AT="+step)
				p.wait(t)
				if p.killedBy() != syscall.SIGKILL {
					t.Fatalf("step %s was not reached: %v\n%s", step, p.ProcessState, p.stderr())
				}
				if same := bytes.Equal(read(t, s.file(point)), damaged); same != (step == crashpoint.Synced) {
					t.Errorf("killed at %s: the file is the old one: %t", step, same)
				}
				if r := program.Run(t, s.repairArgs()...); r.Code != 0 {
					t.Fatalf("repair: exit status %d\n%s", r.Code, r.Stderr)
				}
				s.checkLeft(t)
				if r := program.Run(t, "verify", s.dir); r.Code != 0 {
					t.Errorf("verify: exit status %d\n%s%s", r.Code, r.Stdout, r.Stderr)
				}
				program.Backup(t, pool, s.dir, s.image)
				s.checkLeft(t)
			})
		}
	}
}

func (s *scene) repairArgs() []string {
	return append([]string{"verify", "--repair", "--source", s.pool.String()}, append(programtest.CephArgs(s.pool), s.dir)...)
}

// rot flips a bit of the first page of these bytes in a file, and leaves its mtime as it is.
func (s *scene) rot(t *testing.T, file string, of byte) {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	b := read(t, file)
	at := bytes.Index(b, bytes.Repeat([]byte{of}, 4096))
	if at < 0 {
		t.Fatalf("%s has no bytes %d", file, of)
	}
	b[at+100] ^= 1
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, info.Mode()); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(file, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
