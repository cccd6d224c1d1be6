package qcow2_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// foreignChain is files that QEMU made, the first one empty, and what each reads as.
type foreignChain struct {
	dir   string
	names []string
	want  [][]byte
}

func (c *foreignChain) path(i int) string { return filepath.Join(c.dir, c.names[i]) }

// newForeignChain makes a chain of random files; of those that are named untouched nothing is written.
func newForeignChain(t *testing.T, seed uint64, sizes []int64, options func(i int) string, untouched ...int) *foreignChain {
	t.Helper()
	r := newRand(seed)
	c := &foreignChain{dir: t.TempDir()}
	for i, size := range sizes {
		name := fmt.Sprintf("%d.qcow2", i)
		args := []string{"-f", "qcow2", "-o", options(i), filepath.Join(c.dir, name), fmt.Sprint(size)}
		if i > 0 {
			args = append([]string{"-b", c.names[i-1], "-F", "qcow2"}, args...)
		}
		c.names = append(c.names, name)
		qemutest.Create(t, args...)
		if i > 0 && !slices.Contains(untouched, i) {
			cluster := int64(64 << 10)
			if strings.Contains(options(i), "cluster_size=4k") {
				cluster = 4 << 10
			}
			compress(t, r, c.path(i), size, cluster)
			scribble(t, r, c.path(i), size, cluster, !strings.Contains(options(i), "0.10"))
		}
		qemutest.Check(t, c.path(i))
		b, err := os.ReadFile(qemutest.Convert(t, c.path(i)))
		if err != nil {
			t.Fatal(err)
		}
		c.want = append(c.want, b)
	}
	return c
}

