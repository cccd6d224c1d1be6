package rbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	librbd "github.com/ceph/go-ceph/rbd"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
)

func TestImages(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	for _, tp := range []*cephtest.Pool{tp, tp.CreateNamespace(t, "tenant")} {
		t.Run(fmt.Sprintf("namespace %q", tp.Namespace), func(t *testing.T) {
			ctx, p := connectAs(t, tp)
			if p.Name() != tp.Name || p.Namespace() != tp.Namespace || p.ID() <= 0 {
				t.Errorf("pool %d %v", p.ID(), p)
			}
			admin := adminContext(ctx, t, tp)
			want := []string{"vm1", ".hidden", "with space", "new\nline", "a/b", "a@b", "..", "ümläut", strings.Repeat("x", 95)}
			for _, name := range want {
				if _, err := librbd.Create(admin, name, 1<<20, 22); err != nil {
					t.Fatal(err)
				}
			}
			refs, err := p.ListImages(ctx)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, ref := range refs {
				got = append(got, ref.Name)
				byName, err := p.Open(ctx, ref.Name)
				if err != nil {
					t.Fatal(err)
				}
				if byName.ID() != ref.ID || byName.Size() != 1<<20 {
					t.Errorf("%v: id %s, size %d", byName, byName.ID(), byName.Size())
				}
				if err := errors.Join(byName.Close(), byName.Close()); err != nil {
					t.Error(err)
				}
				info, err := openAt(ctx, t, p, ref.ID, "").Info(ctx)
				if err != nil || info.Name != ref.Name {
					t.Errorf("name %q, %v, want %q", info.Name, err, ref.Name)
				}
			}
			slices.Sort(want)
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("images %q, want %q", got, want)
			}
			for _, name := range []string{"nope", "vm1\x00x", ""} {
				if _, err := p.Open(ctx, name); err == nil {
					t.Errorf("opened %q", name)
				}
			}
		})
	}
}

func TestNotFound(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	ctx, p := connectAs(t, tp)
	tp.CreateImage(t, "vm", 1<<20)
	id := tp.Info(t, "vm").ID
	for text, try := range map[string]func() error{
		"open pool nope: not found":                                     func() error { _, err := p.cluster.Pool(ctx, "nope", ""); return err },
		"open namespace " + tp.Name + "/nope: not found":                func() error { _, err := p.cluster.Pool(ctx, tp.Name, "nope"); return err },
		"open image " + tp.Name + "/nope: not found":                    func() error { _, err := p.Open(ctx, "nope"); return err },
		"open image " + tp.Name + "/id:nope: not found":                 func() error { _, err := p.OpenAt(ctx, "nope", ""); return err },
		"open image " + tp.Name + "/id:" + id + "@nope: not found":      func() error { _, err := p.OpenAt(ctx, id, "nope"); return err },
		"find snapshot " + tp.Name + "/id:" + id + "@nope: not found":   func() error { _, err := p.SnapshotID(ctx, id, "nope"); return err },
		"remove snapshot " + tp.Name + "/id:" + id + "@nope: not found": func() error { return p.RemoveSnapshot(ctx, id, "nope") },
		"create snapshot " + tp.Name + "/id:nope@s: not found":          func() error { return p.CreateSnapshot(ctx, "nope", "s") },
	} {
		if err := try(); !errors.Is(err, ErrNotFound) || err.Error() != text {
			t.Errorf("error %q, want %q", err, text)
		}
	}
}

