package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/prune"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

// besideTime is for how long the runs of TestPruneBeside are at work.
const besideTime = 20 * time.Second

// TestPruneBeside backs up an image, prunes it, twice at once, and reads its points in three ways, all at the same time. Each run
// waits, or declines and says why in one line; none ever gets a wrong byte.
func TestPruneBeside(t *testing.T) {
	t.Parallel()
	c := &crowd{disk: newDisk(t, cephtest.Require(t).Pool(t), "vm", diskSize), known: map[string]content{}, counts: map[string]int{}}
	c.backUp(t)
	until := time.Now().Add(besideTime)
	var members sync.WaitGroup
	for _, member := range []func(){
		func() { c.backUp(t) },
		func() { c.pruneTo(t, "2") },
		func() { c.pruneTo(t, "4") },
		func() { c.restoreOne(t) },
		func() { c.convertOne(t) },
		func() { c.serveOne(t) },
	} {
		members.Go(func() {
			for time.Now().Before(until) && !t.Failed() {
				member()
			}
		})
	}
	members.Wait()
	t.Log(c.counts)
	for _, what := range []string{"backed up", "removed", "restored", "converted", "served"} {
		if c.counts[what] == 0 {
			t.Errorf("none %s", what)
		}
	}

	d := c.disk
	d.prune(t, 0, "--keep-last=2")
	left := list(t, d.dir)[0].Points
	d.wantPoints(t, left...)
	d.truth = map[string]content{}
	for _, p := range left {
		d.truth[p.File] = c.known[p.File]
	}
	if len(left) != 2 {
		t.Errorf("%d points are left", len(left))
	}
	d.check(t)
	d.wantIncrement(t, d.backup(t), left[1].Point)
	d.check(t)
}

// crowd is what several runs on one image share.
type crowd struct {
	disk *disk // but for its truth

	mu     sync.Mutex
	known  map[string]content // what points are, and those removed were, by their files
	counts map[string]int     // of what has happened
}

func (c *crowd) count(what string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[what] += n
}

// pick gives a point that is there, and what it must read as. Readers leave a while between two of them, or nothing could be
// pruned.
func (c *crowd) pick(t *testing.T) (file string, want content) {
	time.Sleep(rand.N(time.Second))
	c.mu.Lock()
	defer c.mu.Unlock()
	var there []string
	for file := range c.known {
		if c.isThere(file) {
			there = append(there, file)
		}
	}
	if len(there) == 0 {
		t.Fatal("there are no points")
	}
	file = there[rand.IntN(len(there))]
	return file, c.known[file]
}

func (c *crowd) isThere(file string) bool {
	_, err := os.Stat(filepath.Join(c.disk.dir, file))
	return err == nil
}

func (c *crowd) backUp(t *testing.T) {
	d := c.disk
	d.pool.IO(t, d.image, fmt.Sprintf("write -P %d %dk %dk", 1+rand.IntN(255), rand.IntN(7000), 1+rand.IntN(1000)),
		fmt.Sprintf("write -z %dk 200k", rand.IntN(7000)))
	p := d.backup(t).Points[0]
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known[p.File] = d.truth[p.File]
	c.counts["backed up"]++
	if strings.Contains(d.log, "waiting for another run") {
		c.counts["backups that waited"]++
	}
}

func (c *crowd) pruneTo(t *testing.T, n string) {
	r := program.Run(t, "prune", "--json", "--keep-last", n, c.disk.dir)
	var report prune.Report
	if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil {
		t.Errorf("prune: exit status %d, %v\n%s%s", r.Code, err, r.Stdout, r.Stderr)
		return
	}
	c.count("removed", report.Removed())
	if strings.Contains(r.Stderr, "waiting for another run") {
		c.count("prunes that waited", 1)
	}
	said := complaints(r)
	if (r.Code == 0) != (len(said) == 0) {
		t.Errorf("prune: exit status %d\n%s", r.Code, r.Stderr)
	}
	for _, line := range said {
		switch {
		case strings.Contains(line, "is locked by process") && len(said) == 1:
			c.count("prunes declined", 1)
		case strings.Contains(line, "is in use"):
			c.count("points in use", 1)
		default:
			t.Errorf("prune: exit status %d\n%s", r.Code, r.Stderr)
		}
	}
}

func (c *crowd) restoreOne(t *testing.T) {
	file, want := c.pick(t)
	raw := filepath.Join(t.TempDir(), "restored.raw")
	point := strings.TrimSuffix(filepath.Base(file), ".qcow2")
	r := program.Run(t, "restore", "--quiet", c.disk.dir, point, raw)
	if r.Code == 0 {
		wantFile(t, raw, want)
		must(t, os.Remove(raw))
		c.count("restored", 1)
		return
	}
	if said := complaints(r); r.Code != 1 || len(said) != 1 || !c.declined(file, said[0]) {
		t.Errorf("restore %s: exit status %d\n%s", point, r.Code, r.Stderr)
	}
}

// declined says whether that is why a point can't be read, and counts it.
func (c *crowd) declined(file, why string) bool {
	says := func(text string) bool { return strings.Contains(why, text) }
	switch gone := !c.isThere(file); {
	case gone:
		c.count("gone meanwhile", 1)
	case slices.ContainsFunc([]string{"is being pruned by another run", "is being removed"}, says):
		c.count("readers declined", 1)
	default:
		return false
	}
	return true
}

func (c *crowd) convertOne(t *testing.T) {
	file, want := c.pick(t)
	raw := filepath.Join(t.TempDir(), "converted.raw")
	if _, err := qemutest.Try("qemu-img", "convert", "-f", "qcow2", "-O", "raw", filepath.Join(c.disk.dir, file), raw); err != nil {
		c.count("conversions declined", 1) // by QEMU, which does not wait
		return
	}
	wantFile(t, raw, want)
	must(t, os.Remove(raw))
	c.count("converted", 1)
}

// serveOne reads a point from a server, which keeps it open until its own end.
func (c *crowd) serveOne(t *testing.T) {
	file, want := c.pick(t)
	s := serve(t, c.disk.dir)
	defer s.end(t, syscall.SIGTERM)
	body, code := fetch(t, http.DefaultClient, s.disk(status.Point{File: file}), "")
	if code == http.StatusOK {
		if got := (content{int64(len(body)), sha256.Sum256(body)}); got != want {
			t.Errorf("served %s as %+v, want %+v", file, got, want)
		}
		c.count("served", 1)
		return
	}
	if !c.declined(file, string(body)) {
		t.Errorf("serve %s: status %d\n%s", file, code, body)
	}
}
