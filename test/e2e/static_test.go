package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/programtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

// cell is a folder that has the program without Ceph, a repository, and nothing else of what a system has. The program in
// there sees no more: no libraries, no devices, no /proc.
type cell struct {
	dir  string // outside
	repo string // inside
}

// newCell puts the program beside a repository.
func newCell(t *testing.T, d *disk) *cell {
	t.Helper()
	if os.Geteuid() != 0 {
		qemutest.Missing(t, "chroot needs root")
	}
	c := &cell{filepath.Dir(d.dir), "/" + filepath.Base(d.dir)}
	build := exec.CommandContext(t.Context(), "make", "-C", "../..", "build-static", "STATIC="+filepath.Join(c.dir, "rbd2qcow2"))
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the program without Ceph: %v\n%s", err, out)
	}
	return c
}

// command prepares a run of the program in the cell.
func (c *cell) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	run := programtest.Program{Path: "/rbd2qcow2"}.Command(t.Context(), args...)
	run.Env, run.Dir, run.SysProcAttr = []string{}, "/", &syscall.SysProcAttr{Chroot: c.dir}
	return run
}

// run runs the program in the cell.
func (c *cell) run(t *testing.T, args ...string) programtest.Result {
	t.Helper()
	run := c.command(t, args...)
	err := run.Run()
	if run.ProcessState == nil {
		t.Fatalf("run %v: %v", args, err)
	}
	return programtest.Result{
		Code: run.ProcessState.ExitCode(), Stdout: run.Stdout.(*bytes.Buffer).String(), Stderr: run.Stderr.(*bytes.Buffer).String(),
	}
}

// succeed runs the program in the cell. It must succeed.
func (c *cell) succeed(t *testing.T, args ...string) (stdout string) {
	t.Helper()
	r := c.run(t, args...)
	if r.Code != 0 {
		t.Fatalf("%v: exit status %d\n%s", args, r.Code, r.Stderr)
	}
	return r.Stdout
}

// TestStatic lists, restores and serves by the program without Ceph, where there is nothing but the program and a repository.
func TestStatic(t *testing.T) {
	t.Parallel()
	d := newDisk(t, cephtest.Require(t).Pool(t), "vm 1", diskSize+1000)
	var points []status.Point
	for i, compression := range []string{"zstd", "zlib", "none"} {
		d.pool.IO(t, d.image, "write -P "+string(rune('1'+i))+" 3M 1100k", "write -P 9 8388608 1000", "write -z 3M 64k")
		points = append(points, d.backup(t, "--compress", compression).Points...)
	}
	c := newCell(t, d)
	wantStatic(t, filepath.Join(c.dir, "rbd2qcow2"))
	if got, want := c.succeed(t, "list", "--json", c.repo), program.Run(t, "list", "--json", d.dir).Stdout; got != want {
		t.Errorf("list differs:\n%s\n%s", got, want)
	}
	for _, p := range points {
		c.checkRestores(t, d, p)
	}
	c.checkServe(t, d, points)
	c.checkRefusals(t, points[0].Point)
}

// wantStatic fails the test unless a program needs no other file.
func wantStatic(t *testing.T, path string) {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if libraries, err := f.ImportedLibraries(); err != nil || len(libraries) > 0 {
		t.Errorf("the program needs %v (%v)", libraries, err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the program needs a dynamic linker")
		}
	}
}

func (c *cell) checkRestores(t *testing.T, d *disk, p status.Point) {
	t.Helper()
	want, spec := d.truth[p.File], d.folder(p.Point)
	outside := func(file string) string { return filepath.Join(c.dir, file) }
	c.succeed(t, "restore", "--overwrite", c.repo, spec, "/vm.raw")
	wantFile(t, outside("vm.raw"), want)
	for _, compression := range []string{"none", "zlib", "zstd:3"} {
		c.succeed(t, "restore", "--overwrite", "--compress", compression, c.repo, spec, "/vm.qcow2")
		qemutest.Check(t, outside("vm.qcow2"))
		wantFile(t, qemutest.Convert(t, outside("vm.qcow2")), want)
	}
	stream := c.succeed(t, "restore", c.repo, spec, "-")
	if got := (content{int64(len(stream)), sha256.Sum256([]byte(stream))}); got != want {
		t.Errorf("stream of %s is %+v, want %+v", p.File, got, want)
	}
	if entries, err := os.ReadDir(c.dir); err != nil || len(entries) != 4 { // program, repository, and two that were restored
		t.Errorf("the cell has %v (%v)", entries, err)
	}
}

func (c *cell) checkServe(t *testing.T, d *disk, points []status.Point) {
	t.Helper()
	run := c.command(t, "serve", "--listen", "127.0.0.1:0", c.repo)
	run.Stdout = nil
	out, err := run.StdoutPipe()
	if err == nil {
		err = run.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		_ = run.Wait()
		t.Fatalf("serve: %v\n%s", err, run.Stderr)
	}
	s := &httpServer{run, strings.TrimSpace(line)}
	for _, p := range points {
		whole, code := fetch(t, http.DefaultClient, s.disk(p), "")
		if got := (content{int64(len(whole)), sha256.Sum256(whole)}); code != http.StatusOK || got != d.truth[p.File] {
			t.Errorf("%s: status %d, %+v, want %+v", s.disk(p), code, got, d.truth[p.File])
		}
	}
	s.end(t, syscall.SIGTERM)
}

// checkRefusals tries what needs Ceph.
func (c *cell) checkRefusals(t *testing.T, point repo.PointName) {
	t.Helper()
	for _, args := range [][]string{
		{"backup", "--id", "backup", "-c", "ceph.conf", "rbd", c.repo},
		{"restore", c.repo, "vm 1@" + string(point), "rbd:rbd/vm1"},
	} {
		wantComplaint(t, c.run(t, args...), 1, "this program was built without Ceph: ")
	}
	for _, option := range c.missingOptions(t) {
		r := c.run(t, "restore", option+"=1", c.repo, "vm 1@"+string(point), "/vm.other")
		wantComplaint(t, r, 1, "this program was built without Ceph: it can't restore to RBD images ("+option+")")
	}
	for _, args := range [][]string{{"--help"}, {"backup", "--help"}, {"restore", "--help"}, {"version"}} {
		if said := c.succeed(t, args...); !strings.Contains(said, "without Ceph") {
			t.Errorf("%v does not say what is missing:\n%s", args, said)
		}
	}
}

// missingOptions are the options of restore that the program without Ceph has not.
func (c *cell) missingOptions(t *testing.T) (missing []string) {
	t.Helper()
	option := regexp.MustCompile(`(?m)^ +(?:-\w, )?--[\w-]+`)
	options := func(help string) (names []string) {
		for _, line := range option.FindAllString(help, -1) {
			names = append(names, line[strings.Index(line, "--"):])
		}
		return names
	}
	has := options(c.succeed(t, "restore", "--help"))
	missing = slices.DeleteFunc(options(program.Run(t, "restore", "--help").Stdout), func(name string) bool {
		return slices.Contains(has, name)
	})
	if !slices.Contains(missing, "--in-place") || !slices.Contains(missing, "--mon-host") {
		t.Errorf("options that need Ceph: %q", missing)
	}
	return missing
}
