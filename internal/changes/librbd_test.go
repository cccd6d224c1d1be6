package changes_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/changes"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbdtest"
)

// The tests here are the histories in which librbd's own fast-diff, or librbd itself, is known to be wrong, with what Find makes
// of them. Where a release of librbd is right, they say so in their log.

// TestSmallerBetween: a snapshot smaller than both others lies between them, and fast-diff does not see what was cut off.
func TestSmallerBetween(t *testing.T) {
	s := tell(t, rbdtest.Layout{})
	s.backUp("b")
	s.must(s.Resize(8 * objectSize))
	s.must(s.MakeSnapshot("small"))
	s.must(s.Resize(objects * objectSize))
	s.backUp("n")
	s.logFastDiff("b", "n")
	s.wantRight("b", "n")
}

// TestRollback: an object not written between two snapshots is clean in the second one's map, which a rollback copies.
func TestRollback(t *testing.T) {
	s := tell(t, rbdtest.Layout{})
	s.must(s.MakeSnapshot("older"))
	s.must(s.MakeSnapshot("target"))
	s.fill(2, 3, 2)
	s.backUp("b")
	s.must(s.Rollback("target"))
	s.backUp("n")
	s.logFastDiff("b", "n")
	s.wantRight("b", "n")
}

// TestRollbackToPrevious: as TestRollback, where the only older snapshot is that of the point before, removed since.
func TestRollbackToPrevious(t *testing.T) {
	s := tell(t, rbdtest.Layout{})
	s.backUp("first")
	s.fill(2, 0, 1)
	s.backUp("previous")
	s.must(s.RemoveSnapshot("first"))
	s.fill(3, 8, 2)
	s.backUp("b")
	s.must(s.Rollback("previous"))
	s.must(s.RemoveSnapshot("previous"))
	s.backUp("n")
	s.logFastDiff("b", "n")
	s.wantRight("b", "n")
}

// TestKilledRollback: librbd sets back the head's object map first and the objects afterwards. Cut short, it leaves objects that
// differ and are called clean.
func TestKilledRollback(t *testing.T) {
	s := tell(t, rbdtest.Layout{})
	s.backUp("previous")
	s.fill(2, 0, 1)
	s.backUp("b")
	s.fill(3, 12, 2)
	killed, err := s.KillAt(20, "snap", "rollback", s.Spec("b"))
	s.must(err)
	if !killed {
		t.Fatal("the rollback was not killed")
	}
	s.backUp("n")
	s.logFastDiff("b", "n")
	s.wantRight("b", "n")
}

// TestSnapshotDuringRollback is TestKilledRollback with a rollback that goes on, and changes objects after the snapshot, too.
func TestSnapshotDuringRollback(t *testing.T) {
	const many = 2048
	s := tell(t, rbdtest.Layout{Size: many << 12, Order: 12})
	s.fill(1, 0, many<<12/objectSize)
	s.backUp("previous")
	s.fill(2, 0, 1)
	s.backUp("b")
	s.fill(3, many<<12/objectSize/2, many<<12/objectSize/2)
	seq, err := s.SnapSeq()
	s.must(err)
	s.must(s.Race(20, 10*time.Second, []string{"snap", "rollback", s.Spec("b")}, []string{"snap", "create", s.Spec("n")}))
	s.remember("n", seq)
	s.backUp("after")
	same := func(a, b string) bool { return bytes.Equal(s.points[a].content, s.points[b].content) }
	t.Logf("the snapshot was made before the end of the rollback: %t; the rollback was cut short by it: %t",
		!same("n", "after"), !same("after", "b"))
	s.wantRight("b", "n")
	s.wantRight("n", "after")
	s.wantRight("b", "after")
}

// TestMissingMapBetween: the object map of a snapshot in between was lost, and fast-diff passes over it.
func TestMissingMapBetween(t *testing.T) {
	s := tell(t, rbdtest.Layout{})
	s.backUp("b")
	s.fill(2, 5, 1)
	s.backUp("between")
	s.backUp("n")
	s.must(s.admin.RemoveObject(s.MapObject(s.points["between"].snapshot.ID)))
	s.logFastDiff("b", "n")
	s.wantRight("b", "n")
}

