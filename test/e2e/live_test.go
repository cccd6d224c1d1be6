package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
)

// usable is what is logged when others can use the image.
const usable = "the image can be used now"

// wantNoJournal fails the test where something would be resumed.
func (d *disk) wantNoJournal(t *testing.T) {
	t.Helper()
	if left, _ := filepath.Glob(filepath.Join(d.dir, "*", ".state", "live-*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestLive reads and writes an image while it is copied, committed and made thin, and has it open all the time.
func TestLive(t *testing.T) {
	t.Parallel()
	const size = 320<<20 + 513
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "vm", size, "--object-size=2M", "--image-feature=layering,exclusive-lock")
	pool.IO(t, "vm", "write -P 1 0 60M", "write -P 2 150M 100M", "write -P 3 300M 12k")
	pool.SetMetadata(t, "vm", "owner", "somebody")
	p := d.backup(t).Points[0]
	user, keyring := pool.RestoreUser(t)
	r := d.live(t, p.Point, "new", "--json", "--id", user, "--keyring", keyring)
	r.awaits(t, usable)
	g := openGuest(t, pool, "new")
	writes := []string{"write -P 7 249M 1M", "write -P 8 0 64k", "write -P 9 200000000 12345"}
	g.do(t, "read -P 2 249M 1M", "read -P 3 300M 12k", "read -P 0 310M 4M")
	g.do(t, writes...)
	state, err := pool.TryRBD("status", pool.Spec("new"))
	if err != nil || !strings.Contains(string(state), "state: executing") {
		t.Errorf("nothing is copied any more: %v\n%s", err, state)
	}
	r.awaits(t, "phase=sparsify")
	g.do(t, "write -P 5 151M 1M", "read -P 7 249M 1M", "read -P 2 248M 1M")
	r.ends(t, 0)
	g.do(t, "write -P 4 152M 1M", "read -P 9 200000000 12345", "read -P 0 310M 4M")
	g.close(t)
	var report struct {
		Method  string
		Usable  float64 `json:"usable_seconds"`
		Seconds float64
	}
	err = json.Unmarshal(r.Stdout.(*bytes.Buffer).Bytes(), &report)
	if err != nil || report.Method != "live" || report.Usable <= 0 || report.Usable >= report.Seconds {
		t.Errorf("report %+v, %v", report, err)
	}
	// What the guest has done to the restored image makes of the old one the same.
	pool.IO(t, "vm", append(writes, "write -P 5 151M 1M", "write -P 4 152M 1M")...)
	d.wantImage(t, "new", d.contentAt(t, ""))
	if now, then := pool.DataBytes(t, "new"), pool.DataBytes(t, "vm"); now > then {
		t.Errorf("the image has %d bytes of data, the original %d", now, then)
	}
	was, is := pool.Info(t, "vm"), pool.Info(t, "new")
	if is.Size != was.Size || is.ObjectSize != was.ObjectSize || !slices.Equal(is.Features, was.Features) {
		t.Errorf("restored as %+v, was %+v", is, was)
	}
	if owner := strings.TrimSpace(string(pool.RBD(t, "image-meta", "get", pool.Spec("new"), "owner"))); owner != "somebody" {
		t.Errorf("metadata: owner %q", owner)
	}
	d.wantNoJournal(t)
}

// TestLiveKilled kills a live restore at each stage, and resumes it or aborts it.
func TestLiveKilled(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "vm", 96<<20+1)
	pool.IO(t, "vm", "write -P 1 0 30M", "write -P 2 80M 100k")
	p := d.backup(t).Points[0]
	for stage, said := range map[string]string{
		"prepared": usable, "executing": "bytes=20971520-", "copied": "phase=commit", "committed": "phase=sparsify",
	} {
		for _, verb := range []string{"resume", "abort"} {
			t.Run(stage+" "+verb, func(t *testing.T) {
				t.Parallel()
				image := stage + "-" + verb
				r := d.live(t, p.Point, image)
				r.awaits(t, said)
				r.signals(t, syscall.SIGKILL)
				r.ends(t, -1)
				if stage != "executing" { // there the program waits until the cluster takes the dead for dead
					evict(t, pool, image)
				}
				d.live(t, p.Point, image, "--"+verb).ends(t, 0)
				if verb == "resume" {
					d.wantImage(t, image, d.truth[p.File])
					d.wantThin(t, p, image)
				} else if slices.Contains(pool.Images(t), image) {
					t.Error("the image is still there")
				}
			})
		}
	}
	t.Cleanup(func() { d.wantNoJournal(t) })
}

// evict ends what the cluster has of dead clients of an image.
func evict(t *testing.T, pool *cephtest.Pool, image string) {
	t.Helper()
	id := pool.Rados(t, "get", "rbd_id."+image, "-")[4:] // behind its length
	for watcher := range strings.Lines(string(pool.Rados(t, "listwatchers", "rbd_header."+string(id)))) {
		address, _, _ := strings.Cut(strings.TrimPrefix(watcher, "watcher="), " ")
		pool.Ceph(t, "osd", "blocklist", "add", address)
	}
}

// TestLiveServerGone kills the server under a guest, which has to wait for the one that goes on.
func TestLiveServerGone(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "vm", 512<<20)
	pool.IO(t, "vm", "write -P 1 0 30M", "write -P 2 510M 1M")
	p := d.backup(t).Points[0]
	r := d.live(t, p.Point, "new")
	r.awaits(t, usable)
	g := openGuest(t, pool, "new")
	g.do(t, "write -P 3 401M 4k") // it has the lock now
	r.signals(t, syscall.SIGTERM)
	said := r.ends(t, 143)
	lines := strings.Split(said, "\n")
	resume := strings.Join([]string{"--live --resume --conf", pool.Conf, d.dir, d.folder(p.Point), d.target("new")}, " ")
	if !strings.HasSuffix(lines[len(lines)-2], resume) {
		t.Errorf("how to go on is not said:\n%s", said)
	}
	if said, ok := g.try(t, "read -P 2 510M 64k"); ok {
		t.Errorf("the guest reads from nowhere: %s", said)
	}
	again := program.Run(t, d.restoreArgs(p.Point, d.target("new"), "--live")...)
	wantComplaint(t, again, 1, "it is unfinished, from a live restore of "+d.folder(p.Point))
	abort := d.live(t, p.Point, "new", "--abort")
	abort.awaits(t, "a client has the image open")
	abort.signals(t, syscall.SIGINT)
	abort.ends(t, 130)
	r = d.live(t, p.Point, "new", "--resume")
	r.awaits(t, usable)
	g.do(t, "read -P 2 510M 64k", "read -P 3 401M 4k", "read -P 1 0 30M")
	busy := program.Run(t, d.restoreArgs(p.Point, d.target("new"), "--live", "--resume")...)
	wantComplaint(t, busy, 1, "another process is at it")
	r.ends(t, 0)
	g.do(t, "write -P 3 402M 4k", "read -P 2 510M 64k")
	g.close(t)
	pool.IO(t, "vm", "write -P 3 401M 4k", "write -P 3 402M 4k")
	d.wantImage(t, "new", d.contentAt(t, ""))
	d.wantNoJournal(t)
}

