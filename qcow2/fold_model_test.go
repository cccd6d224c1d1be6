package qcow2_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// ramFile is a file in memory.
type ramFile struct{ b []byte }

func (f *ramFile) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(f.b).ReadAt(p, off)
}
func (f *ramFile) Sync() error { return nil }

func (f *ramFile) WriteAt(p []byte, off int64) (int, error) {
	if end := off + int64(len(p)); end > int64(len(f.b)) {
		f.b = append(f.b, make([]byte, end-int64(len(f.b)))...)
	}
	return copy(f.b[off:], p), nil
}

func (f *ramFile) Truncate(size int64) error {
	f.b = append(f.b, make([]byte, max(0, size-int64(len(f.b))))...)[:size]
	return nil
}

func (f *ramFile) Punch(off, n int64) error {
	clear(f.b[off:min(off+n, int64(len(f.b)))])
	return nil
}

// foldPoint is a file of a chain and what a guest sees of it.
type foldPoint struct {
	name     string
	file     *ramFile
	want     []byte
	identity string
}

// foldChain is a chain whose points go one by one.
type foldChain struct {
	points  []*foldPoint
	noPunch bool // as on a file system that can't
	key     *qcow2.DigestKey
}

func (c *foldChain) find(name string) int {
	for i, p := range c.points {
		if "./"+p.name == name {
			return i
		}
	}
	return -1
}

// open opens a point and those below it by the names in the files.
func (c *foldChain) open(i int, prove bool) (*qcow2.Image, error) {
	return c.openFile(c.points[i].file, prove)
}

func (c *foldChain) openFile(f *ramFile, prove bool) (*qcow2.Image, error) {
	return qcow2.Open(f, int64(len(f.b)), qcow2.OpenOptions{Prove: prove, Key: c.key, Backing: func(name, format string) (*qcow2.Image, error) {
		i := c.find(name)
		if i < 0 || format != "qcow2" {
			return nil, fmt.Errorf("%w: %q of format %q", os.ErrNotExist, name, format)
		}
		return c.open(i, prove)
	}})
}

// add puts one more point with random changes on top.
func (c *foldChain) add(t *testing.T, r *rand.Rand, l layer) {
	t.Helper()
	o := qcow2.WriterOptions{Size: l.size, ClusterSize: l.cluster, Codec: l.codec, Key: c.key}
	l.key = c.key
	rounded := (l.size + 511) / 512 * 512
	want := make([]byte, (rounded+l.cluster-1)/l.cluster*l.cluster)
	n := len(c.points)
	if n > 0 {
		o.BackingFile = "./" + c.points[n-1].name
		copy(want[:rounded], c.points[n-1].want)
		if l.exact {
			below, err := c.open(n-1, false)
			if err != nil {
				t.Fatal(err)
			}
			o.BackingMayHoldData = func(off, n int64) (bool, error) { return holdsData(below, off, n) }
		}
	}
	p := &foldPoint{name: fmt.Sprint("point-", n), file: &ramFile{}, identity: fmt.Sprint("made as ", n)}
	w, err := qcow2.NewWriter(p.file, o)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	scribbleWriter(t, r, w, l, want)
	if err := w.Finish([]byte(p.identity)); err != nil {
		t.Fatal(err)
	}
	p.want = want[:rounded]
	c.points = append(c.points, p)
}

// fold removes a point, which is not the newest.
func (c *foldChain) fold(t *testing.T, i int, intoBacking bool, o qcow2.FoldOptions) qcow2.FoldStats {
	t.Helper()
	gone, child := c.points[i], c.points[i+1]
	im, err := c.open(i+1, true)
	if err != nil {
		t.Fatal(err)
	}
	child.identity = fmt.Sprintf("%s, after %s", child.identity, gone.name)
	o.Identity = []byte(child.identity)
	if i > 0 {
		o.BackingFile = "./" + c.points[i-1].name
	}
	fold, target := qcow2.FoldIntoChild, child.file
	if intoBacking {
		fold, target = qcow2.FoldIntoBacking, gone.file
	}
	f, err := fold(t.Context(), target, im, o)
	if err != nil {
		t.Fatalf("fold point %d, into backing file %t: %v", i, intoBacking, err)
	}
	child.file = target // renamed
	c.points = append(c.points[:i], c.points[i+1:]...)
	if f.Stats.FileBytes != int64(len(target.b)) {
		t.Errorf("%d bytes instead of %d", len(target.b), f.Stats.FileBytes)
	}
	c.checkFile(t, i)
	if c.noPunch {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		return f.Stats
	}
	if err := f.Punch(target); err != nil {
		t.Error(err)
	}
	c.checkFile(t, i)
	return f.Stats
}

