package qcow2_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// findings is all that Check has to say of a file by itself. A file that can't be opened has one finding.
func findings(ctx context.Context, b []byte) ([]qcow2.Finding, qcow2.CheckStats, error) {
	key, err := qcow2.NewDigestKey(bytes.Repeat([]byte{1}, qcow2.DigestKeySize)) // of those files that have one
	if err != nil {
		return nil, qcow2.CheckStats{}, err
	}
	im, err := qcow2.Open(bytes.NewReader(b), int64(len(b)), qcow2.OpenOptions{Alone: true, Key: key})
	var corrupt *qcow2.CorruptError
	switch {
	case errors.As(err, &corrupt):
		return []qcow2.Finding{{Kind: qcow2.Corruption, Structure: corrupt.Structure, Message: corrupt.Reason}}, qcow2.CheckStats{}, nil
	case err != nil:
		return nil, qcow2.CheckStats{}, err
	}
	var list []qcow2.Finding
	o := qcow2.CheckOptions{Data: true, Parallel: 2, Report: func(f qcow2.Finding) { list = append(list, f) }}
	stats, err := im.Check(ctx, o)
	return list, stats, err
}

// checkGood fails the test if Check finds anything in a file.
func checkGood(t testing.TB, b []byte) qcow2.CheckStats {
	t.Helper()
	list, stats, err := findings(t.Context(), b)
	if err != nil || !stats.Good() {
		t.Errorf("check of a good file: %v", err)
	}
	for _, f := range list {
		t.Errorf("in a good file: %s", f)
	}
	return stats
}

// checkSound is checkGood but for what a fold leaves that was cut short: the file is longer than its record says.
func checkSound(t testing.TB, b []byte) {
	t.Helper()
	list, _, err := findings(t.Context(), b)
	if err != nil {
		t.Errorf("check: %v", err)
	}
	for _, f := range list {
		if f.Kind != qcow2.Leak || f.Structure != "file" {
			t.Errorf("in a sound file: %s", f)
		}
	}
}

func TestCheckGood(t *testing.T) {
	for _, cluster := range []int64{512, 4 << 10, 64 << 10, 2 << 20} {
		for _, codec := range []qcow2.Codec{nil, qcow2.ZlibCodec(), qcow2.ZstdCodec(3)} {
			o := qcow2.WriterOptions{ClusterSize: cluster, Codec: codec}
			if cluster > 512 {
				o.BackingFile = "./below.qcow2"
			}
			stats := checkGood(t, writeFile(t, o, guest(9<<20+512, uint64(cluster)), "identity"))
			end := (9<<20 + 512 + cluster - 1) / cluster * cluster
			if n := stats.VerifiedBytes; n > 9<<20+512 || n < (stats.DataClusters-1)*cluster || stats.DataClusters > end/cluster {
				t.Errorf("clusters of %d: %+v", cluster, stats)
			}
		}
	}
	for _, size := range []int{0, 512, 1 << 20} {
		checkGood(t, writeFile(t, qcow2.WriterOptions{}, make([]byte, size), "empty"))
	}
}

// dataOffset is where the data of an uncompressed cluster lies in a file.
func dataOffset(t *testing.T, b, content []byte) int {
	t.Helper()
	at := bytes.Index(b, content)
	if at < 0 {
		t.Fatal("no such data")
	}
	return at
}