// TestRollbackToInvalidMap: a rollback to a snapshot whose map is known to be invalid gives the head that map, and calls it
// valid. librbd then reads zeroes where there are objects, until the map is rebuilt: no diff can help there.
func TestRollbackToInvalidMap(t *testing.T) {
	s := tell(t, rbdtest.Layout{Features: rbdtest.AllFeatures &^ rbdtest.Tracking})
	s.backUp("target")
	s.must(s.SetTracking(true))
	s.must(s.Reopen())
	s.must(s.Rebuild(""))
	s.must(s.Rollback("target"))
	s.backUp("n")
	if bytes.Equal(s.points["n"].content, s.points["target"].content) {
		t.Log("librbd reads what is there: fixed in this release")
		s.wantRight("target", "n")
		return
	}
	t.Log("librbd reads zeroes after a rollback to a snapshot with an invalid object map")
}

// TestOpenedMeanwhile: a client reads an image's header before it watches it. One that opens the image just when another makes a
// snapshot does not hear of it, and what it writes becomes part of the snapshot, unknown to the snapshot's map.
func TestOpenedMeanwhile(t *testing.T) {
	s := tell(t, rbdtest.Layout{})
	s.backUp("b")
	vm, err := s.PauseAt("handle_v2_get_snapshots", "bench", "--io-type", "write", "--io-size", "4K", "--io-total", "64K", s.Spec(""))
	s.must(err)
	s.must(s.Open())
	s.backUp("n")
	s.must(s.Close())
	s.must(vm.Resume())
	s.must(s.Open())
	if bytes.Equal(s.content("n"), s.points["n"].content) {
		t.Log("the snapshot stayed as it was: fixed in this release")
	} else {
		t.Log("librbd wrote into a snapshot that was made while it opened the image")
	}
	s.backUp("after")
	s.wantRight("b", "after")
	// What was read of n before the writes came is not what any diff since n assumes.
	img := s.open("after")
	defer img.Close()
	base, p := s.points["n"], s.points["after"]
	for _, mode := range []changes.Mode{changes.Auto, changes.Precise} {
		extents, r, err := find(t.Context(), img, changes.Options{
			Base:     base.base(),
			Snapshot: p.snapshot.ID, SnapSeq: p.snapSeq, Mode: mode,
		})
		s.must(err)
		t.Logf("%s: %s, %s: first byte missed %d (-1: none)", mode, r.Method, r.Reason, missed(base, p, extents))
	}
}

// TestEncrypted: through a handle that decrypts, fast-diff reports places of the wrong coordinates. Find works on the image as
// it is stored.
func TestEncrypted(t *testing.T) {
	for version := 1; version <= 2; version++ {
		t.Run(fmt.Sprintf("luks%d", version), func(t *testing.T) {
			luks := rbdtest.Luks{Version: version, Passphrase: "secret"}
			s := tell(t, rbdtest.Layout{Size: 64 << 20, Order: 20})
			s.must(s.Encrypt(luks))
			s.writeDecrypted(luks, 1, 40<<20)
			s.backUp("b")
			s.writeDecrypted(luks, 2, 41<<20)
			s.backUp("n")
			at, err := s.At("n")
			s.must(err)
			defer at.Close()
			s.must(at.Decrypt(luks))
			fast, err := at.FastDiff("b")
			s.must(err)
			if len(fast) == 1 && fast[0].Offset == 41<<20 {
				t.Log("fast-diff is right through a handle that decrypts: fixed in this release")
			} else {
				t.Logf("fast-diff reports %v through a handle that decrypts, where 1 MiB at 41 MiB was written", fast)
			}
			s.wantRight("b", "n")
		})
	}
}

func (s *story) writeDecrypted(luks rbdtest.Luks, value byte, off int64) {
	s.Helper()
	s.must(s.Decrypt(luks))
	_, err := s.WriteAt(bytes.Repeat([]byte{value}, 1<<20), off)
	s.must(err)
	s.must(s.Reopen())
}
