package rbd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
)

func TestFeatures(t *testing.T) {
	t.Parallel()
	for bit := range 64 {
		f := Features(1)<<bit | FeatureFastDiff
		if got, err := ParseFeatures(f.Names()); got != f || err != nil {
			t.Errorf("features %v: %v, %v", f.Names(), got.Names(), err)
		}
	}
	for _, name := range []string{"", "Layering", "unknown-", "unknown-64", "unknown--1"} {
		if f, err := ParseFeatures([]string{"layering", name}); err == nil {
			t.Errorf("feature %q: %v", name, f.Names())
		}
	}
	want := []string{"layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten", "journaling"}
	if got := Features(^uint64(0)).Creatable().Names(); !slices.Equal(got, want) {
		t.Errorf("creatable features %v", got)
	}
}

func TestCreateImage(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	dataPool := tp.DataPool(t)
	// Created by "rbd create", the image shows what the defaults are.
	tp.CreateImage(t, "defaults", 1<<20)
	plain := tp.Info(t, "defaults")
	layering, err := ParseFeatures([]string{"layering"})
	if err != nil {
		t.Fatal(err)
	}
	for i, test := range []struct {
		options     CreateOptions
		objectSize  int64
		stripeUnit  int64
		stripeCount int64
		features    []string
		dataPool    string
	}{
		{CreateOptions{Size: 1000001}, 4 << 20, 4 << 20, 1, plain.Features, ""},
		{CreateOptions{Size: 0, DataPool: tp.Name, StripeUnit: 4 << 20, StripeCount: 1}, 4 << 20, 4 << 20, 1, plain.Features, ""},
		{CreateOptions{Size: 1 << 40, ObjectSize: 32 << 20, FeaturesSet: true}, 32 << 20, 32 << 20, 1, nil, ""},
		{CreateOptions{Size: 9 << 20, ObjectSize: 64 << 10, StripeUnit: 4 << 10, StripeCount: 5, DataPool: dataPool},
			64 << 10, 4 << 10, 5, append(slices.Clone(plain.Features), "data-pool", "striping"), dataPool},
		{CreateOptions{Size: 4096, ObjectSize: 4096, Features: layering | FeatureMigrating | 1<<40, FeaturesSet: true},
			4096, 4096, 1, []string{"layering"}, ""},
		{CreateOptions{Size: 4096, Features: creatable, FeaturesSet: true},
			4 << 20, 4 << 20, 1, creatable.Names(), ""},
	} {
		ctx, p := connectWith(t, tp, Config{ConfFile: tp.Conf})
		name := fmt.Sprintf("vm%d", i)
		ref, err := p.CreateImage(ctx, name, test.options)
		if err != nil {
			t.Error(err)
			continue
		}
		if found, err := p.FindImage(ctx, name); found != ref || err != nil {
			t.Errorf("found %v, %v, want %v", found, err, ref)
		}
		got := tp.Info(t, name)
		img := openAt(ctx, t, p, ref.ID, "")
		if got.ID != ref.ID || got.Size != test.options.Size || got.ObjectSize != test.objectSize || got.DataPool != test.dataPool ||
			img.StripeUnit() != test.stripeUnit || img.StripeCount() != test.stripeCount ||
			!slices.Equal(slices.Sorted(slices.Values(got.Features)), slices.Sorted(slices.Values(test.features))) {
			t.Errorf("%+v: created %+v, stripes %d of %d", test.options, got, img.StripeCount(), img.StripeUnit())
		}
	}
}

func TestCreateImageErrors(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	ctx, p := connectToRestore(t, tp)
	if _, err := p.CreateImage(ctx, "vm", CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		options CreateOptions
		want    string
		is      error
	}{
		{"vm", CreateOptions{}, "exists already", ErrExists},
		{"", CreateOptions{}, "the name is empty", nil},
		{"a@b", CreateOptions{}, `name "a@b": contains @ or /`, nil},
		{"a\x00b", CreateOptions{}, `name "a\x00b": contains a NUL byte`, nil},
		{"new", CreateOptions{Size: -1}, "impossible size -1", nil},
		{"new", CreateOptions{ObjectSize: 5 << 20}, "object size 5242880: not a power of two from 4 KiB to 32 MiB", nil},
		{"new", CreateOptions{ObjectSize: 64 << 20}, "object size 67108864: not a power of two from 4 KiB to 32 MiB", nil},
		{"new", CreateOptions{StripeCount: 2}, "stripe unit 0 and stripe count 2: give both or none", nil},
		{"new", CreateOptions{StripeCount: 2, StripeUnit: 5000}, "librbd refuses this combination: size 0, object size 0, " +
			"stripes 2 of 5000 bytes", syscall.EINVAL},
		{"new", CreateOptions{Features: FeatureObjectMap, FeaturesSet: true}, "librbd refuses this combination: size 0, object size 0, " +
			"stripes 0 of 0 bytes, features [object-map]", syscall.EINVAL},
		{"new", CreateOptions{DataPool: "nope"}, "data pool nope: not found", ErrNotFound},
	} {
		_, err := p.CreateImage(ctx, test.name, test.options)
		if err == nil || err.Error() != "create image "+tp.Spec(test.name)+": "+test.want || test.is != nil && !errors.Is(err, test.is) {
			t.Errorf("image %q: error %q, want %q", test.name, err, test.want)
		}
	}
	if _, err := p.FindImage(ctx, "new"); !errors.Is(err, ErrNotFound) || err.Error() != "find image "+tp.Spec("new")+": not found" {
		t.Error(err)
	}
	readerCtx, reader := connectAs(t, tp)
	if _, err := reader.CreateImage(readerCtx, "new", CreateOptions{}); !errors.Is(err, ErrPermission) {
		t.Error(err)
	}
	if images := tp.Images(t); !slices.Equal(images, []string{"vm"}) {
		t.Errorf("images %q", images)
	}
}

func TestRemoveImage(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t).CreateNamespace(t, "tenant")
	ctx, p := connectToRestore(t, tp)
	ref, err := p.CreateImage(ctx, "vm", CreateOptions{Size: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	longer, err := p.CreateImage(ctx, "vm2", CreateOptions{Size: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	tp.IO(t, "vm", "write -P 1 0 64M")
	tp.CreateSnapshot(t, "vm@s")
	if err := p.RemoveImage(ctx, ref.ID); !errors.Is(err, ErrNotEmpty) || err.Error() != "remove image "+tp.Spec("vm")+": it has snapshots" {
		t.Error(err)
	}
	tp.RemoveSnapshot(t, "vm@s")
	_, other := connectToRestore(t, tp)
	w, err := other.OpenWriter(ctx, ref.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.RemoveImage(ctx, ref.ID); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if err := p.RemoveImage(ctx, ref.ID); err != nil {
		t.Error(err)
	}
	for what, try := range map[string]func(context.Context) error{
		"remove": func(ctx context.Context) error { return p.RemoveImage(ctx, ref.ID) },
		"open":   func(ctx context.Context) error { _, err := p.OpenWriter(ctx, ref.ID); return err },
		"find":   func(ctx context.Context) error { _, err := p.FindImage(ctx, "vm"); return err },
	} {
		if err := try(ctx); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if objects := string(tp.Rados(t, "ls")); strings.Contains(objects, ref.ID) || !strings.Contains(objects, longer.ID) {
		t.Errorf("objects left:\n%s", objects)
	}
}
