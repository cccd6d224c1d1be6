package qemutest

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
)

// Check fails the test if qemu-img finds an error or a leaked cluster in a qcow2 file.
func Check(t testing.TB, file string) {
	t.Helper()
	Run(t, "qemu-img", "check", "-f", "qcow2", file)
}

// Create makes an image with "qemu-img create".
func Create(t testing.TB, args ...string) {
	t.Helper()
	Run(t, "qemu-img", append([]string{"create", "-q"}, args...)...)
}

// Convert reads an image through its whole backing chain into a new raw file and returns its name.
func Convert(t testing.TB, file string) string {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "converted.raw")
	Run(t, "qemu-img", "convert", "-f", format(file), "-O", "raw", file, raw)
	return raw
}

// Compare fails the test unless two images have the same size, rounded up to 512 bytes by QEMU, and the same bytes.
func Compare(t testing.TB, a, b string) {
	t.Helper()
	out := Run(t, "qemu-img", "compare", "-f", format(a), "-F", format(b), a, b)
	if bytes.Contains(out, []byte("size mismatch")) {
		t.Fatalf("compare %s with %s: %s", a, b, out)
	}
}

// IO runs commands in one qemu-io, with discard enabled, and returns what it printed. A failed command or a pattern that
// read -P does not find fails the test. The image is a file or, if it starts with "driver=", a set of --image-opts.
func IO(t testing.TB, image string, commands ...string) string {
	t.Helper()
	args := []string{"-d", "unmap"}
	for _, command := range commands {
		args = append(args, "-c", command)
	}
	if strings.HasPrefix(image, "driver=") {
		args = append(args, "--image-opts", image)
	} else {
		args = append(args, "-f", format(image), image)
	}
	return string(Run(t, "qemu-io", args...))
}

// NBDCopy reads an image through qemu-nbd into a new raw file and returns its name: a second way beside [Convert], by a
// client that is not QEMU.
func NBDCopy(t testing.TB, file string) string {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "copied.raw")
	Run(t, "nbdcopy", "--", "[", "qemu-nbd", "-r", "-f", format(file), file, "]", raw)
	return raw
}

// ImageInfo is what "qemu-img info" says of an image. Sizes are in bytes.
type ImageInfo struct {
	Format            string `json:"format"`
	VirtualSize       int64  `json:"virtual-size"`
	ActualSize        int64  `json:"actual-size"` // allocated on disk
	ClusterSize       int64  `json:"cluster-size"`
	BackingFile       string `json:"backing-filename"` // as the header has it
	FullBackingFile   string `json:"full-backing-filename"`
	BackingFileFormat string `json:"backing-filename-format"`
	DirtyFlag         bool   `json:"dirty-flag"`
	FormatSpecific    struct {
		Data QCOW2Info `json:"data"`
	} `json:"format-specific"`
}

// QCOW2Info is the part of [ImageInfo] that only qcow2 has.
type QCOW2Info struct {
	Compat          string `json:"compat"`
	CompressionType string `json:"compression-type"`
	RefcountBits    int    `json:"refcount-bits"`
	LazyRefcounts   bool   `json:"lazy-refcounts"`
	ExtendedL2      bool   `json:"extended-l2"`
	Corrupt         bool   `json:"corrupt"`
}

// Info returns what qemu-img says of an image.
func Info(t testing.TB, file string) ImageInfo {
	t.Helper()
	var info ImageInfo
	decode(t, &info, "info", "-f", format(file), "--output=json", file)
	return info
}

// Extent is a range of an image with one allocation state. Start, Length and Offset are in bytes.
type Extent struct {
	Start   int64  `json:"start"`
	Length  int64  `json:"length"`
	Depth   int    `json:"depth"`   // 0: this file, 1: its backing file, …
	Present bool   `json:"present"` // allocated anywhere in the chain
	Zero    bool   `json:"zero"`    // reads as zeros
	Data    bool   `json:"data"`    // has data, even if zero
	Offset  *int64 `json:"offset"`  // in the host file; nil if there is none, as for compressed data
}

// Map returns the allocation of an image and its backing chain, in guest order and without gaps.
func Map(t testing.TB, file string) []Extent {
	t.Helper()
	var extents []Extent
	decode(t, &extents, "map", "-f", format(file), "--output=json", file)
	return extents
}

func decode(t testing.TB, value any, args ...string) {
	t.Helper()
	out := Run(t, "qemu-img", args...)
	if err := json.Unmarshal(out, value); err != nil {
		t.Fatalf("decode qemu-img %s: %v\n%s", args[0], err, out)
	}
}

func format(file string) string {
	if strings.HasSuffix(file, ".qcow2") {
		return "qcow2"
	}
	return "raw"
}
