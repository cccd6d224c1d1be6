package e2e

import (
	"encoding/binary"
	"os"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

// TestRestoreInPlaceBehindDamage: what a damaged newer point says of changes is not believed, and does not keep an older one from
// being restored.
func TestRestoreInPlaceBehindDamage(t *testing.T) {
	t.Parallel()
	pool := cephtest.Require(t).Pool(t)
	for name, entry := range map[string]uint64{"lost": 0, "impossible": 1 << 56} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDisk(t, pool, "vm-"+name, 16<<20)
			pool.IO(t, d.image, "write -P 1 0 16M")
			older := d.backup(t).Points[0]
			pool.IO(t, d.image, "write -P 2 2M 64K")
			d.setEntries(t, d.backup(t).Points[0], entry)
			pool.IO(t, d.image, "write -P 3 9M 4K")
			d.restore(t, older.Point, d.target(d.image), "--in-place")
			d.wantImage(t, d.image, d.truth[older.File])
		})
	}
}

// setEntries sets all entries of a point's L2 tables that are there to another value, and leaves its time as it was.
func (d *disk) setEntries(t *testing.T, p status.Point, entry uint64) {
	t.Helper()
	b, err := os.ReadFile(d.path(p))
	must(t, err)
	be := binary.BigEndian
	l1, clusterSize := be.Uint64(b[40:]), uint64(1)<<be.Uint32(b[20:])
	set := 0
	for i := range uint64(be.Uint32(b[36:])) {
		table := be.Uint64(b[l1+8*i:]) & 0x00fffffffffffe00
		for at := table; table > 0 && at < table+clusterSize && at < uint64(len(b)); at += 8 {
			if be.Uint64(b[at:]) != 0 {
				be.PutUint64(b[at:], entry)
				set++
			}
		}
	}
	if set == 0 {
		t.Fatal("the point has no entries")
	}
	must(t, os.Chmod(d.path(p), 0o600))
	must(t, os.WriteFile(d.path(p), b, 0o600))
	must(t, os.Chtimes(d.path(p), p.Time, p.Time))
}
