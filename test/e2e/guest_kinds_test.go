package e2e

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
)

// partition is what a test puts into a partition: what mkfs makes of a file of that size.
type partition struct {
	mib  int
	kind string   // for sfdisk
	mkfs []string // without the name of the file; nil: leave the file as it is
	file string
}

// TestVerifyFsckKinds checks what is usual on disks, by a table of each kind: good, and with damage in each file system.
func TestVerifyFsckKinds(t *testing.T) {
	t.Parallel()
	requireFsck(t)
	qemutest.Require(t, "sfdisk", "mkfs.fat", "fsck.fat", "mkfs.btrfs", "btrfs", "mkswap", "mkfs.minix")
	pool := cephtest.Require(t).Pool(t)
	fat := &partition{mib: 34, kind: "uefi", mkfs: []string{"mkfs.fat", "-F", "32"}}
	btrfs := &partition{mib: 128, kind: "linux", mkfs: []string{"mkfs.btrfs", "-q"}}
	// Swap space is passed over by its type, and by what is in it.
	swap, hidden := &partition{mib: 2, kind: "swap"}, &partition{mib: 2, kind: "linux", mkfs: []string{"mkswap"}}
	unknown := &partition{mib: 2, kind: "linux", mkfs: []string{"mkfs.minix"}}
	gpt := []*partition{fat, btrfs, swap, hidden, unknown}
	pool.ImportFile(t, makeTable(t, "gpt", gpt...), "gpt")
	d := &disk{pool: pool, image: "gpt", dir: program.Init(t), truth: map[string]content{}}
	d.backup(t)
	d.wantFsck(t, 3, "", "partition 1 (vfat): good", "partition 2 (btrfs): good", "partition 5 (minix): there is no checker")

	b, err := os.ReadFile(fat.file)
	must(t, err)
	const reserved = 14                                                         // where the number of sectors before the first FAT is
	wipe(t, fat.file, int64(binary.LittleEndian.Uint16(b[reserved:]))*512, 512) // the second one is not like it any more
	for _, block := range checksumTrees(t, btrfs.file) {
		wipe(t, btrfs.file, block, 32)
	}
	pool.Update(t, "gpt", makeTable(t, "gpt", gpt...))
	d.backup(t)
	d.wantFsck(t, 4, "", "partition 1 (vfat): fsck.fat -n: ", "partition 2 (btrfs): btrfs check: ", "partition 5 (minix): ")
	d.check(t)

	ext := &partition{mib: 16, kind: "linux", mkfs: []string{"mkfs.ext4", "-q"}}
	pool.ImportFile(t, makeTable(t, "dos", ext), "dos")
	d = &disk{pool: pool, image: "dos", dir: program.Init(t), truth: map[string]content{}}
	d.backup(t)
	d.wantFsck(t, 0, "", "partition 5 (ext4): good")
	wipe(t, ext.file, 4096, 4096) // the descriptors of its groups
	pool.Update(t, "dos", makeTable(t, "dos", ext))
	d.backup(t)
	d.wantFsck(t, 4, "", "partition 5 (ext4): e2fsck ")
	d.check(t)
}

// makeTable makes a disk of partitions, of which it makes the files that are not yet there. With a table for a BIOS ("dos") all are
// logical ones, which begin with number 5.
func makeTable(t *testing.T, table string, parts ...*partition) (raw string) {
	t.Helper()
	script, at := "label: "+table+"\n", 1
	if table == "dos" {
		script, at = script+"start=2048, type=extended\n\n\n\n", 2 // MiB: the first is the logical ones' table
	}
	raw = filepath.Join(t.TempDir(), "disk.raw")
	var copies [][]string
	for _, p := range parts {
		p.make(t)
		script += "start=" + strconv.Itoa(at*2048) + ", size=" + strconv.Itoa(p.mib*2048) + ", type=" + p.kind + "\n"
		copies = append(copies, []string{"if=" + p.file, "of=" + raw, "bs=1M", "seek=" + strconv.Itoa(at), "conv=sparse,notrunc", "status=none"})
		at += p.mib + 1
	}
	must(t, os.WriteFile(raw, nil, 0o600))
	must(t, os.Truncate(raw, int64(at+1)<<20))
	qemutest.Run(t, "bash", "-c", `printf %s "$1" | sfdisk --quiet "$2"`, "bash", script, raw)
	for _, args := range copies {
		qemutest.Run(t, "dd", args...)
	}
	return raw
}

func (p *partition) make(t *testing.T) {
	t.Helper()
	if p.file != "" {
		return
	}
	p.file = filepath.Join(t.TempDir(), "partition.raw")
	must(t, os.WriteFile(p.file, nil, 0o600))
	must(t, os.Truncate(p.file, int64(p.mib)<<20))
	if p.mkfs != nil {
		qemutest.Run(t, p.mkfs[0], append(p.mkfs[1:], p.file)...)
	}
}

// checksumTrees gives where the blocks of btrfs's tree of checksums are in a file: a block begins with its own checksum, and has the
// file system's UUID and the number of its tree.
func checksumTrees(t *testing.T, file string) (offsets []int64) {
	t.Helper()
	const superblock, block, uuid, tree, checksums = 64 << 10, 16 << 10, 0x20, 0x58, 7
	b, err := os.ReadFile(file)
	must(t, err)
	id := b[superblock+uuid:][:16]
	for off := 0; off < len(b); off += block {
		if bytes.Equal(b[off+uuid:][:16], id) && binary.LittleEndian.Uint64(b[off+tree:]) == checksums {
			offsets = append(offsets, int64(off))
		}
	}
	if len(offsets) == 0 {
		t.Fatal("no tree of checksums found")
	}
	return offsets
}
