package qcow2_test

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"slices"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// FuzzCheck takes any bytes for a file: no panic, no hang, no memory beyond what is stated; what is found depends
// neither on windows nor on goroutines; and where nothing is found, nothing is.
func FuzzCheck(f *testing.F) {
	for _, seed := range seeds(f) {
		f.Add(seed)
	}
	key := newKey(f, 1)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > fuzzInput {
			t.Skip("longer than what is tried")
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		checkAnything(t, b, key)
		checkAnything(t, seal(b), key)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 4*fuzzMemory {
			t.Errorf("%d bytes allocated for a file of %d, four times", n, len(b))
		}
	})
}

func checkAnything(t *testing.T, b []byte, key *qcow2.DigestKey) {
	im, err := qcow2.Open(bytes.NewReader(b), int64(len(b)), qcow2.OpenOptions{Alone: true, Key: key})
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), fuzzTime)
	defer cancel()
	var lists [2][]qcow2.Finding
	var all [2]qcow2.CheckStats
	var errs [2]error
	for i := range lists {
		o := qcow2.CheckOptions{Data: true, Parallel: 1 + 2*i, Report: func(f qcow2.Finding) { lists[i] = append(lists[i], f) }}
		if i == 1 {
			qcow2.CheckWindow(&o, 1+int64(len(b))%64)
		}
		all[i], errs[i] = im.Check(ctx, o)
	}
	if ctx.Err() != nil {
		t.Fatalf("checks took more than %s", fuzzTime)
	}
	if (errs[0] == nil) != (errs[1] == nil) || errs[0] == nil && all[0] != all[1] || !slices.Equal(lists[0], lists[1]) {
		t.Errorf("with one window: %+v, %v, %v; with many: %+v, %v, %v", all[0], lists[0], errs[0], all[1], lists[1], errs[1])
	}
	if errs[0] != nil || !all[0].Good() {
		return
	}
	if err := im.CheckStructure(ctx); err != nil {
		t.Errorf("check is good, structure is not: %v", err)
	}
	if err := im.VerifyDigests(ctx); err != nil && !errors.Is(err, qcow2.ErrNoRecord) && !errors.Is(err, qcow2.ErrNoDigests) {
		t.Errorf("check is good, digests are not: %v", err)
	}
}
