package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/backup"
	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/programtest"
)

// complaints are the lines on standard error that are neither the log of what went well nor the hint where help is.
func complaints(r programtest.Result) (lines []string) {
	for line := range strings.Lines(r.Stderr) {
		if !strings.Contains(line, " level=INFO ") && !strings.HasPrefix(line, `"rbd2qcow2 help" lists `) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// wantComplaint fails the test unless a run ended with a status and one line, which says what is wrong.
func wantComplaint(t *testing.T, r programtest.Result, code int, says string) {
	t.Helper()
	if r.Code != code {
		t.Errorf("exit status %d, want %d", r.Code, code)
	}
	if said := complaints(r); len(said) != 1 || !strings.Contains(said[0], says) {
		t.Errorf("said %q, want one line with %q", said, says)
	}
	if r.Stdout != "" {
		t.Errorf("standard output: %q", r.Stdout)
	}
}

// wantSound fails the test unless the disk's points are what they were, its snapshot alone is there, and no temporary.
func (d *disk) wantSound(t *testing.T, newest backup.ImageReport) {
	t.Helper()
	d.check(t)
	d.checkSnapshot(t, newest.Points[0])
	for _, file := range files(t, d.dir) {
		if name := filepath.Base(file); strings.HasPrefix(name, ".") && name != ".state" {
			t.Errorf("a temporary is left: %s", file)
		}
	}
}

// files lists all files and folders below dir.
func files(t *testing.T, dir string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if path != dir {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// TestBadInput runs the program with what can't work, in a repository that is in use.
func TestBadInput(t *testing.T) {
	t.Parallel()
	cluster := cephtest.Require(t)
	pool, stranger := cluster.Pool(t), cluster.Pool(t)
	d := newDisk(t, pool, "vm", 8<<20)
	pool.IO(t, "vm", "write -P 1 1M 3M")
	point := d.backup(t)
	before := files(t, d.dir)

	tmp := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(tmp, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	damaged, plain := program.Init(t), file("plain", "")
	if err := os.WriteFile(filepath.Join(damaged, "rbd2qcow2.json"), []byte(`{"format": 1`), 0o640); err != nil {
		t.Fatal(err)
	}
	to := func(spec, dir string, more ...string) []string {
		return append([]string{"backup", "--conf", pool.Conf, "--id", pool.User, "--keyring", pool.Keyring, spec, dir}, more...)
	}
	with := func(more ...string) []string { return to(pool.Name, d.dir, more...) }
	user := "client." + pool.User
	key := "]\n\tkey = AQBmX3FnAAAAABAAfbJx5Dvw3sLbdTqUJbJpBw==\n"
	for name, test := range map[string]struct {
		args []string
		code int
		says string
	}{
		"unknown command":       {[]string{"bakcup"}, 2, `unknown command "bakcup"`},
		"unknown flag":          {with("--nope"), 2, "unknown flag: --nope"},
		"no directory":          {[]string{"backup", "rbd"}, 2, "usage: rbd2qcow2 backup POOL"},
		"empty directory":       {to(pool.Name, ""), 2, "argument 2 is empty"},
		"no namespace named":    {to(pool.Name+"/", d.dir), 2, `pool "` + pool.Name + `/": must be`},
		"too many jobs":         {with("--jobs", "1000"), 2, "jobs 1000: must be from 1 to 64"},
		"negative number":       {with("--parallel", "-1"), 2, "parallel -1: must be"},
		"unknown compression":   {with("--compress", "lz4"), 2, `compression "lz4": must be`},
		"unknown log format":    {with("--log-format", "xml"), 2, `log format "xml": must be`},
		"no time":               {with("--timeout", "0s"), 2, "timeout 0s: must be positive"},
		"no duration":           {with("--timeout", "soon"), 2, `"soon" for "--timeout"`},
		"malformed pattern":     {with("["), 2, `pattern "[": syntax error`},
		"malformed exclusion":   {with("--exclude", "["), 2, `pattern "[": syntax error`},
		"no such pool":          {to("nope", d.dir), 1, "open pool nope: not found"},
		"no such namespace":     {to(pool.Name+"/nope", d.dir), 1, "open namespace " + pool.Name + "/nope: not found"},
		"no such image":         {with("nope"), 1, "open image " + pool.Name + "/nope: not found"},
		"nothing matches":       {with("nope*"), 1, `no image matches "nope*"`},
		"all excluded":          {with("--exclude", "*"), 1, "back up " + pool.Name + ": no image matches"},
		"no such directory":     {to(pool.Name, tmp+"/nope"), 1, tmp + "/nope: no such file or directory"},
		"no repository":         {to(pool.Name, tmp), 1, tmp + ": not a repository"},
		"a file for one":        {to(pool.Name, plain), 1, plain},
		"damaged marker":        {to(pool.Name, damaged), 1, "open repository " + damaged + ": read rbd2qcow2.json"},
		"another pool":          {to(stranger.Name, d.dir), 1, "belongs to pool " + pool.Name},
		"no configuration":      {with("--conf", tmp+"/nope"), 1, "configuration file " + tmp + "/nope: not found"},
		"malformed one":         {with("--conf", file("conf", "[x\n")), 1, "/conf: it is not in the format"},
		"a folder for one":      {with("--conf", tmp), 1, "configuration file " + tmp + ": is a directory"},
		"no keyring":            {with("--keyring", tmp+"/nope"), 1, "no keyring for " + user + " (looked for " + tmp + "/nope)"},
		"malformed keyring":     {with("--keyring", file("garbage", "[x\n")), 1, "keyring can't be read"},
		"another's keyring":     {with("--keyring", file("other", "[client.other"+key)), 1, "no key for " + user + " in keyring " + tmp + "/other"},
		"wrong key":             {with("--keyring", file("wrong", "["+user+key)), 1, "refused " + user + ": user unknown, or wrong key"},
		"unknown user":          {with("--id", "other", "--keyring", file("unknown", "[client.other"+key)), 1, "refused client.other"},
		"user of another pool":  {with("--id", stranger.User, "--keyring", stranger.Keyring), 1, "list images of " + pool.Name + ": permission denied"},
		"nobody at the address": {with("-m", "127.0.0.1:1", "--timeout", "3s"), 1, "monitors did not answer within 3s"},
		"init of a repository":  {[]string{"init", damaged}, 1, damaged + " is one already"},
		"init in files":         {[]string{"init", tmp}, 1, tmp + " is not empty"},
		"init of a file":        {[]string{"init", plain}, 1, plain},
		"list of nothing":       {[]string{"list", tmp + "/nope"}, 1, tmp + "/nope: no such file or directory"},
	} {
		t.Run(name, func(t *testing.T) {
			r := program.Run(t, test.args...)
			wantComplaint(t, r, test.code, test.says)
			if r.Elapsed > 30*time.Second {
				t.Errorf("took %v", r.Elapsed)
			}
		})
	}
	if after := files(t, d.dir); !slices.Equal(after, before) {
		t.Errorf("the repository has %q, had %q", after, before)
	}
	d.wantSound(t, point)
}
