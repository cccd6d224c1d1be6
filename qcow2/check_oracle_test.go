package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// metadata lists the entries of 8 bytes that are not zero of all tables of a file, and some that are.
func metadata(r *rand.Rand, b []byte) []int64 {
	be := binary.BigEndian
	cluster := int64(1) << be.Uint32(b[20:])
	var list []int64
	entries := func(off, n int64) (in []int64) {
		for at := off; at < min(off+n, int64(len(b))-7); at += 8 {
			e := be.Uint64(b[at:])
			if e != 0 || r.IntN(int(n/8)) < 5 {
				list = append(list, at)
			}
			if next := int64(e & 0x00fffffffffffe00); e != 0 && next < int64(len(b)) {
				in = append(in, next)
			}
		}
		return in
	}
	for _, block := range entries(int64(be.Uint64(b[48:])), int64(be.Uint32(b[56:]))*cluster) {
		entries(block, cluster)
	}
	for _, table := range entries(int64(be.Uint64(b[40:])), int64(be.Uint32(b[36:]))*8) {
		entries(table, cluster)
	}
	for at := int64(36); at < 64; at += 4 {
		list = append(list, at)
	}
	return list
}

// flipMetadata breaks a file at random.
func flipMetadata(r *rand.Rand, b []byte, places []int64) (story string) {
	for range 1 + r.IntN(2) {
		at, mask := places[r.IntN(len(places))]+r.Int64N(8), byte(1)<<r.IntN(8)
		if r.IntN(8) == 0 {
			mask = byte(r.IntN(256))
		}
		b[at] ^= mask
		story += fmt.Sprintf("byte %d ^ %#x; ", at, mask)
	}
	return story
}

// qemuCheck is the exit status of qemu-img check: 0 nothing, 2 corruption, 3 leaks, 1 for what it can't open.
func qemuCheck(t *testing.T, file string) (status int, out string) {
	t.Helper()
	b, err := exec.Command("qemu-img", "check", "-f", "qcow2", file).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), string(b)
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0, string(b)
}

// oracleFiles are good files of other programs and of ours.
func oracleFiles(t *testing.T) map[string][]byte {
	t.Helper()
	dir, files := t.TempDir(), map[string][]byte{}
	for seed, options := range []string{
		"cluster_size=4k", "cluster_size=512", "cluster_size=4k,compression_type=zstd", "cluster_size=4k,compat=0.10",
		"cluster_size=4k,refcount_bits=1", "cluster_size=512,refcount_bits=2", "cluster_size=4k,refcount_bits=4",
		"cluster_size=4k,refcount_bits=8", "cluster_size=4k,refcount_bits=32", "cluster_size=512,refcount_bits=64",
		"cluster_size=4k,preallocation=metadata",
		"cluster_size=64k,preallocation=falloc", "cluster_size=64k", "cluster_size=2M", "cluster_size=4k,lazy_refcounts=on",
	} {
		r := newRand(uint64(seed))
		file := filepath.Join(dir, fmt.Sprint(seed, ".qcow2"))
		qemutest.Create(t, "-f", "qcow2", "-o", options, file, "1000k")
		in := func(s string) bool { return strings.Contains(options, s) }
		if !in("refcount_bits=1") && !in("2M") && !in("prealloc") {
			compress(t, r, file, 1000<<10, 64<<10)
		}
		scribble(t, r, file, 1000<<10, 4<<10, options != "cluster_size=4k,compat=0.10")
		files[options] = readFile(t, file)
	}
	files["ours"] = writeFile(t, qcow2.WriterOptions{ClusterSize: 4 << 10, Codec: qcow2.ZstdCodec(1)}, guest(300<<10, 1), "identity")
	files["ours, 512"] = writeFile(t, qcow2.WriterOptions{ClusterSize: 512, Codec: qcow2.ZlibCodec()}, guest(100<<10, 2), "identity")
	files["ours, plain"] = writeFile(t, qcow2.WriterOptions{ClusterSize: 64 << 10}, guest(600<<10, 3), "identity")
	return files
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Whatever qemu-img check finds in files that were broken at random, Check finds something too; and nothing in good ones.
func TestCheckOracle(t *testing.T) {
	qemutest.Require(t, "qemu-img", "qemu-io")
	seeds := foldSeeds(t, 40)
	for name, good := range oracleFiles(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			checkGood(t, good)
			file := filepath.Join(t.TempDir(), "a.qcow2")
			count := map[int]int{}
			for seed := range seeds {
				r := newRand(seed)
				b := bytes.Clone(good)
				if r.IntN(10) == 0 {
					b = b[:r.IntN(len(b))/512*512]
				}
				story := fmt.Sprintf("%d of %d bytes; ", len(b), len(good))
				if len(b) == len(good) {
					story += flipMetadata(r, b, metadata(r, b))
				}
				if err := os.WriteFile(file, b, 0o600); err != nil {
					t.Fatal(err)
				}
				status, out := qemuCheck(t, file)
				list, _, err := findings(t.Context(), b)
				count[status]++
				if status != 0 && len(list) == 0 && err == nil {
					t.Errorf("seed %d, %s: nothing found, but by qemu-img check, %d:\n%s", seed, story, status, out)
				}
			}
			t.Logf("by qemu-img check: %d good, %d corrupt, %d leaks, %d not opened", count[0], count[2], count[3], count[1])
		})
	}
}

// What another program does to a file of ours is found, and told from damage: a header that is another one, beside data
// that are still what they were.
func TestCheckAfterQEMU(t *testing.T) {
	qemutest.Require(t, "qemu-img", "qemu-io")
	content := random(newRand(1), 300<<10)
	clear(content[:64<<10])
	for _, test := range []struct {
		name     string
		change   func(t *testing.T, file string)
		want     string // the structure of a finding; "": there is none
		verified bool   // all data is
	}{
		{"read", func(t *testing.T, file string) { qemutest.IO(t, file, "read -q 0 300k") }, "", true},
		{"rebase", func(t *testing.T, file string) {
			qemutest.Create(t, "-f", "qcow2", filepath.Join(filepath.Dir(file), "other.qcow2"), "1M")
			qemutest.Run(t, "qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "other.qcow2", "-F", "qcow2", file)
		}, "header", true},
		{"resize", func(t *testing.T, file string) {
			qemutest.Run(t, "qemu-img", "resize", "-q", "-f", "qcow2", file, "1M")
		}, "header", true},
		{"write in place", func(t *testing.T, file string) { qemutest.IO(t, file, "write -q -P 7 128k 4k") }, "cluster", false},
		{"allocate", func(t *testing.T, file string) { qemutest.IO(t, file, "write -q -P 7 0 4k") }, "identity", false},
		{"snapshot", func(t *testing.T, file string) { qemutest.Run(t, "qemu-img", "snapshot", "-c", "one", file) }, "header", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "a.qcow2")
			if err := os.WriteFile(file, writeFile(t, qcow2.WriterOptions{}, content, "identity"), 0o600); err != nil {
				t.Fatal(err)
			}
			test.change(t, file)
			list, stats, err := findings(t.Context(), readFile(t, file))
			found := slices.ContainsFunc(list, func(f qcow2.Finding) bool { return f.Structure == test.want })
			if found != (test.want != "") || len(list) > 0 && !found || (stats.VerifiedBytes >= 236<<10) != test.verified {
				t.Errorf("%v, %+v, %v", list, stats, err)
			}
		})
	}
}
