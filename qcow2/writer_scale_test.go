package qcow2_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// scale is a large disk that is written in chunks of one kind, at equal distances.
type scale struct {
	size, cluster int64
	step, chunk   int64 // bytes
	codec         qcow2.Codec
	heap          int64 // what the Writer may take at most, bytes; the chunk does not count
}

func scales() map[string]scale {
	sparse := int64(8) // the race detector makes tables slow
	if long() {
		sparse = 1
	}
	return map[string]scale{
		// Every L2 table there is or, most often, every eighth, with one cluster in each.
		"16T": {16 << 40, 64 << 10, sparse * 512 << 20, 64 << 10, qcow2.ZstdCodec(1), 24 << 20},
		// The largest L1 table, 32 MiB, and every 64th L2 table or fewer.
		"8T": {8 << 40, 4 << 10, sparse * 128 << 20, 4 << 10, qcow2.ZstdCodec(1), 56 << 20},
		// No gaps, no compression.
		"64G": {64 << 30, 64 << 10, 1 << 20, 1 << 20, nil, 24 << 20},
	}
}

// write writes the disk to f and gives how much the heap grew.
func (s scale) write(t *testing.T, f qcow2.File) (heap int64) {
	t.Helper()
	c := encoded(t, nil, s.cluster, s.chunk, 1)
	if s.codec != nil {
		clear(c.Data[128:])
		e, err := qcow2.NewChunkEncoder(s.codec)
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Encode(c, s.cluster); err != nil {
			t.Fatal(err)
		}
	}
	before := heapSize()
	w, err := qcow2.NewWriter(f, qcow2.WriterOptions{Size: s.size, ClusterSize: s.cluster, Codec: s.codec})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for ; c.Offset < s.size; c.Offset += s.step {
		if err := w.Append(c); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish(nil); err != nil {
		t.Fatal(err)
	}
	return heapSize() - before
}

// heapSize is the largest size that the heap has had.
func heapSize() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapSys)
}

const scaleVariable = "RBD2QCOW2_TEST_SCALE" // for the child process: which one, and where to

// The memory of a Writer does not depend on how much it writes, and hardly on how large the disk is. It is measured in a
// process of its own. With RBD2QCOW2_TEST_LONG=1 there are more tables, and VerifyDigests reads all of them.
func TestWriterMemory(t *testing.T) {
	qemutest.Require(t, "qemu-img", "qemu-io")
	if name := os.Getenv(scaleVariable); name != "" {
		scales()[name].child(t)
		return
	}
	for name, s := range scales() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "large.qcow2")
			cmd := exec.Command(os.Args[0], "-test.run=^TestWriterMemory$")
			cmd.Env = append(os.Environ(), scaleVariable+"="+name, scaleVariable+"_FILE="+file)
			start := time.Now()
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("child: %v\n%s", err, out)
			}
			heap, err := strconv.ParseInt(string(match(t, `heap=(-?\d+)`, out)), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%.1f MiB of heap, peak of the process %s kB, %s", float64(heap)/(1<<20), match(t, `VmHWM:\s*(\d+)`, out), time.Since(start))
			if heap > s.heap {
				t.Errorf("%d bytes of heap, want at most %d", heap, s.heap)
			}
			if s.codec != nil {
				s.inspect(t, file)
			}
		})
	}
}

func match(t *testing.T, pattern string, b []byte) []byte {
	t.Helper()
	m := regexp.MustCompile(pattern).FindSubmatch(b)
	if m == nil {
		t.Fatalf("no %s in %s", pattern, b)
	}
	return m[1]
}

// child writes the disk, and prints the memory that it took.
func (s scale) child(t *testing.T) {
	t.Helper()
	var f qcow2.File = &countingFile{}
	if s.codec != nil {
		file, err := os.Create(os.Getenv(scaleVariable + "_FILE"))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		f = file
	}
	heap := s.write(t, f)
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("heap=%d\n%s", heap, status)
}

// inspect looks at what write wrote.
func (s scale) inspect(t *testing.T, file string) {
	t.Helper()
	want := make([]byte, s.cluster)
	noise(newRand(1), want)
	clear(want[128:])
	im, r := openChain(t, file), newRand(2)
	if im.Size() != s.size {
		t.Errorf("size %d", im.Size())
	}
	got := make([]byte, s.cluster)
	for range 200 {
		off := r.Int64N(s.size/s.step) * s.step
		if _, err := im.ReadAt(got, off); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("read at %d: %v", off, err)
		}
		if e, err := im.Extent(off + s.cluster); err != nil || e.Kind != qcow2.Unallocated {
			t.Fatalf("extent behind %d: %+v, %v", off, e, err)
		}
	}
	qemutest.IO(t, file, fmt.Sprintf("read -P 0 %d 1M", s.size-s.step+s.cluster))
	if info, err := os.Stat(file); err == nil {
		t.Logf("%d bytes, %d of them on disk", info.Size(), qemutest.Info(t, file).ActualSize)
	}
	start := time.Now()
	qemutest.Check(t, file)
	t.Logf("qemu-img check: %s", time.Since(start))
	if !long() {
		return
	}
	start = time.Now()
	if err := im.VerifyDigests(t.Context()); err != nil {
		t.Error(err)
	}
	t.Logf("verify: %s", time.Since(start))
}

// The Writer alone, and with what a ChunkEncoder does before it.
func BenchmarkWriter(b *testing.B) {
	for _, test := range []struct {
		name    string
		cluster int64
		codec   qcow2.Codec
		encode  bool
	}{
		{"none/64K", 64 << 10, nil, false},
		{"none/4K", 4 << 10, nil, false},
		{"encode/none/64K", 64 << 10, nil, true},
		{"encode/none/4K", 4 << 10, nil, true},
		{"encode/zstd/64K", 64 << 10, qcow2.ZstdCodec(1), true},
		{"encode/zlib/64K", 64 << 10, qcow2.ZlibCodec(), true},
	} {
		b.Run(test.name, func(b *testing.B) {
			w, err := qcow2.NewWriter(&countingFile{}, qcow2.WriterOptions{Size: 1 << 42, ClusterSize: test.cluster, Codec: test.codec})
			if err != nil {
				b.Fatal(err)
			}
			defer w.Close()
			e, err := qcow2.NewChunkEncoder(test.codec)
			if err != nil {
				b.Fatal(err)
			}
			c := &qcow2.Chunk{Data: halfRandom(newRand(1), 1<<20)}
			if err := e.Encode(c, test.cluster); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(1 << 20)
			b.ReportAllocs()
			for b.Loop() {
				if test.encode {
					if err := e.Encode(c, test.cluster); err != nil {
						b.Fatal(err)
					}
				}
				if err := w.Append(c); err != nil {
					b.Fatal(err)
				}
				c.Offset += 1 << 20
			}
		})
	}
}
