package qcow2_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/lima-vm/go-qcow2reader"
	"github.com/lima-vm/go-qcow2reader/image"
	lima "github.com/lima-vm/go-qcow2reader/image/qcow2"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// Files of every cluster size and compression are read alike by qemu-img, qemu-io, nbdcopy from qemu-nbd, and Lima's
// reader, which shares no code with QEMU's or ours; so is an increment on each of them.
func TestCompatibility(t *testing.T) {
	qemutest.Require(t, "qemu-img", "qemu-io", "qemu-nbd", "nbdcopy")
	limaZstd()
	for _, codec := range []struct {
		name  string
		codec qcow2.Codec
	}{{"none", nil}, {"zlib", qcow2.ZlibCodec()}, {"zstd", qcow2.ZstdCodec(3)}} {
		for cluster := int64(512); cluster <= 2<<20; cluster *= 2 {
			t.Run(fmt.Sprint(codec.name, " ", cluster), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				base, content := compatBase(t, dir, cluster, codec.codec)
				readEverywhere(t, base, content)
				checkInfo(t, base, cluster, codec.codec)
				if cluster > 512 { // where the name of a backing file has no place
					readEverywhere(t, compatIncrement(t, dir, cluster, codec.codec, content), content)
				}
			})
		}
	}
}

// compatPattern is the byte of one run of the disk, for qemu-io to find.
const compatPattern = 0x5a

// compatBase writes six clusters: noise, text, a pattern, nothing, half of it noise, and a part of one.
func compatBase(t *testing.T, dir string, cluster int64, codec qcow2.Codec) (file string, content []byte) {
	t.Helper()
	r := newRand(uint64(cluster))
	content = make([]byte, 5*cluster+cluster/2/512*512)
	noise(r, content[:cluster])
	copy(content[cluster:2*cluster], strings.Repeat("All work and no play. ", int(cluster/22)))
	copy(content[2*cluster:3*cluster], bytes.Repeat([]byte{compatPattern}, int(cluster)))
	noise(r, content[4*cluster:4*cluster+cluster/2])
	noise(r, content[5*cluster:])
	file = filepath.Join(dir, "base.qcow2")
	b := writeFile(t, qcow2.WriterOptions{ClusterSize: cluster, Codec: codec}, content, "base")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return file, content
}

// compatIncrement hides the noise of the base behind a zero cluster, changes the text, and leaves the rest; in content too.
func compatIncrement(t *testing.T, dir string, cluster int64, codec qcow2.Codec, content []byte) string {
	t.Helper()
	file := filepath.Join(dir, "top.qcow2")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := qcow2.NewWriter(f, qcow2.WriterOptions{
		Size: int64(len(content)), ClusterSize: cluster, Codec: codec, BackingFile: "./base.qcow2",
	})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	encoder, err := qcow2.NewChunkEncoder(codec)
	if err != nil {
		t.Fatal(err)
	}
	clear(content[:cluster])
	if err := w.Zero(0, cluster); err != nil {
		t.Fatal(err)
	}
	changed := content[cluster : 2*cluster]
	copy(changed[cluster/2:], "a small change")
	c := qcow2.Chunk{Offset: cluster, Data: changed}
	if err := encoder.Encode(&c, cluster); err != nil {
		t.Fatal(err)
	}
	if err := w.Append(&c); err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(nil); err != nil {
		t.Fatal(err)
	}
	return file
}

// readEverywhere reads a file with every program there is.
func readEverywhere(t *testing.T, file string, want []byte) {
	t.Helper()
	qemutest.Check(t, file)
	raw, err := os.ReadFile(qemutest.Convert(t, file))
	if err != nil {
		t.Fatal(err)
	}
	compareContent(t, "qemu-img convert", raw, want)
	if raw, err = os.ReadFile(qemutest.NBDCopy(t, file)); err != nil {
		t.Fatal(err)
	}
	compareContent(t, "nbdcopy", raw, want)

	at := bytes.Index(want, bytes.Repeat([]byte{compatPattern}, 512))
	cluster := openChain(t, file).Header().ClusterSize()
	qemutest.IO(t, file, fmt.Sprintf("read -P %d %d %d", compatPattern, at, cluster), fmt.Sprintf("read -P 0 %d %d", 3*cluster, cluster))

	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	im, err := qcow2reader.OpenWithType(f, lima.Type)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	compareContent(t, "Lima's reader", readLima(t, im, cluster), want)
}

// readLima reads cluster by cluster, each to its end: for a compressed one ReadAt gives what a single Read of the
// decompressor does, which is a part of it or all of it with io.EOF, of QEMU's files as of ours.
func readLima(t *testing.T, im image.Image, cluster int64) []byte {
	t.Helper()
	if err := im.Readable(); err != nil {
		t.Fatalf("Lima's reader: %v", err)
	}
	b := make([]byte, im.Size())
	for done := int64(0); done < im.Size(); {
		n, err := im.ReadAt(b[done:min((done/cluster+1)*cluster, im.Size())], done)
		if n == 0 || err != nil && !errors.Is(err, io.EOF) {
			t.Fatalf("Lima's reader: %d bytes at %d of %d: %v", n, done, im.Size(), err)
		}
		done += int64(n)
	}
	return b
}

// limaZstd gives Lima's reader the decompressor that it does not have by itself.
func limaZstd() {
	lima.SetDecompressor(lima.CompressionTypeZstd, func(r io.Reader) (io.ReadCloser, error) {
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	})
}

func compareContent(t *testing.T, who string, got, want []byte) {
	t.Helper()
	want = append(bytes.Clone(want), make([]byte, (512-len(want)%512)%512)...)
	if len(got) != len(want) {
		t.Fatalf("%s: %d bytes instead of %d", who, len(got), len(want))
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s: differs from what was written at %d", who, firstDifference(got, want))
	}
}

func checkInfo(t *testing.T, file string, cluster int64, codec qcow2.Codec) {
	t.Helper()
	compression := qcow2.Zlib
	if codec != nil {
		compression = codec.Type()
	}
	info := qemutest.Info(t, file)
	data := info.FormatSpecific.Data
	if info.ClusterSize != cluster || info.DirtyFlag || data.Compat != "1.1" || data.Corrupt || data.ExtendedL2 ||
		data.RefcountBits != 16 || data.CompressionType != compression.String() {
		t.Errorf("qemu-img info: %+v", info)
	}
}

// QEMU knows whole sectors only: what is behind the end of an odd disk reads as zeroes.
func TestCompatibilityEmptyAndOdd(t *testing.T) {
	qemutest.Require(t, "qemu-img", "qemu-nbd", "nbdcopy")
	for _, size := range []int{0, 1, 511, 512, 513, 1000001} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			content := make([]byte, size)
			noise(newRand(uint64(size)), content)
			file := filepath.Join(t.TempDir(), "a.qcow2")
			if err := os.WriteFile(file, writeFile(t, qcow2.WriterOptions{}, content, ""), 0o600); err != nil {
				t.Fatal(err)
			}
			qemutest.Check(t, file)
			raw, err := os.ReadFile(qemutest.Convert(t, file))
			if err != nil {
				t.Fatal(err)
			}
			compareContent(t, "qemu-img convert", raw, content)
			if raw, err = os.ReadFile(qemutest.NBDCopy(t, file)); err != nil {
				t.Fatal(err)
			}
			compareContent(t, "nbdcopy", raw, content)
		})
	}
}
