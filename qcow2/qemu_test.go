package qcow2_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
)

func TestReadQEMU(t *testing.T) {
	qemutest.Require(t, "qemu-img", "qemu-io")
	for seed, test := range []struct {
		name    string
		cluster int64
		size    int64
		options string
	}{
		{"512", 512, 1<<20 + 512, ""},
		{"1K", 1 << 10, 1<<20 + 512, ""},
		{"2K zstd", 2 << 10, 2<<20 + 512, ",compression_type=zstd"},
		{"4K", 4 << 10, 6<<20 + 512, ""},
		{"4K zstd", 4 << 10, 6<<20 + 512, ",compression_type=zstd"},
		{"64K", 64 << 10, 24<<20 + 512, ""},
		{"64K zstd", 64 << 10, 24<<20 + 512, ",compression_type=zstd"},
		{"64K two tables", 64 << 10, 520<<20 + 512, ""},
		{"2M", 2 << 20, 41<<20 + 512, ""},
		{"2M zstd", 2 << 20, 41<<20 + 512, ",compression_type=zstd"},
		{"version 2", 64 << 10, 24<<20 + 512, ",compat=0.10"},
		{"version 2 512", 512, 1<<20 + 512, ",compat=0.10"},
		{"lazy refcounts", 64 << 10, 8 << 20, ",lazy_refcounts=on"},
		{"refcounts of 1 bit", 64 << 10, 8 << 20, ",refcount_bits=1"},
		{"refcounts of 64 bits", 4 << 10, 8 << 20, ",refcount_bits=64"},
		{"one sector", 64 << 10, 512, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := newRand(uint64(seed))
			file := filepath.Join(t.TempDir(), "a.qcow2")
			qemutest.Create(t, "-f", "qcow2", "-o", fmt.Sprintf("cluster_size=%d%s", test.cluster, test.options), file, fmt.Sprint(test.size))
			compareWithQEMU(t, file)
			if test.name != "refcounts of 1 bit" { // which are too few for several compressed clusters in a host cluster
				compress(t, r, file, test.size, test.cluster)
			}
			if test.size > 512 {
				scribble(t, r, file, test.size, test.cluster, test.options != ",compat=0.10")
			}
			compareWithQEMU(t, file)
			compareMap(t, file)
		})
	}
}

func TestReadPreallocated(t *testing.T) {
	qemutest.Require(t, "qemu-img", "qemu-io")
	for _, mode := range []string{"metadata", "falloc", "full"} {
		t.Run(mode, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "a.qcow2")
			qemutest.Create(t, "-f", "qcow2", "-o", "preallocation="+mode, file, "3M")
			qemutest.IO(t, file, "write -q -P 7 100k 200k", "write -q -z 1M 512k", "write -q -z -u 2M 64k")
			compareWithQEMU(t, file)
		})
	}
}

// The newest state is read, not that of a snapshot inside the file.
func TestReadInternalSnapshot(t *testing.T) {
	qemutest.Require(t, "qemu-img", "qemu-io")
	file := filepath.Join(t.TempDir(), "a.qcow2")
	qemutest.Create(t, "-f", "qcow2", file, "8M")
	compress(t, newRand(1), file, 8<<20, 64<<10)
	scribble(t, newRand(1), file, 8<<20, 64<<10, true)
	qemutest.Run(t, "qemu-img", "snapshot", "-c", "one", file)
	scribble(t, newRand(2), file, 8<<20, 64<<10, true)
	compareWithQEMU(t, file)
	compareMap(t, file)
	if n := openChain(t, file).Header().Snapshots; n != 1 {
		t.Errorf("%d internal snapshots", n)
	}
}

// Three files of other sizes, so that the one in the middle hides what is behind its end, inside a cluster of
// those above and below.
func TestReadChain(t *testing.T) {
	qemutest.Require(t, "qemu-img", "qemu-io")
	for seed, test := range []struct {
		name     string
		sizes    [3]int64
		clusters [3]int64
	}{
		{"equal", [3]int64{8 << 20, 8 << 20, 8 << 20}, [3]int64{64 << 10, 64 << 10, 64 << 10}},
		{"shrunk and grown", [3]int64{8 << 20, 3<<20 + 512, 9 << 20}, [3]int64{64 << 10, 4 << 10, 64 << 10}},
		{"grown", [3]int64{3<<20 + 1536, 6<<20 + 512, 9<<20 + 512}, [3]int64{64 << 10, 2 << 20, 512}},
		{"shrunk", [3]int64{9<<20 + 512, 6<<20 + 512, 3<<20 + 512}, [3]int64{2 << 20, 64 << 10, 4 << 10}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r, dir := newRand(uint64(seed)), t.TempDir()
			var file string
			for i, size := range test.sizes {
				args := []string{"-f", "qcow2", "-o", fmt.Sprintf("cluster_size=%d,compression_type=%s", test.clusters[i], []string{"zlib", "zstd", "zlib"}[i])}
				if i > 0 {
					args = append(args, "-b", filepath.Base(file), "-F", "qcow2")
				}
				file = filepath.Join(dir, fmt.Sprintf("%d.qcow2", i))
				qemutest.Create(t, append(args, file, fmt.Sprint(size))...)
				compress(t, r, file, size, test.clusters[i])
				scribble(t, r, file, size, test.clusters[i], true)
			}
			compareWithQEMU(t, file)
			compareMap(t, file)
		})
	}
}

func TestReaderContract(t *testing.T) {
	qemutest.Require(t, "qemu-img", "qemu-io")
	file := filepath.Join(t.TempDir(), "a.qcow2")
	qemutest.Create(t, "-f", "qcow2", "-o", "cluster_size=4k", file, "100k")
	compress(t, newRand(1), file, 100<<10, 4<<10)
	scribble(t, newRand(1), file, 100<<10, 4<<10, true)
	im := openChain(t, file)
	want, err := os.ReadFile(qemutest.Convert(t, file))
	if err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(io.NewSectionReader(im, 0, im.Size()), want); err != nil {
		t.Error(err)
	}
	p := make([]byte, 10)
	for _, test := range []struct {
		off int64
		n   int
		err bool
	}{{-1, 0, true}, {im.Size() - 10, 10, false}, {im.Size() - 9, 9, true}, {im.Size(), 0, true}, {1 << 62, 0, true}} {
		if n, err := im.ReadAt(p, test.off); n != test.n || (err != nil) != test.err {
			t.Errorf("read at %d: %d, %v", test.off, n, err)
		}
	}
	if n, err := im.ReadAt(nil, 0); n != 0 || err != nil {
		t.Errorf("read nothing: %d, %v", n, err)
	}
}