// fold removes file i.
func (c *foreignChain) fold(t *testing.T, i int, intoBacking bool) {
	t.Helper()
	target, fold := c.path(i+1), qcow2.FoldIntoChild
	if intoBacking {
		target, fold = c.path(i), qcow2.FoldIntoBacking
	}
	o := qcow2.FoldOptions{Identity: []byte("adopted"), Compress: true}
	if i > 1 {
		o.BackingFile = c.names[i-1]
	}
	f, err := os.OpenFile(target, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	folded, err := fold(t.Context(), f, openChain(t, c.path(i+1), true), o)
	if err != nil {
		t.Fatalf("fold %d, into backing file %t: %v", i, intoBacking, err)
	}
	if intoBacking {
		if err := os.Rename(target, c.path(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := folded.Punch(punchZeroes{f}); err != nil {
		t.Error(err)
	}
	c.names = append(c.names[:i], c.names[i+1:]...)
	c.want = append(c.want[:i], c.want[i+1:]...)
	im := openChain(t, c.path(i))
	if id, err := im.Identity(); err != nil || string(id) != "adopted" {
		t.Errorf("identity %q, %v", id, err)
	}
	if err := im.VerifyDigests(t.Context()); !errors.Is(err, qcow2.ErrNoDigests) {
		t.Errorf("verify digests: %v", err)
	}
	for ; i < len(c.names); i++ {
		c.check(t, i)
	}
}

func (c *foreignChain) check(t *testing.T, i int) {
	t.Helper()
	qemutest.Check(t, c.path(i))
	got, err := os.ReadFile(qemutest.Convert(t, c.path(i)))
	if err != nil {
		t.Fatal(err)
	}
	compareContent(t, "qemu-img convert of "+c.names[i], got, c.want[i])
	im := openChain(t, c.path(i))
	if n, err := im.ReadAt(got, 0); err != nil && n < len(got) {
		t.Fatal(err)
	}
	compareContent(t, "our reader of "+c.names[i], got, c.want[i])
}

// punchZeroes writes zeroes instead of holes: what is read of them by mistake is as wrong.
type punchZeroes struct{ f *os.File }

func (p punchZeroes) Punch(off, n int64) error {
	_, err := p.f.WriteAt(make([]byte, n), off)
	return err
}

// Chains that other programs made, on an empty file, fold too; the result carries an identity and no digests.
func TestFoldForeign(t *testing.T) {
	qemutest.Require(t, "qemu-img", "qemu-io")
	for name, options := range map[string]func(i int) string{
		"version 3": func(int) string { return "compat=1.1" },
		"version 2": func(int) string { return "compat=0.10" },
		"zstd":      func(int) string { return "compression_type=zstd" },
		"lazy":      func(int) string { return "lazy_refcounts=on" },
		"clusters":  func(i int) string { return "cluster_size=" + []string{"64k", "4k"}[i%2] },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(2) {
				c := newForeignChain(t, seed, []int64{64 << 10, 3<<20 + 512, 2 << 20, 4<<20 + 512, 3 << 20}, options)
				r := newRand(seed)
				for len(c.names) > 2 {
					c.fold(t, 1+r.IntN(len(c.names)-2), r.IntN(2) == 0)
				}
			}
		})
	}
}

// A disk that was made smaller by its header alone has tables and data behind its end. They stay hidden.
func TestFoldForeignCut(t *testing.T) {
	qemutest.Require(t, "qemu-img", "qemu-io")
	for _, size := range []int64{512, 1<<20 + 512, 2 << 20, 4<<20 + 512} {
		for _, intoBacking := range []bool{false, true} {
			sizes := []int64{64 << 10, 6 << 20, 6 << 20, 8 << 20, 8 << 20}
			c := newForeignChain(t, uint64(size), sizes, func(int) string { return "cluster_size=4k" }, 1, 3)
			patch(t, c.path(2), 24, binary.BigEndian.AppendUint64(nil, uint64(size))...)
			for i := 2; i < len(c.want); i++ {
				var err error
				if c.want[i], err = os.ReadFile(qemutest.Convert(t, c.path(i))); err != nil {
					t.Fatal(err)
				}
			}
			c.fold(t, 2, intoBacking)
		}
	}
}

// What a fold does not know is refused, and nothing changed.
func TestFoldRefuses(t *testing.T) {
	qemutest.Require(t, "qemu-img", "qemu-io")
	plain := func(int) string { return "cluster_size=4k" }
	for _, test := range []struct {
		name    string
		options func(i int) string
		change  func(t *testing.T, file string)
		o       qcow2.FoldOptions
		want    string
	}{
		{"snapshot", plain, func(t *testing.T, file string) { qemutest.Run(t, "qemu-img", "snapshot", "-c", "one", file) }, qcow2.FoldOptions{}, "internal snapshots"},
		{"bitmap", plain, func(t *testing.T, file string) { qemutest.Run(t, "qemu-img", "bitmap", "--add", file, "one") }, qcow2.FoldOptions{}, "bitmaps"},
		{"dirty", plain, func(t *testing.T, file string) { patch(t, file, 79, 1) }, qcow2.FoldOptions{}, "dirty"},
		{"refcount order", func(int) string { return "refcount_bits=64" }, nil, qcow2.FoldOptions{}, "16 bits"},
		{"codec", plain, nil, qcow2.FoldOptions{Codec: qcow2.ZstdCodec(1)}, "codec of type zstd"},
		{"long name", plain, nil, qcow2.FoldOptions{BackingFile: strings.Repeat("x", 1024)}, "backing file name"},
		{"data below", plain, nil, qcow2.FoldOptions{}, "holds data"},
	} {
		for _, intoBacking := range []bool{false, true} {
			t.Run(fmt.Sprint(test.name, " ", intoBacking), func(t *testing.T) {
				t.Parallel()
				c := newForeignChain(t, 1, []int64{64 << 10, 1 << 20, 1 << 20, 1 << 20}, test.options)
				point, fold := 1, qcow2.FoldIntoChild
				if test.name == "data below" {
					point = 2
				}
				target := c.path(point + 1)
				if intoBacking {
					target, fold = c.path(point), qcow2.FoldIntoBacking
				}
				if test.change != nil {
					test.change(t, target)
				}
				before, err := os.ReadFile(target)
				if err != nil {
					t.Fatal(err)
				}
				f := newJournalFile(before)
				_, err = fold(t.Context(), f, openChain(t, c.path(point+1), true), test.o)
				if err == nil || !strings.Contains(err.Error(), test.want) || len(f.steps) > 0 {
					t.Errorf("%v after %d steps", err, len(f.steps))
				}
			})
		}
	}
	base := &ramFile{writeFile(t, qcow2.WriterOptions{}, make([]byte, 1<<20), "")}
	c := foldChain{points: []*foldPoint{{name: "base", file: base}}}
	im, err := c.open(0, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := qcow2.FoldIntoBacking(t.Context(), base, im, qcow2.FoldOptions{}); err == nil {
		t.Error("fold of a file without backing file: no error")
	}
}

func patch(t *testing.T, file string, off int64, b ...byte) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}
