package repo

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/compress"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

const (
	fuzzInput  = 64 << 10 // bytes, the longest that is tried
	fuzzMemory = 64 << 20 // bytes that one input may make us allocate
	fuzzTime   = 10 * time.Second
)

// bounded fails the test if what is done takes more memory or time than anything read may cost.
func bounded(t *testing.T, do func(ctx context.Context)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), fuzzTime)
	defer cancel()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do(ctx)
	runtime.ReadMemStats(&after)
	if ctx.Err() != nil {
		t.Errorf("took more than %s", fuzzTime)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > fuzzMemory {
		t.Errorf("%d bytes allocated", n)
	}
}

// unsynced is a file that need not survive anything.
type unsynced struct{ *os.File }

func (unsynced) Sync() error { return nil }

// writeIdentity makes a point on parent, "" for none, whose file is good but for what the identity says.
func writeIdentity(t *testing.T, f *Folder, name, parent PointName, identity []byte) {
	t.Helper()
	file, err := os.Create(f.Path(name))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	o := qcow2.WriterOptions{Size: sceneSize, ClusterSize: sceneCluster, Key: f.key}
	if parent != "" {
		o.BackingFile = f.BackingName(parent)
	}
	w, err := qcow2.NewWriter(unsynced{file}, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(identity); err != nil {
		t.Fatal(err)
	}
}

// FuzzIdentity takes any bytes for the identity of the newest point. Nothing of that makes the program fail, or the points below
// read as anything else.
func FuzzIdentity(f *testing.F) {
	s := newScene(f, 3)
	newest := s.Point(s.forget(2))
	f.Add(newest.IdentityRaw)
	for _, change := range []func(id *Identity){
		func(id *Identity) {
			id.Folded = &Folded{Point: s.points[1], OriginSHA256: s.Point(s.points[1]).OriginHash()}
		},
		func(id *Identity) { id.Parent.IdentitySHA256, id.Generation, id.Compression = "", -1, "zstd:99" },
		func(id *Identity) { id.Image.CloneParent = &CloneParent{Overlap: -1 << 63} },
		func(id *Identity) { id.Image.Size, id.ClusterSize = 1<<63-1, 1<<62 },
	} {
		id := *newest.Identity
		parent := *id.Parent
		id.Parent = &parent
		change(&id)
		b, err := json.Marshal(&id)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, identity []byte) {
		if len(identity) > fuzzInput {
			t.Skip("longer than what is tried")
		}
		writeIdentity(t, s.Folder, newest.Name, s.points[1], identity)
		bounded(t, func(ctx context.Context) {
			id, err := DecodeIdentity(identity)
			if err == nil {
				checkIdentity(t, id)
			}
			p := s.Point(newest.Name)
			_ = p.CheckParent()
			_, _, _, _ = p.Fingerprint(), p.OriginHash(), p.Touched(), p.AsParent()
			if chain, err := s.OpenProvedChain(ctx, p.Name); err == nil {
				_ = chain.Close()
			}
			_, _ = s.Points()
		})
		s.t = t
		s.checkReads()
	})
}

// checkIdentity writes what was read, and reads that.
func checkIdentity(t *testing.T, id *Identity) {
	t.Helper()
	b, err := id.Encode()
	if err != nil {
		t.Fatalf("an identity that was read can't be written: %v", err)
	}
	again, err := DecodeIdentity(b)
	if err != nil {
		t.Fatalf("an identity that was written can't be read: %v\n%s", err, b)
	}
	if c, err := again.Encode(); err != nil || !bytes.Equal(b, c) {
		t.Errorf("another identity: %v\n%s\n%s", err, b, c)
	}
	if i := id.Image; i.Size < 0 || i.ObjectSize < 0 || i.StripeCount < 0 || i.CloneParent != nil && i.CloneParent.Overlap < 0 {
		t.Errorf("negative numbers: %s", b)
	}
	if escaped := Escape(id.Image.RealName()); escaped != "" {
		checkFolderName(t, escaped)
	}
	_, _, _ = compress.Parse(id.Compression)
}

// FuzzNames takes any words for names of files, as they are in a folder and in headers: what is taken for a point has one
// name only, and lies in the folder.
func FuzzNames(f *testing.F) {
	for _, name := range []string{
		"vm@20261122T065012Z.qcow2", "./vm@1700000000.qcow2", "vm@99999999999.qcow2", "vm@00000000000.qcow2", "empty.qcow2",
		"json:{}", "nbd:localhost", "../vm@1.qcow2", "vm@20261122T065012Z@1.qcow2", "vm@99990101T000000Z.qcow2", "/vm@1.qcow2",
	} {
		f.Add("vm", name)
		f.Add(name, name)
	}
	f.Fuzz(func(t *testing.T, image, name string) {
		folder := (&Repository{Dir: "/repository"}).Folder(Escape(image))
		if image != "" {
			checkFolderName(t, folder.Name)
		}
		if p, ok := parseFileName(folder.Name, name); ok {
			if folder.FileName(p) != name {
				t.Errorf("file %q is taken for point %s, whose file is %q", name, p, folder.FileName(p))
			}
			if next := NextPointName(p.Time().Add(-time.Hour), p); !p.Time().Before(next.Time()) {
				t.Errorf("the point after %s is %s", p, next)
			}
		}
		p, ok := folder.parseBacking(name)
		if !ok {
			return
		}
		if path := folder.Path(p); filepath.Dir(path) != folder.Dir || filepath.Clean(filepath.Join(folder.Dir, name)) != path {
			t.Errorf("backing file %q is taken for %q", name, path)
		}
	})
}

func checkFolderName(t *testing.T, name string) {
	t.Helper()
	if strings.ContainsAny(name, "/\x00") || strings.HasPrefix(name, ".") || name == markerName || len(name) > maxFolderName {
		t.Errorf("folder %q", name)
	}
}

// FuzzState takes any bytes for the files in .state. At worst they are not believed; the points stay.
func FuzzState(f *testing.F) {
	s := newScene(f, 3)
	for _, seed := range []string{
		`{"pins":[{"point":"20260102T030405Z","time":"2026-01-02T03:04:05Z","comment":"x"}]}`,
		`{"points":[{"point":"20260102T030405Z","verdict":"good","next":-1,"file":""}]}`,
		`{"since":"2026-01-02T03:04:05Z"}`,
		`{"point":"20260102T030405Z","child":"20260102T030406Z","inode":1,"before":""}`,
		`{"pid":1}`, `null`, `[]`, `{"points":null,"pins":[null]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > fuzzInput {
			t.Skip("longer than what is tried")
		}
		for _, name := range []string{"pins.json", "verified.json", "gone.json", "fold", "lock"} {
			if err := os.WriteFile(s.StatePath(name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		bounded(t, func(ctx context.Context) {
			points, err := s.Points()
			if err != nil {
				t.Fatal(err)
			}
			_ = s.Verified(points)
			_, _ = s.Pins()
			_, _, _ = s.Gone()
			_ = s.PendingRemoval()
			l, err := s.Lock()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Unlock() }()
			if _, err := s.Recover(ctx); err != nil {
				t.Errorf("recover: %v", err)
			}
		})
		s.t = t
		s.checkReads()
	})
}
