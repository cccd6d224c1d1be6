package crash

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// ioErrorStrike has calls to the repository's file system fail, by a layer that programs find it under.
func (l *life) ioErrorStrike(t *testing.T) *strike {
	kind := pick(l, "write", "write", "read", "sync", "name", "space", "any")
	status := fuse.EIO
	if l.chance(4) {
		status = fuse.Status(syscall.ENOSPC)
	}
	every := pick(l, 1, 3, 10, 40)
	f := &faultyFS{kind: kind, status: status, every: every, rng: rand.New(rand.NewPCG(l.rng.Uint64(), 0))}
	l.say("every %d. %s fails with %v", every, kind, status)
	s := &strike{name: "I/O errors: " + kind, dir: t.TempDir()}
	var server *fuse.Server
	s.before = func(t *testing.T) {
		server = f.mount(t, l.dir, s.dir)
		t.Cleanup(func() { _ = server.Unmount() }) // if the round ends early
	}
	s.after = func(t *testing.T) {
		if err := server.Unmount(); err != nil {
			t.Fatal(err)
		}
		l.say("%d calls failed", f.failed.Load())
		l.tally["strike I/O errors in all"] += int(f.failed.Load())
	}
	return s
}

// faultyFS is another file system but for calls of one kind that fail now and then.
type faultyFS struct {
	fuse.RawFileSystem
	kind   string
	status fuse.Status
	every  int // about so many calls, one fails
	failed atomic.Int64

	mu  sync.Mutex
	rng *rand.Rand
}

// mount shows a folder in another place. What is written there is in the folder at once.
func (f *faultyFS) mount(t *testing.T, of, at string) *fuse.Server {
	t.Helper()
	root, err := fs.NewLoopbackRoot(of)
	if err != nil {
		t.Fatal(err)
	}
	f.RawFileSystem = fs.NewNodeFS(root, &fs.Options{})
	server, err := fuse.NewServer(f, at, &fuse.MountOptions{DirectMountStrict: true, FsName: "faulty"})
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve()
	if err := server.WaitMount(); err != nil {
		t.Fatal(err)
	}
	return server
}

func (f *faultyFS) fails(kind string) bool {
	if kind != f.kind && f.kind != "any" {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rng.IntN(f.every) > 0 {
		return false
	}
	f.failed.Add(1)
	return true
}

func (f *faultyFS) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	if f.fails("write") {
		return 0, f.status
	}
	return f.RawFileSystem.Write(cancel, in, data)
}

func (f *faultyFS) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if f.fails("read") {
		return nil, fuse.EIO
	}
	return f.RawFileSystem.Read(cancel, in, buf)
}

func (f *faultyFS) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if f.fails("sync") {
		return f.status
	}
	return f.RawFileSystem.Fsync(cancel, in)
}

func (f *faultyFS) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if f.fails("sync") {
		return f.status
	}
	return f.RawFileSystem.FsyncDir(cancel, in)
}

func (f *faultyFS) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if f.fails("name") {
		return f.status
	}
	return f.RawFileSystem.Link(cancel, in, name, out)
}

func (f *faultyFS) Rename(cancel <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	if f.fails("name") {
		return f.status
	}
	return f.RawFileSystem.Rename(cancel, in, from, to)
}

func (f *faultyFS) Unlink(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if f.fails("name") {
		return fuse.EIO
	}
	return f.RawFileSystem.Unlink(cancel, in, name)
}

func (f *faultyFS) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if f.fails("name") {
		return f.status
	}
	status := f.RawFileSystem.Create(cancel, in, name, out)
	out.BackingID, out.OpenFlags = 0, out.OpenFlags&^fuse.FOPEN_PASSTHROUGH
	return status
}

func (f *faultyFS) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if f.fails("space") {
		return f.status
	}
	return f.RawFileSystem.Fallocate(cancel, in)
}

func (f *faultyFS) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if f.fails("space") {
		return f.status
	}
	return f.RawFileSystem.SetAttr(cancel, in, out)
}

// Open has the kernel ask for every read and write, which it could do by itself.
func (f *faultyFS) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	status := f.RawFileSystem.Open(cancel, in, out)
	out.BackingID, out.OpenFlags = 0, out.OpenFlags&^fuse.FOPEN_PASSTHROUGH
	return status
}
