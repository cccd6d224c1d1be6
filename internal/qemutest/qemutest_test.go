package qemutest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestChain(t *testing.T) {
	Require(t, "qemu-img", "qemu-io", "qemu-nbd", "nbdcopy")
	dir := t.TempDir()
	base, top := filepath.Join(dir, "base.qcow2"), filepath.Join(dir, "top.qcow2")
	Create(t, "-f", "qcow2", "-o", "compression_type=zstd", base, "1M")
	IO(t, base, "write -P 1 0 64k", "write -c -P 2 128k 64k")
	Create(t, "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", top)
	IO(t, top, "write -z 64k 64k", "read -P 1 0 64k")
	Check(t, base)
	Check(t, top)

	info := Info(t, top)
	if info.Format != "qcow2" || info.VirtualSize != 1<<20 || info.ClusterSize != 64<<10 ||
		info.BackingFile != "base.qcow2" || info.BackingFileFormat != "qcow2" {
		t.Errorf("info of top: %+v", info)
	}
	if got := Info(t, base).FormatSpecific.Data.CompressionType; got != "zstd" {
		t.Errorf("compression of base: %q", got)
	}

	extents := Map(t, top)
	if len(extents) != 4 || extents[0].Depth != 1 || !extents[1].Zero || extents[1].Depth != 0 || extents[2].Offset != nil {
		t.Errorf("map of top: %+v", extents)
	}

	raw := Convert(t, top)
	Compare(t, raw, top)
	Compare(t, raw, NBDCopy(t, top))
	IO(t, "driver=raw,file.filename="+raw, "read -P 2 128k 64k")
}

// A judge that never condemns is none.
func TestFailures(t *testing.T) {
	Require(t, "qemu-img", "qemu-io")
	file := filepath.Join(t.TempDir(), "a.qcow2")
	Create(t, "-f", "qcow2", file, "1M")
	for name, args := range map[string][]string{
		"pattern":     {"qemu-io", "-f", "qcow2", "-c", "read -P 1 0 4k", file},
		"bad command": {"qemu-io", "-f", "qcow2", "-c", "write 2M 4k", file},
		"not qcow2":   {"qemu-img", "check", "-f", "qcow2", os.DevNull},
	} {
		if _, err := Try(args[0], args[1:]...); err == nil || !strings.Contains(err.Error(), args[0]) {
			t.Errorf("%s: got error %v", name, err)
		}
	}
}
