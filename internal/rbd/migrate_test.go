package rbd

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
)

// source serves a disk as librbd wants it, and can stop to answer.
type source struct {
	*httptest.Server
	disk    []byte
	frozen  atomic.Pointer[chan struct{}] // requests for ranges wait until it is closed
	waiting atomic.Int64
}

// newSource serves random bytes with a hole.
func newSource(t *testing.T, size int) *source {
	t.Helper()
	s := &source{disk: make([]byte, size)}
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range s.disk {
		s.disk[i] = byte(rnd.Uint32())
	}
	clear(s.disk[size/2 : size*3/4])
	mux := http.NewServeMux()
	mux.HandleFunc("/disk.raw", func(w http.ResponseWriter, r *http.Request) {
		if frozen := s.frozen.Load(); frozen != nil && r.Header.Get("Range") != "" {
			s.waiting.Add(1)
			<-*frozen
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(s.disk))
	})
	s.Server = httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

// freeze makes the server hold back data until thaw is called, or the test ends.
func (s *source) freeze(t *testing.T) (thaw func()) {
	frozen := make(chan struct{})
	s.frozen.Store(&frozen)
	thaw = func() {
		if s.frozen.CompareAndSwap(&frozen, nil) {
			close(frozen)
		}
	}
	t.Cleanup(thaw)
	return thaw
}

// spec is librbd's name of it.
func (s *source) spec(path string) string {
	return `{"type": "raw", "stream": {"type": "http", "url": "` + s.URL + path + `"}}`
}

// importing prepares an import until the test ends.
func importing(ctx context.Context, t *testing.T, p *Pool, s *source, name string, o CreateOptions) {
	t.Helper()
	if err := p.SupportsImport(ctx); err != nil {
		t.Fatal(err)
	}
	if err := p.PrepareImport(ctx, name, s.spec("/disk.raw"), o); err != nil {
		t.Fatal(err)
	}
}

func wantState(ctx context.Context, t *testing.T, p *Pool, name, want string) {
	t.Helper()
	if state, description, err := p.MigrationStatus(ctx, name); state != want || err != nil {
		t.Errorf("state %q (%s), %v, want %q", state, description, err, want)
	}
}

func TestImport(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	ctx, p := connectToRestore(t, tp)
	s := newSource(t, 64<<20+513)
	o := CreateOptions{ObjectSize: 1 << 20, Features: creatable &^ FeatureFastDiff &^ FeatureObjectMap, FeaturesSet: true}
	importing(ctx, t, p, s, "vm", o)
	wantState(ctx, t, p, "vm", "prepared")
	info := tp.Info(t, "vm")
	if info.Size != int64(len(s.disk)) || info.ObjectSize != o.ObjectSize || slices.Contains(info.Features, "object-map") {
		t.Errorf("prepared %+v", info)
	}
	ref, err := p.FindImage(ctx, "vm")
	if err != nil || ref.ID != info.ID {
		t.Errorf("image %v, %v", ref, err)
	}
	if _, err := p.OpenWriter(ctx, ref.ID); !errors.Is(err, ErrMigrating) {
		t.Error(err)
	}
	want := "commit migration of " + tp.Spec("vm") + ": it is in state prepared"
	if err := p.CommitMigration(ctx, "vm"); !errors.Is(err, syscall.EINVAL) || err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
	tp.IO(t, "vm", "write -P 7 5M 4k", "read -P 7 5M 4k", "write -z 20M 3M")
	var percents []int
	if err := p.ExecuteMigration(ctx, "vm", func(percent int) { percents = append(percents, percent) }); err != nil {
		t.Fatal(err)
	}
	if !slices.IsSorted(percents) || percents[len(percents)-1] != 100 {
		t.Errorf("progress %d", percents)
	}
	wantState(ctx, t, p, "vm", "executed")
	if err := p.CommitMigration(ctx, "vm"); err != nil {
		t.Error(err)
	}
	copy(s.disk[5<<20:], bytes.Repeat([]byte{7}, 4<<10))
	clear(s.disk[20<<20 : 23<<20])
	if got, err := os.ReadFile(tp.Export(t, "vm")); err != nil || !bytes.Equal(got, s.disk) {
		t.Errorf("it exports otherwise, %v", err)
	}
	if state, _, err := p.MigrationStatus(ctx, "vm"); !errors.Is(err, ErrNotMigrating) {
		t.Errorf("state %q, %v", state, err)
	}
	w := openWriter(ctx, t, p, ref.ID)
	if err := w.Sparsify(ctx, 4096); err != nil {
		t.Error(err)
	}
}

// TestInterruptedImport gives up waiting for the copy, which goes on.
func TestInterruptedImport(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	ctx, p := connectToRestore(t, tp)
	s := newSource(t, 64<<20)
	importing(ctx, t, p, s, "vm", CreateOptions{})
	thaw := s.freeze(t)
	short, cancel := context.WithCancel(ctx)
	err := p.ExecuteMigration(short, "vm", func(int) {
		if s.waiting.Load() > 0 {
			cancel()
		}
	})
	if !errors.Is(err, ErrAbandoned) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	wantState(ctx, t, p, "vm", "executing")
	_, other := connectToRestore(t, tp)
	if err := other.AbortMigration(ctx, "vm"); !errors.Is(err, ErrBusy) {
		t.Errorf("aborted while it is executed: %v", err)
	}
	thaw()
	state := ""
	for err = nil; state != "executed" && err == nil; {
		state, _, err = p.MigrationStatus(ctx, "vm")
	}
	if err := errors.Join(err, p.CommitMigration(ctx, "vm")); err != nil {
		t.Error(err)
	}
}

func TestAbortImport(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	ctx, p := connectToRestore(t, tp)
	s := newSource(t, 16<<20)
	disk := s.spec("/disk.raw")
	for _, test := range []struct {
		name, source string
		options      CreateOptions
		want         string
	}{
		{"missing", s.spec("/nope"), CreateOptions{}, "source: not found"},
		{"refused", strings.Replace(disk, s.URL, "http://127.0.0.1:1", 1), CreateOptions{}, "connection refused"},
		{"garbage", `{"type": "qed"}`, CreateOptions{}, "librbd refuses the source, or the options for the new image"},
		{"datapool", disk, CreateOptions{DataPool: "nope"}, "data pool nope: not found"},
		{"options", disk, CreateOptions{ObjectSize: 5}, "object size 5: not a power of two from 4 KiB to 32 MiB"},
		{"a/b", disk, CreateOptions{}, `name "a/b": contains @ or /`},
		{"", disk, CreateOptions{}, "the name is empty"},
	} {
		err := p.PrepareImport(ctx, test.name, test.source, test.options)
		if want := "prepare import of " + tp.Spec(test.name) + ": " + test.want; err == nil || err.Error() != want {
			t.Errorf("error %q, want %q", err, want)
		}
	}
	importing(ctx, t, p, s, "prepared", CreateOptions{})
	importing(ctx, t, p, s, "executed", CreateOptions{})
	if err := p.PrepareImport(ctx, "prepared", s.spec("/disk.raw"), CreateOptions{}); !errors.Is(err, ErrExists) {
		t.Error(err)
	}
	if err := p.ExecuteMigration(ctx, "executed", nil); err != nil {
		t.Error(err)
	}
	s.Close()
	for _, name := range []string{"prepared", "executed"} {
		if err := p.AbortMigration(ctx, name); err != nil {
			t.Error(err)
		}
	}
	if err := p.AbortMigration(ctx, "nope"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	tp.CreateImage(t, "plain", 1<<20)
	for what, try := range map[string]func(context.Context, string) error{
		"abort":   p.AbortMigration,
		"commit":  p.CommitMigration,
		"execute": func(ctx context.Context, name string) error { return p.ExecuteMigration(ctx, name, nil) },
		"status":  func(ctx context.Context, name string) error { _, _, err := p.MigrationStatus(ctx, name); return err },
	} {
		if err := try(ctx, "plain"); !errors.Is(err, ErrNotMigrating) {
			t.Errorf("%s of an image that is not imported: %v", what, err)
		}
	}
	if images := tp.Images(t); !slices.Equal(images, []string{"plain"}) {
		t.Errorf("images %q", images)
	}
}
