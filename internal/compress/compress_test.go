package compress

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

func TestParse(t *testing.T) {
	for s, want := range map[string]string{
		"none": "none", "zlib": "zlib", "zstd": "zstd:1", "zstd:1": "zstd:1", "zstd:19": "zstd:19",
		"": "", "gzip": "", "none:1": "", "zlib:9": "", "zstd:": "", "zstd:0": "", "zstd:20": "", "zstd:x": "", "zstd:-1": "",
	} {
		name, codec, err := Parse(s)
		if name != want || (err == nil) != (want != "") || (codec != nil) != (want != "" && want != "none") {
			t.Errorf("%q: %q, %v, %v", s, name, codec, err)
		}
	}
}

// write writes content with a codec to a new file.
func write(t *testing.T, content []byte, cluster int64, codec qcow2.Codec) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "a.qcow2")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := qcow2.NewWriter(f, qcow2.WriterOptions{Size: int64(len(content)), ClusterSize: cluster, Codec: codec})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	e, err := qcow2.NewChunkEncoder(codec)
	if err != nil {
		t.Fatal(err)
	}
	step := max(cluster, 1<<20)
	for off := int64(0); off < int64(len(content)); off += step {
		data := bytes.Clone(content[off:min(off+step, int64(len(content)))])
		data = append(data, make([]byte, (cluster-int64(len(data))%cluster)%cluster)...)
		c := qcow2.Chunk{Offset: off, Data: data}
		if err := e.Encode(&c, cluster); err != nil {
			t.Fatal(err)
		}
		if err := w.Append(&c); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish(nil); err != nil {
		t.Fatal(err)
	}
	return file
}

// What libzstd compresses, QEMU and the decoder in pure Go decompress, at every cluster size and at the ends of the levels.
func TestLibzstd(t *testing.T) {
	qemutest.Require(t, "qemu-img")
	for _, level := range []int{1, 3, 19} {
		_, codec, err := Parse(fmt.Sprint("zstd:", level))
		if err != nil {
			t.Fatal(err)
		}
		for cluster := int64(512); cluster <= 2<<20; cluster *= 2 {
			t.Run(fmt.Sprint(level, " ", cluster), func(t *testing.T) {
				t.Parallel()
				r := rand.New(rand.NewPCG(uint64(level), uint64(cluster)))
				content := make([]byte, 12*cluster+512)
				for off := int64(0); off < 12*cluster; off += cluster {
					part := content[off : off+cluster]
					switch off / cluster % 4 {
					case 0:
						copy(part, bytes.Repeat([]byte{byte(r.Uint32())}, len(part)))
					case 1:
						copy(part, strings.Repeat(fmt.Sprintln("line", r.Uint32()), len(part)/6))
					case 2: // compresses by a random part
						for i := range part[r.IntN(len(part)):] {
							part[i] = byte(r.Uint32())
						}
					}
				}
				content[len(content)-1] = 1
				check(t, write(t, content, cluster, codec), content)
			})
		}
	}
}

func check(t *testing.T, file string, content []byte) {
	t.Helper()
	qemutest.Check(t, file)
	raw, err := os.ReadFile(qemutest.Convert(t, file))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(raw, content) {
		t.Error("qemu-img convert: differs from what was written")
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	im, err := qcow2.Open(f, info.Size(), qcow2.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := im.VerifyDigests(t.Context()); err != nil {
		t.Error(err)
	}
}

// Files are hardly larger than QEMU's of the same data, which is Go's own source and tools here. QEMU compresses at zstd's
// default level, 3. RBD2QCOW2_TEST_SIZE_FROM names another folder, of which 256 MiB are taken instead of 32.
func TestSizeAgainstQEMU(t *testing.T) {
	qemutest.Require(t, "qemu-img")
	folder, limit := strings.TrimSpace(string(qemutest.Run(t, "go", "env", "GOROOT"))), 32<<20
	if other := os.Getenv("RBD2QCOW2_TEST_SIZE_FROM"); other != "" {
		folder, limit = other, 256<<20
	}
	content := realFiles(t, folder, limit)
	raw := filepath.Join(t.TempDir(), "content.raw")
	if err := os.WriteFile(raw, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, options := range map[string]string{"zstd:3": "compression_type=zstd", "zlib": "compression_type=zlib", "none": ""} {
		bound := 1.05
		if name == "zlib" { // where pure Go does not search as long as zlib
			bound = 1.1
		}
		t.Run(name, func(t *testing.T) {
			theirs := filepath.Join(t.TempDir(), "qemu.qcow2")
			args := []string{"convert", "-f", "raw", "-O", "qcow2", raw, theirs}
			if options != "" {
				args = append([]string{"convert", "-c", "-o", options}, args[1:]...)
			}
			qemutest.Run(t, "qemu-img", args...)
			_, codec, err := Parse(name)
			if err != nil {
				t.Fatal(err)
			}
			mine := write(t, content, 64<<10, codec)
			got, want := length(t, mine), length(t, theirs)
			ratio := float64(got) / float64(want)
			t.Logf("%d MiB: %d bytes, QEMU %d: %.4f", len(content)>>20, got, want, ratio)
			if ratio > bound {
				t.Errorf("%.3f times the size of QEMU's file", ratio)
			}
		})
	}
}

func length(t *testing.T, file string) int64 {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// realFiles gives the content of the files in a folder, up to a limit.
func realFiles(t *testing.T, folder string, limit int) []byte {
	t.Helper()
	var content []byte
	err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if len(content) >= limit {
			return fs.SkipAll
		}
		b, err := os.ReadFile(path)
		content = append(content, b...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(content) < limit {
		t.Fatalf("only %d bytes in %s", len(content), folder)
	}
	return content[:limit]
}
