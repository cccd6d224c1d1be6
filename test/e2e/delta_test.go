package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

// TestDelta: of 10 GiB of which 50 MiB have changed, hardly more than what differs is written, by what the
// program says and by what the OSD has received; to the newest and to an older point, and by both ways of finding what differs.
func TestDelta(t *testing.T) {
	t.Parallel()
	pool := cephtest.Own(t).Pool(t) // nobody else writes to its OSD
	d := newDisk(t, pool, "vm", 10<<30)
	b := &blocks{patterns: make([]byte, 10<<30/blockSize), rng: rand.New(rand.NewPCG(1, 1))}
	b.fill(t, d)
	backUp := func() (status.Point, []byte) {
		b.change(t, d)
		return d.run(t, "--", d.image).Images[0].Points[0], slices.Clone(b.patterns)
	}
	d.run(t, "--", d.image)
	older, olderPatterns := backUp()
	newest, newestPatterns := backUp()

	restore := func(method string, p status.Point, want []byte) {
		t.Helper()
		b.change(t, d)
		differs := b.differing(want)
		before := received(t, pool)
		r := d.restoreInPlace(t, p.Point)
		got := received(t, pool) - before
		t.Logf("%s: %d bytes differ; %d were read, %d written, %d zeroed, and the OSD received %d",
			method, differs, r.Read, r.Written, r.Zeroed, got)
		most := differs * 13 / 10
		if n := r.Written + r.Zeroed; r.Method != method || n < differs || n > most || got < r.Written || got > most {
			t.Errorf("%d bytes differ, the OSD received %d, and the program says %+v", differs, got, r)
		}
		qemutest.Compare(t, d.path(p), pool.QEMUName(d.image))
		b.patterns = slices.Clone(want)
	}
	restore("diff", newest, newestPatterns)
	restore("diff", older, olderPatterns)
	pool.RemoveSnapshot(t, d.image+"@"+newest.Snapshot)
	restore("compare", newest, newestPatterns)
	restore("compare", older, olderPatterns)
}

const blockSize = 4 << 10

// blocks knows what a disk holds.
type blocks struct {
	patterns []byte // of each block, the byte that it is full of
	rng      *rand.Rand
}

// Every 160 MiB there is an area of 4 MiB with data, and one without in the beginning. Lengths are in blocks.
const (
	area    = 4 << 20 / blockSize
	spacing = 160 << 20 / blockSize
)

func (b *blocks) fill(t *testing.T, d *disk) {
	t.Helper()
	var commands []string
	for at := 0; at < len(b.patterns); at += spacing {
		commands = append(commands, b.write(at, area))
	}
	d.pool.IO(t, d.image, commands...)
}

// change writes 50 MiB: 700 times 64 KiB, and 1600 blocks.
func (b *blocks) change(t *testing.T, d *disk) {
	t.Helper()
	var commands []string
	for i := range 700 + 1600 {
		n := 1
		if i < 700 {
			n = 16
		}
		at := b.rng.IntN(len(b.patterns)/spacing)*spacing + b.rng.IntN(area-n+1)
		if i%10 == 0 {
			at += area
		}
		commands = append(commands, b.write(at, n))
	}
	d.pool.IO(t, d.image, commands...)
}

// write is the command that fills n blocks, with zeroes now and then.
func (b *blocks) write(at, n int) string {
	pattern := byte(b.rng.Uint32())
	for i := range n {
		b.patterns[at+i] = pattern
	}
	return fmt.Sprintf("write -P %d %d %d", pattern, at*blockSize, n*blockSize)
}

// differing is in how many bytes the disk differs from what it was.
func (b *blocks) differing(was []byte) (n int64) {
	for i := range was {
		if b.patterns[i] != was[i] {
			n += blockSize
		}
	}
	return n
}

// received is how many bytes came to the OSD so far with operations that write.
func received(t *testing.T, pool *cephtest.Pool) int64 {
	t.Helper()
	var counters struct {
		OSD struct {
			Writes     int64 `json:"op_w_in_bytes"`
			ReadWrites int64 `json:"op_rw_in_bytes"`
		} `json:"osd"`
	}
	must(t, json.Unmarshal(pool.Ceph(t, "tell", "osd.0", "perf", "dump", "osd"), &counters))
	return counters.OSD.Writes + counters.OSD.ReadWrites
}
