package e2e

import (
	"bytes"
	"encoding/binary"
	"os"
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// swapFor gives a file other content, and the time of the old one, and back.
func swapFor(t *testing.T, name string, change func(b []byte) []byte) (undo func()) {
	t.Helper()
	was, err := os.ReadFile(name)
	must(t, err)
	stat, err := os.Stat(name)
	must(t, err)
	put := func(b []byte) {
		must(t, os.WriteFile(name, b, 0o600))
		must(t, os.Chtimes(name, stat.ModTime(), stat.ModTime()))
	}
	put(change(bytes.Clone(was)))
	return func() { put(was) }
}

// TestBaseLosesEntries makes a backup on a point whose L2 table has lost entries. The range that they stood for is zeroed meanwhile:
// were they believed, the new point would leave that out, and show the old data as soon as the entries are back.
func TestBaseLosesEntries(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	for name, args := range map[string][]string{"plain": nil, "keyed": {"--digest-key-file", keyFile(t, "a")}} {
		d := newDisk(t, pool, name, 4<<20)
		d.pool.IO(t, name, "write -P 1 0 4M")
		p := d.backup(t, append(args, "--cluster-size", "64K")...).Points[0]
		d.pool.IO(t, name, "write -z 1M 1M", "write -P 2 3M 64k")
		undo := swapFor(t, d.path(p), func(b []byte) []byte {
			const entry, first, n = 8, 16, 16 // clusters of 64 KiB from 1 MiB
			l1 := binary.BigEndian.Uint64(b[40:])
			l2 := binary.BigEndian.Uint64(b[l1:]) &^ (1 << 63)
			clear(b[l2+first*entry:][:n*entry])
			return b
		})
		r := d.backup(t, args...)
		d.wantFull(t, r, "can't be used")
		undo()
		d.wantRestored(t, p, args...)
		d.wantRestored(t, r.Points[0], args...)
		d.verify(t, 0, args...)
	}
}

// TestForgedBelowFold has a file, made by somebody who has not the key, lie below points that are merged. What it shows must not get
// digests with the key.
func TestForgedBelowFold(t *testing.T) {
	t.Parallel()
	d := newDisk(t, cephtest.Require(t).Pool(t), "vm", 4<<20)
	key := []string{"--digest-key-file", keyFile(t, "a")}
	var p []status.Point
	for _, step := range [][]string{{"64K", "write -P 1 0 4M"}, {"4K", "write -P 2 1M 4k"}, {"64K", "write -P 3 3M 64k"}} {
		d.pool.IO(t, "vm", step[1])
		p = append(p, d.backup(t, append(key, "--compress=none", "--cluster-size", step[0])...).Points...)
	}
	program.Run(t, "pin", d.dir, "vm@"+string(p[0].Point))
	undo := swapFor(t, d.path(p[0]), func(b []byte) []byte { return forged(t, b) })
	d.prune(t, 1, append(key, "--keep-last=1")...)
	if !strings.Contains(d.log, "without the key") {
		t.Errorf("prune says\n%s", d.log)
	}
	undo()
	d.wantPoints(t, p...)
	for _, point := range p {
		d.wantRestored(t, point, key...)
	}
	d.verify(t, 0, key...)
}

// forged is a file with the identity of another one, and data and digests that need no key.
func forged(t *testing.T, b []byte) []byte {
	t.Helper()
	h, err := qcow2.ReadHeader(bytes.NewReader(b), int64(len(b)))
	must(t, err)
	identity, err := h.Record.ReadIdentity(bytes.NewReader(b), int64(len(b)))
	must(t, err)
	out, err := os.CreateTemp(t.TempDir(), "")
	must(t, err)
	w, err := qcow2.NewWriter(out, qcow2.WriterOptions{Size: h.Size, ClusterSize: h.ClusterSize()})
	must(t, err)
	encoder, err := qcow2.NewChunkEncoder(nil)
	must(t, err)
	chunk := &qcow2.Chunk{Data: bytes.Repeat([]byte{0xee}, int(h.Size))}
	must(t, encoder.Encode(chunk, h.ClusterSize()))
	must(t, w.Append(chunk))
	must(t, w.Finish(identity))
	must(t, w.Close())
	must(t, out.Close())
	made, err := os.ReadFile(out.Name())
	must(t, err)
	return made
}
