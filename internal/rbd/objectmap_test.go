package rbd

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
)

// TestObjectMap reads maps that librbd has written.
func TestObjectMap(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	ctx, p := connectAs(t, tp)
	for _, test := range []struct {
		name    string
		size    int64
		options []string
		objects int64
	}{
		{"plain", 40 << 20, nil, 10},
		{"many", 100_000 << 12, []string{"--object-size=4K"}, 100_000},
		{"odd", 9<<20 + 1, []string{"--object-size=64K"}, 145},
		{"striped", 24<<20 + 65<<10, []string{"--object-size=1M", "--stripe-unit=64K", "--stripe-count=3"}, 26},
		{"none", 0, nil, 0},
	} {
		tp.CreateImage(t, test.name, test.size, test.options...)
		if test.size > 0 {
			tp.IO(t, test.name, "write 0 4k", "write 8M 4k")
		}
		tp.CreateSnapshot(t, test.name+"@s1")
		if test.size > 0 {
			tp.IO(t, test.name, "write -z 0 4k", "write 1M 4k")
		}
		tp.CreateSnapshot(t, test.name+"@s2")
		ids := tp.Snapshots(t, test.name)
		img := openAt(ctx, t, p, tp.Info(t, test.name).ID, "s2")
		if n := img.Objects(test.size); n != test.objects {
			t.Errorf("%s: %d objects, want %d", test.name, n, test.objects)
		}
		for _, s := range ids {
			m, err := img.ObjectMap(ctx, s.ID)
			if err != nil || m.Objects != test.objects {
				t.Errorf("%s@%s: map %+v, %v, want one of %d objects", test.name, s.Name, m, err, test.objects)
			}
		}
		head, err := img.ObjectMap(ctx, 0)
		if err != nil || head.Objects != test.objects {
			t.Errorf("%s: head: %v, %v", test.name, head, err)
		}
	}
	img, err := p.Open(ctx, "plain")
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	for i, want := range []uint64{1<<62 | 1<<58, 1<<62 | 3<<58} {
		m, err := img.ObjectMap(ctx, tp.Snapshots(t, "plain")[i].ID)
		if err != nil || len(m.Words) != 1 || m.Words[0] != want {
			t.Errorf("map %d: %+v, %v, want %x", i, m, err, want)
		}
	}
	if _, err := img.ObjectMap(ctx, 1<<40); !errors.Is(err, ErrNotFound) {
		t.Errorf("map of a snapshot that is not there: %v", err)
	}
}

// TestObjectMapDamaged flips every bit of a map, and cuts it anywhere.
func TestObjectMapDamaged(t *testing.T) {
	t.Parallel()
	tp := cephtest.Require(t).Pool(t)
	tp.CreateImage(t, "vm", 21000<<12, "--object-size=4K")
	tp.IO(t, "vm", "write 0 4M", "write 80M 64k")
	file := filepath.Join(t.TempDir(), "map")
	tp.Rados(t, "get", "rbd_object_map."+tp.Info(t, "vm").ID, file)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	m, err := parseObjectMap(raw)
	if err != nil || m.Objects != 21000 || len(m.Words) != 657 {
		t.Fatalf("%+v, %v", m, err)
	}
	if m.Words[31] != 0x5555555555555555 || m.Words[33] != 0 {
		t.Errorf("words %x", m.Words[31:34])
	}
	for n := range raw {
		if _, err := parseObjectMap(raw[:n]); !errors.Is(err, ErrDamaged) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
	for bit := range 8 * len(raw) {
		raw[bit/8] ^= 1 << (bit % 8)
		if _, err := parseObjectMap(raw); !errors.Is(err, ErrDamaged) {
			t.Errorf("bit %d flipped: %v", bit, err)
		}
		raw[bit/8] ^= 1 << (bit % 8)
	}
}

// FuzzObjectMap looks for input that is too much for the parser.
func FuzzObjectMap(f *testing.F) {
	f.Add([]byte("\x0e\x00\x00\x00\x01\x01\x08\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x40"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if m, err := parseObjectMap(raw); err == nil && int64(len(m.Words))*ObjectsPerWord < m.Objects {
			t.Errorf("%d objects in %d words", m.Objects, len(m.Words))
		}
	})
}