// TestLiveRefused tries live restores that can't be; none of them leaves anything.
func TestLiveRefused(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "vm", 1<<20)
	p := d.backup(t).Points[0]
	for name, test := range map[string]struct {
		target string
		args   []string
		code   int
		says   string
	}{
		"existing":      {d.target("vm"), nil, 1, "it exists already: a live restore needs a new image"},
		"nothing":       {d.target("new"), []string{"--resume"}, 1, "there is no unfinished live restore"},
		"not this":      {d.target("vm"), []string{"--abort"}, 1, "there is no unfinished live restore"},
		"file":          {filepath.Join(t.TempDir(), "file"), nil, 2, "--live is for RBD images"},
		"overwrite":     {d.target("vm"), []string{"--overwrite"}, 2, "--live makes a new image"},
		"resume, abort": {d.target("vm"), []string{"--resume", "--abort"}, 2, "exclude each other"},
		"other address": {d.target("vm"), []string{"--resume", "--listen=127.0.0.1:80"}, 2, "can't be changed any more"},
		"no port":       {d.target("new"), []string{"--listen=127.0.0.1"}, 2, "missing port"},
		"not here":      {d.target("new"), []string{"--listen=192.0.2.1:0"}, 1, "cannot assign requested address"},
		"unreachable":   {d.target("new"), []string{"--advertise=127.0.0.1:1"}, 1, "connection refused"},
		"data pool":     {d.target("new"), []string{"--data-pool=nope"}, 1, "data pool nope: not found"},
		"no permission": {d.target("new"), []string{"--id", pool.User, "--keyring", pool.Keyring}, 1, "permission denied"},
	} {
		t.Run(name, func(t *testing.T) {
			args := d.restoreArgs(p.Point, test.target, append([]string{"--live"}, test.args...)...)
			wantComplaint(t, program.Run(t, args...), test.code, test.says)
		})
	}
	wantComplaint(t, program.Run(t, d.restoreArgs(p.Point, d.target("new"), "--abort")...), 2, "go with --live")
	if images := pool.Images(t); !slices.Equal(images, []string{"vm"}) {
		t.Errorf("images %q", images)
	}
	if _, err := os.Stat(filepath.Join(d.dir, "vm", ".state")); err != nil {
		t.Error(err)
	}
	d.wantNoJournal(t)
}