// Each damaged range of the disk is told, joined, in ascending order, whatever goes on beside.
func TestCheckGoesOn(t *testing.T) {
	const cluster = 4 << 10
	content := random(newRand(1), 9<<20) // more than a piece, and five tables
	for parallel := range 5 {
		b := writeFile(t, qcow2.WriterOptions{ClusterSize: cluster}, content, "identity")
		want := []qcow2.Range{
			{Offset: 0, Length: cluster},
			{Offset: 3 * cluster, Length: 2 * cluster},
			{Offset: 511 * cluster, Length: 2 * cluster},
			{Offset: 9<<20 - cluster, Length: cluster},
		}
		for _, r := range want {
			for off := r.Offset; off < r.End(); off += cluster {
				b[dataOffset(t, b, content[off:off+cluster])+17] ^= 1
			}
		}
		im, err := openBytes(b, nil)
		if err != nil {
			t.Fatal(err)
		}
		var got []qcow2.Range
		stats, err := im.Check(t.Context(), qcow2.CheckOptions{Data: true, Parallel: parallel, Report: func(f qcow2.Finding) {
			if f.Kind != qcow2.Damage || f.Structure != "cluster" || f.Host.Length < cluster {
				t.Errorf("%+v", f)
			}
			got = append(got, f.Guest)
		}})
		if err != nil || !slices.Equal(got, want) || stats.Damages != 4 || stats.VerifiedBytes != 9<<20-6*cluster {
			t.Errorf("%d at a time: %v, %+v, %v", parallel, got, stats, err)
		}
		var corrupt *qcow2.CorruptError
		if err := im.VerifyDigests(t.Context()); !errors.As(err, &corrupt) || corrupt.Offset != 0 {
			t.Errorf("verify digests: %v", err)
		}
	}
}

