package crash

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/programtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
)

const (
	campaignTime   = 2 * time.Minute // and the round that has begun, and what the program takes to build
	roundsOfLife   = 12
	maxFailedLives = 10
)

// TestCampaign leads one life after the other, of some images and their repository, with random histories, while everything is
// broken that can be: processes, the cluster, the disk, the files. After every round each visible point has to read as the
// image was, or to be reported as damaged.
//
// RBD2QCOW2_CAMPAIGN is for how long (2m), RBD2QCOW2_SEED the seed of the one life that is to be repeated: it decides what is done,
// not when it strikes. RBD2QCOW2_CAMPAIGN_KEEP is a folder where repositories of lives that failed are kept.
func TestCampaign(t *testing.T) {
	c := newCampaign(t)
	defer func() { t.Log(c.tally.String()) }()
	if os.Getenv("RBD2QCOW2_SEED") != "" {
		c.end = time.Now().Add(time.Hour)
		c.live(t, uint64(number(t, "RBD2QCOW2_SEED", 0)))
		return
	}
	c.end = time.Now().Add(campaignTime)
	if text := os.Getenv("RBD2QCOW2_CAMPAIGN"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatal(err)
		}
		c.end = time.Now().Add(d)
	}
	for failed := 0; failed < maxFailedLives && time.Now().Before(c.end); {
		if !c.live(t, rand.Uint64N(1e9)) {
			failed++
		}
	}
}

// campaign is what all lives have in common.
type campaign struct {
	cluster *campaignCluster
	program programtest.Program // which believes in the clock that it is told
	tally   tally
	end     time.Time
}

func newCampaign(t *testing.T) *campaign {
	qemutest.Require(t, "losetup", "mkfs.xfs", "mkfs.ext4")
	if os.Geteuid() != 0 {
		qemutest.Missing(t, "file systems can be mounted by root only")
	}
	c := &campaign{program: buildWithClock(t), tally: tally{}}
	c.cluster = startCampaignCluster(t)
	return c
}

// live leads one life.
func (c *campaign) live(t *testing.T, seed uint64) (ok bool) {
	return t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
		l := c.newLife(t, seed)
		defer l.end(t)
		c.tally["lives"]++
		for n := range roundsOfLife {
			l.round(t, n)
			if t.Failed() || time.Now().After(c.end) {
				return
			}
		}
	})
}

// life is that of some images of a pool and their repository.
type life struct {
	*campaign
	seed          uint64
	rng           *rand.Rand // of the round: what a round does depends on chance before it as little as possible
	pool          *cephtest.Pool
	user, keyring string // who may restore
	root          string // file system of the repository, which may become full
	dir           string // repository
	scratch       string
	noise         string // file of random bytes
	images        []*liveImage
	made          int                // names ever given
	heads         map[string]content // by image id, when the round began
	modified      map[string]bool    // by image id: since then, while something ran
	foreign       map[string]bool    // snapshots that are not ours, "image id/snapshot id"
	specs         map[string]string  // by folder: how the program is told its image
	truth         map[string]content // of every point, by its file relative to dir
	checked       map[string]string  // by file: its chain on disk when it was last found right
	injured       map[string]string  // files that were damaged in this round, and how
	pruned        bool               // in this round points may go
	mending       bool               // what was injured is counted already
	story         []string
}

func (c *campaign) newLife(t *testing.T, seed uint64) *life {
	l := &life{campaign: c, seed: seed, rng: rand.New(rand.NewPCG(seed, 1<<32)), truth: map[string]content{}, checked: map[string]string{}}
	l.pool = c.cluster.Pool(t)
	l.pool.GrantClones(t, l.pool.Name)
	l.user, l.keyring = l.pool.RestoreUser(t)
	l.scratch = t.TempDir()
	l.noise = randomFile(t)
	l.root = l.newRoot(t)
	l.dir = filepath.Join(l.root, "repository")
	if r := c.program.Run(t, "init", l.dir); r.Code != 0 {
		t.Fatalf("init: exit status %d\n%s", r.Code, r.Stderr)
	}
	for range 2 + l.rng.IntN(2) {
		l.create(t, l.newName("vm"))
	}
	return l
}

// newRoot mounts a new file system of some kind.
func (l *life) newRoot(t *testing.T) string {
	f, kind := xfs(), "xfs"
	switch l.rng.IntN(3) {
	case 0:
		f, kind = ext4(), "ext4"
	case 1:
		l.say("tmpfs")
		dir := t.TempDir()
		qemutest.Run(t, "mount", "-t", "tmpfs", "-o", "size=500m", "tmpfs", dir)
		t.Cleanup(func() { qemutest.Run(t, "umount", dir) })
		return dir
	}
	l.say("%s", kind)
	f.size = 500 << 20
	dir, _ := mount(t, f.newDisk(t))
	return dir
}

// end tells the story of a life that has failed, and keeps what is left of it.
func (l *life) end(t *testing.T) {
	if !t.Failed() {
		return
	}
	l.tally["failed lives"]++
	t.Logf("RBD2QCOW2_SEED=%d\n%s", l.seed, strings.Join(l.story, "\n"))
	if keep := os.Getenv("RBD2QCOW2_CAMPAIGN_KEEP"); keep != "" {
		dir := filepath.Join(keep, fmt.Sprint(l.seed))
		err := os.MkdirAll(keep, 0o700)
		if err == nil {
			_, err = qemutest.Try("cp", "-a", l.dir, dir)
		}
		t.Logf("repository kept in %s: %v", dir, err)
	}
}

// say adds to the story.
func (l *life) say(format string, args ...any) {
	l.story = append(l.story, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

func (l *life) chance(one int) bool { return l.rng.IntN(one) == 0 }

func (l *life) newName(kind string) string {
	l.made++
	return fmt.Sprintf("%s%d", kind, l.made)
}

// round lets time pass for the images, lets programs run while an adversary strikes, and looks at what is left.
func (l *life) round(t *testing.T, n int) {
	l.rng = rand.New(rand.NewPCG(l.seed, uint64(n)))
	l.tally["rounds"]++
	l.say("round %d", n)
	l.injured, l.modified, l.pruned = map[string]string{}, map[string]bool{}, false
	l.change(t)
	l.observe(t)
	if n == 0 {
		l.calm(t) // or there is little to break
		l.observe(t)
	}
	s := l.pickStrike(t)
	l.say("strike: %s", s.name)
	l.tally["strike "+s.name]++
	l.runOps(t, s)
	if t.Failed() {
		return
	}
	l.check(t)
	l.clean(t)
	if t.Failed() || !l.chance(3) { // now and then one blow follows the other
		l.calm(t)
	}
}
