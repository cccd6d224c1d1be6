package crash

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
)

// recording is what was written to a disk while a file system on it was mounted, in the order in which that was done.
type recording struct {
	log    string
	writes []diskWrite
}

// diskWrite is one write; with no length it is a flush: what was done before it is on disk, come what may. Each is logged when it
// is done, so a write that was done while a flush was under way counts as flushed.
type diskWrite struct {
	off, length int64 // on the disk, in bytes
	data        int64 // offset in the log
}

// record mounts a copy of a disk while do works in it. The writes pass FUSE, NBD, and QEMU, which logs them.
func record(t *testing.T, disk string, do func(dir string)) *recording {
	t.Helper()
	qemutest.Require(t, "nbdfuse", "qemu-nbd")
	dir := t.TempDir()
	copied, log, shown := filepath.Join(dir, "copied"), filepath.Join(dir, "log"), filepath.Join(dir, "shown")
	qemutest.Run(t, "cp", "--sparse=always", disk, copied)
	createSparse(t, log, 4<<30)
	createSparse(t, shown, 0)
	hide := show(t, shown, fmt.Sprintf("driver=blklogwrites,file.driver=file,file.filename=%s,file.cache.no-flush=on,"+
		"log.driver=file,log.filename=%s,log.cache.no-flush=on", copied, log))
	mounted, unmount := mount(t, shown)
	do(mounted)
	unmount()
	hide()
	return readLog(t, log)
}

// show shows an image of QEMU as a file, until hide is called, at the latest at the end of the test.
func show(t *testing.T, file, image string) (hide func()) {
	t.Helper()
	c := exec.Command("nbdfuse", file, "--socket-activation", "qemu-nbd", "--image-opts", image)
	log := &watchedLog{}
	c.Stderr = log
	p := &process{Cmd: c, log: log, exited: make(chan struct{})}
	p.begin(t)
	shown := true
	hide = func() {
		if shown {
			shown = false
			qemutest.Run(t, "umount", file)
			p.wait(t) // and with it QEMU
		}
	}
	for {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > 0 {
			t.Cleanup(hide)
			return hide
		}
		select {
		case <-p.exited:
			t.Fatalf("%v: %v\n%s", c.Args, c.ProcessState, p.stderr())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// logMagic begins a log of QEMU's driver blklogwrites, whose format is that of the kernel's dm-log-writes: a head, then each
// write's entry with its data behind it, all in units of a sector.
const (
	logMagic   = 0x6a736677736872
	sectorSize = 512
	logFlush   = 1 // flag of an entry
	logDiscard = 4
)

func readLog(t *testing.T, log string) *recording {
	t.Helper()
	f, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var head struct{ Magic, Version, Entries uint64 }
	readAt(t, f, 0, &head)
	if head.Magic != logMagic || head.Version != 1 {
		t.Fatalf("log begins with %+v", head)
	}
	r, at := &recording{log: log}, int64(sectorSize)
	for range head.Entries {
		var entry struct{ Sector, Sectors, Flags, DataLength uint64 }
		readAt(t, f, at, &entry)
		at += sectorSize
		w := diskWrite{int64(entry.Sector) * sectorSize, int64(entry.Sectors) * sectorSize, at}
		if entry.Flags&logDiscard != 0 || (entry.Flags&logFlush != 0) != (w.length == 0) {
			t.Fatalf("log has %+v", entry) // nobody here discards, or writes in that way
		}
		r.writes = append(r.writes, w)
		at += w.length
	}
	return r
}

func readAt(t *testing.T, f io.ReaderAt, off int64, value any) {
	t.Helper()
	if err := binary.Read(io.NewSectionReader(f, off, sectorSize), binary.LittleEndian, value); err != nil {
		t.Fatal(err)
	}
}

// cut makes of a disk, as it was before the recording, what a power cut at a random moment leaves of it: all that was
// flushed, and of what was written since either everything, as a disk without a cache has it, or some writes, or some sectors;
// but for writes to the first bytes, which are never torn.
func (r *recording) cut(t *testing.T, disk string, untorn int64, random *rand.Rand) {
	t.Helper()
	at, flushed := random.IntN(len(r.writes)+1), 0
	for i, w := range r.writes[:at] {
		if w.length == 0 {
			flushed = i + 1
		}
	}
	lost, tear := random.IntN(101), random.IntN(3)
	if tear == 0 {
		lost = 0
	}
	t.Logf("power cut after %d of %d writes, %d since a flush: %d %% lost, torn: %v", at, len(r.writes), at-flushed, lost, tear == 2)
	from, to := openTwo(t, r.log, disk)
	for i, w := range r.writes[:at] {
		piece := max(w.length, 1)
		if tear == 2 && i >= flushed && w.off >= untorn {
			piece = sectorSize
		}
		for done := int64(0); done < w.length; done += piece {
			if i >= flushed && random.IntN(100) < lost {
				continue
			}
			if _, err := io.Copy(io.NewOffsetWriter(to, w.off+done), io.NewSectionReader(from, w.data+done, piece)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(from.Close(), to.Close()); err != nil {
		t.Fatal(err)
	}
}

// openTwo opens a file to read and another one to write.
func openTwo(t *testing.T, source, target string) (from, to *os.File) {
	t.Helper()
	from, err := os.Open(source)
	if err != nil {
		t.Fatal(err)
	}
	if to, err = os.OpenFile(target, os.O_WRONLY, 0); err != nil {
		t.Fatal(err)
	}
	return from, to
}