func TestCheckSample(t *testing.T) {
	o := qcow2.WriterOptions{ClusterSize: 4 << 10, Codec: qcow2.ZstdCodec(1)}
	b := writeFile(t, o, halfRandom(newRand(1), 9<<20), "identity")
	im, err := openBytes(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	end, n := int64(0), 0
	sample := func(r qcow2.Range) bool {
		if r.Offset < end {
			t.Errorf("asked for %+v behind %d", r, end)
		}
		end = r.End()
		n++
		return n%2 == 0
	}
	stats, err := im.Check(t.Context(), qcow2.CheckOptions{Data: true, Sample: sample})
	all := stats.DataClusters * 4 << 10
	if err != nil || !stats.Good() || stats.VerifiedBytes == 0 || stats.VerifiedBytes+stats.SkippedBytes != all {
		t.Errorf("%+v, %v", stats, err)
	}
}

func TestCheckCanceled(t *testing.T) {
	im, err := openBytes(writeFile(t, qcow2.WriterOptions{ClusterSize: 512}, random(newRand(1), 1<<20), ""), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	o := qcow2.CheckOptions{Data: true, Sample: func(qcow2.Range) bool { cancel(); return true }}
	if _, err := im.Check(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled among the data: %v", err)
	}
	if _, err := im.Check(ctx, qcow2.CheckOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled before: %v", err)
	}
}

// What is wrong is told by its name and place.
func TestCheckFindings(t *testing.T) {
	content := random(newRand(1), 64<<10)
	clear(content[:4<<10])
	good := writeFile(t, qcow2.WriterOptions{ClusterSize: 4 << 10, BackingFile: "./below.qcow2"}, content, "identity")
	h, err := qcow2.ReadHeader(bytes.NewReader(good), int64(len(good)))
	if err != nil {
		t.Fatal(err)
	}
	record, block := h.Record, h.RefTableOffset+4<<10 // of refcounts, the only one
	flip := func(at int64) func([]byte) []byte { return func(b []byte) []byte { b[at] ^= 1; return b } }
	set := func(at int64, value byte) func([]byte) []byte {
		return func(b []byte) []byte { b[at] = value; return b }
	}
	for _, test := range []struct {
		name   string
		change func(b []byte) []byte
		want   string // how a finding begins
	}{
		{"record", flip(200), "corruption: record, file bytes 0 to 512: wrong checksum"},
		{"backing name", flip(514), "corruption: header, file bytes 0 to 512: its hash is another"},
		{"magic of the record", flip(130), "corruption: record, file bytes 136 to 144: it is no header"},
		{"identity", flip(record.IdentityOffset), "damage: identity"},
		{"directory", flip(record.DirectoryOffset), "damage: digest directory"},
		{"digests", flip(int64(len(good)) - 1), "damage: digest block, disk bytes 0 to 65536"},
		{"shorter", func(b []byte) []byte { return b[:len(b)-1] }, "damage: file"},
		{"longer", func(b []byte) []byte { return append(b, 1) }, "leak: file"},
		{"first cluster", flip(3000), "damage: unused bytes, file bytes 3000 to 3001"},
		{"L1 table", flip(h.L1Offset + 100), "damage: unused bytes"},
		{"COPIED", set(h.L1Offset, 0), "corruption: L1 entry"},
		{"refcount", set(block+3, 0), "corruption: refcount, file bytes 4096 to 8192: 0, but 1"},
		{"leak", set(block+3, 2), "leak: refcount, file bytes 4096 to 8192: 2, but 1"},
		{"behind the end", set(block+4<<10-1, 2), "leak: refcount"},
		{"refcount table", set(h.RefTableOffset+7, 1), "corruption: refcount table"},
	} {
		list, stats, err := findings(t.Context(), test.change(bytes.Clone(good)))
		told := slices.ContainsFunc(list, func(f qcow2.Finding) bool { return strings.HasPrefix(f.String(), test.want) })
		if err != nil || !told {
			t.Errorf("%s: %v, %+v, %v", test.name, list, stats, err)
		}
		if test.name == "backing name" && stats.VerifiedBytes != 60<<10 {
			t.Errorf("beside a changed header %d bytes are verified", stats.VerifiedBytes)
		}
		if n := stats.Corruptions + stats.Leaks + stats.Damages; n != int64(len(list)) {
			t.Errorf("%s: %d findings, %d counted", test.name, len(list), n)
		}
	}
}

// Files that other programs made and folds changed are good too.
func TestCheckFoldForeign(t *testing.T) {
	qemutest.Require(t, "qemu-img", "qemu-io")
	sizes := []int64{64 << 10, 3<<20 + 512, 2 << 20, 4<<20 + 512, 3 << 20}
	c := newForeignChain(t, 1, sizes, func(int) string { return "compat=1.1" })
	for i := 1; len(c.names) > 2; {
		c.fold(t, i, len(c.names)%2 == 0)
		checkGood(t, readFile(t, c.path(i)))
	}
}

// badSector is a file of which some bytes can't be read.
type badSector struct {
	*bytes.Reader
	from, to int64
}

func (f badSector) ReadAt(p []byte, off int64) (int, error) {
	if off < f.to && off+int64(len(p)) > f.from {
		return 0, &os.PathError{Op: "read", Path: "a.qcow2", Err: syscall.EIO}
	}
	return f.Reader.ReadAt(p, off)
}

// Data on a bad sector is damage; without tables there is nothing to check.
func TestCheckUnreadable(t *testing.T) {
	content := halfRandom(newRand(1), 300<<10)
	for _, codec := range []qcow2.Codec{nil, qcow2.ZlibCodec()} {
		b := writeFile(t, qcow2.WriterOptions{ClusterSize: 4 << 10, Codec: codec}, content, "identity")
		f := badSector{bytes.NewReader(b), 30 << 10, 31 << 10}
		im, err := qcow2.Open(f, int64(len(b)), qcow2.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		o := qcow2.CheckOptions{Data: true, Report: func(f qcow2.Finding) {
			if f.Structure != "cluster" || f.Guest.Length < 4<<10 || !strings.Contains(f.Message, syscall.EIO.Error()) {
				t.Errorf("%s", f)
			}
		}}
		if stats, err := im.Check(t.Context(), o); err != nil || stats.Damages != 1 || stats.Corruptions+stats.Leaks > 0 {
			t.Errorf("%+v, %v", stats, err)
		}
		f.from, f.to = im.Header().L1Offset, im.Header().L1Offset+8
		if im, err = qcow2.Open(f, int64(len(b)), qcow2.OpenOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := im.Check(t.Context(), qcow2.CheckOptions{}); !errors.Is(err, syscall.EIO) {
			t.Errorf("without an L1 table: %v", err)
		}
	}
}