// checkFile checks what one file is by itself.
func (c *foldChain) checkFile(t *testing.T, i int) {
	t.Helper()
	im, err := c.open(i, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := im.CheckStructure(t.Context()); err != nil {
		t.Fatalf("check structure of %d: %v", i, err)
	}
	if err := im.VerifyDigests(t.Context()); err != nil {
		t.Fatalf("verify digests of %d: %v", i, err)
	}
	if id, err := im.Identity(); err != nil || string(id) != c.points[i].identity {
		t.Fatalf("identity of %d: %q, %v", i, id, err)
	}
	checkRefcounts(t, c.points[i].file.b)
	c.checkContent(t, i)
}

// checkContent compares what a guest reads of a point with what it has to be.
func (c *foldChain) checkContent(t *testing.T, i int) {
	t.Helper()
	im, err := c.open(i, true)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(io.NewSectionReader(im, 0, im.Size()))
	if err != nil || len(got) != len(c.points[i].want) {
		t.Fatalf("read point %d: %d bytes of %d: %v", i, len(got), len(c.points[i].want), err)
	}
	if !bytes.Equal(got, c.points[i].want) {
		t.Fatalf("point %d differs at %d", i, firstDifference(got, c.points[i].want))
	}
}

// checkQEMU has qemu-img check each file and compare the newest.
func (c *foldChain) checkQEMU(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for _, p := range c.points {
		if err := os.WriteFile(filepath.Join(dir, p.name), p.file.b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range c.points {
		file := filepath.Join(dir, p.name)
		qemutest.Run(t, "qemu-img", "check", "-q", "-f", "qcow2", file)
		raw := filepath.Join(dir, "raw")
		qemutest.Run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", file, raw)
		got, err := os.ReadFile(raw)
		if err != nil {
			t.Fatal(err)
		}
		compareContent(t, "qemu-img convert of "+p.name, got, p.want)
	}
}

func randomFoldLayer(r *rand.Rand, first bool, largest int64) layer {
	l := randomLayer(r, first)
	l.cluster = 512 << r.IntN(8)
	if !first {
		l.cluster = max(l.cluster, 1<<10)
	}
	switch {
	case first && r.IntN(3) == 0:
		l.cluster = 512 // with many refcount blocks
	case r.IntN(2) == 0:
		l.cluster = 4 << 10 // so that it often agrees
	}
	l.sparse = !first && r.IntN(2) == 0
	l.size = r.Int64N(largest)
	if r.IntN(3) == 0 {
		l.size = l.size / l.cluster * l.cluster
	}
	return l
}

func randomFold(r *rand.Rand) qcow2.FoldOptions {
	o := qcow2.FoldOptions{Compress: r.IntN(2) == 0, Parallel: r.IntN(4)}
	if r.IntN(2) == 0 {
		qcow2.SmallLimits(&o)
	}
	return o
}

// foldSeeds is how many random histories a test goes through: RBD2QCOW2_SEEDS, or a few.
func foldSeeds(t *testing.T, few uint64) uint64 {
	t.Helper()
	s := os.Getenv("RBD2QCOW2_SEEDS")
	if s == "" {
		return few
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("RBD2QCOW2_SEEDS: %v", err)
	}
	return n
}

// Points of random chains are folded away in random order, both ways; every point that is left reads as it was made.
func TestFoldModel(t *testing.T) {
	qemutest.Require(t, "qemu-img")
	for seed := range foldSeeds(t, 300) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := newRand(seed)
			c := foldChain{noPunch: r.IntN(2) == 0}
			if seed%4 == 0 {
				c.key = newKey(t, 1)
			}
			var story []string
			defer func() {
				if t.Failed() {
					t.Logf("seed %d:\n%s", seed, strings.Join(story, "\n"))
				}
			}()
			points, largest := 2+r.IntN(5), int64(300<<10)
			if seed%40 == 0 {
				points, largest = 30, 40<<10
			}
			for i := range points {
				l := randomFoldLayer(r, i == 0, largest)
				story = append(story, fmt.Sprintf("%d: %s", i, l))
				c.add(t, r, l)
			}
			for len(c.points) > 1 {
				i, into, o := r.IntN(len(c.points)-1), r.IntN(2) == 0, randomFold(r)
				story = append(story, fmt.Sprintf("fold %s, into backing file %t, compress %t", c.points[i].name, into, o.Compress))
				c.fold(t, i, into, o)
				for i := range c.points {
					c.checkContent(t, i)
				}
				if seed%32 == 0 && len(c.points) < 8 {
					c.checkQEMU(t)
				}
			}
		})
	}
}