func TestPermission(t *testing.T) {
	t.Parallel()
	c := cephtest.Require(t)
	tp, other := c.Pool(t), c.Pool(t)
	ctx, p := connectAs(t, tp)
	foreign, err := p.cluster.Pool(ctx, other.Name, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := foreign.ListImages(ctx); !errors.Is(err, ErrPermission) {
		t.Error(err)
	}
	other.CreateImage(t, "vm", 1<<20)
	id := other.Info(t, "vm").ID
	_, err = foreign.OpenAt(ctx, id, "")
	if want := "open image " + other.Name + "/id:" + id + ": permission denied"; !errors.Is(err, ErrPermission) || err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
	tp.GrantRead(t, other.Name)
	readOnlyCtx, readOnly := connectAs(t, tp)
	if readOnly, err = readOnly.cluster.Pool(readOnlyCtx, other.Name, ""); err != nil {
		t.Fatal(err)
	}
	if err := readOnly.CreateSnapshot(ctx, id, "s"); !errors.Is(err, ErrPermission) {
		t.Error(err)
	}
}

func TestRead(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	ctx, p := connectAs(t, tp)
	const size = 9<<20 + 513
	tp.CreateImage(t, "vm", size)
	tp.IO(t, "vm", "write -P 1 0 1M", "write -P 2 4095k 2k", fmt.Sprintf("write -P 3 %d 700", size-700))
	want, err := os.ReadFile(tp.Export(t, "vm"))
	if err != nil {
		t.Fatal(err)
	}
	img, err := p.Open(ctx, "vm")
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, size)
	for _, r := range [][2]int64{{0, size}, {0, 0}, {size, 0}, {size - 1, 1}, {4 << 20, 1}, {4<<20 - 1, 2}, {1, 5 << 20}} {
		part := got[r[0] : r[0]+r[1]]
		if err := img.Read(ctx, part, r[0]); err != nil || !bytes.Equal(part, want[r[0]:r[0]+r[1]]) {
			t.Errorf("read of %v: %v", r, err)
		}
	}
	for _, r := range [][2]int64{{-1, 1}, {size, 1}, {size - 1, 2}, {1<<63 - 1, 1}} {
		if err := img.Read(ctx, make([]byte, r[1]), r[0]); err == nil {
			t.Errorf("read of %v was accepted", r)
		}
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := img.Read(ended, got, 0); !errors.Is(err, context.Canceled) || errors.Is(err, ErrAbandoned) {
		t.Error(err)
	}
	if err := img.Close(); err != nil {
		t.Error(err)
	}
	if err := img.Read(ctx, got, 0); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

func TestInfo(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	dataPool := tp.DataPool(t)
	ctx, p := connectAs(t, tp)
	tp.CreateImage(t, "vm", 1000001, "--object-size=64K", "--stripe-unit=4K", "--stripe-count=5", "--data-pool="+dataPool)
	img, err := p.Open(ctx, "vm")
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	info, err := img.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	rbd := tp.Info(t, "vm")
	want := Info{Name: "vm", ID: rbd.ID, Size: 1000001, ObjectSize: 64 << 10, StripeUnit: 4 << 10, StripeCount: 5,
		Features: info.Features, DataPool: dataPool}
	if !reflect.DeepEqual(info, want) {
		t.Errorf("info %+v, want %+v", info, want)
	}
	if got := info.Features.Names(); !slices.Equal(got, rbd.Features) {
		t.Errorf("features %q, want %q", got, rbd.Features)
	}
	if got := (Features(1<<40) | FeatureNonPrimary).Names(); !slices.Equal(got, []string{"non-primary", "unknown-40"}) {
		t.Errorf("features %q", got)
	}
}

func TestMetadata(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	ctx, p := connectAs(t, tp)
	tp.CreateImage(t, "vm", 1<<20)
	writable, err := librbd.OpenImage(adminContext(ctx, t, tp), "vm", librbd.NoSnapshot)
	if err != nil {
		t.Fatal(err)
	}
	defer writable.Close()
	want := map[string]string{"empty": "", "lines": "a\nb", "conf_rbd_cache": "true"}
	for i := range 5 {
		want[fmt.Sprintf("big %d", i)] = strings.Repeat("x", 64_000) // more than go-ceph's limit
	}
	for i := range 70 {
		want[fmt.Sprintf("key%02d", i)] = fmt.Sprint(i) // more than a page
	}
	for key, value := range want {
		if err := writable.SetMetadata(key, value); err != nil {
			t.Fatal(err)
		}
	}
	img, err := p.Open(ctx, "vm")
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	got, err := img.Metadata(ctx)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%d pairs, want %d, %v", len(got), len(want), err)
	}
}
