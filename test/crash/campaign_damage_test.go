package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

// damageStrike damages points' files. Then the runs come, as nobody has noticed yet, or verify comes first.
func (l *life) damageStrike(t *testing.T) *strike {
	s := &strike{name: "damage"}
	points := l.goodPoints(t)
	if len(points) == 0 {
		return l.signalStrike(t)
	}
	damage := func(t *testing.T) {
		for range 1 + l.rng.IntN(2) {
			l.damage(t, points)
		}
	}
	if l.chance(2) {
		s.before = damage
	} else {
		s.after = damage
	}
	return s
}

// damage damages one file, or swaps two.
func (l *life) damage(t *testing.T, points []status.Point) {
	a, b := pick(l, points...), pick(l, points...)
	kind := l.rng.IntN(9)
	if kind == 8 {
		l.damageNotes(t)
		return
	}
	if kind == 7 {
		if a.File != b.File {
			l.swap(t, a, b)
		}
		return
	}
	path := filepath.Join(l.dir, a.File)
	info, err := os.Stat(path)
	if err != nil {
		return // pruned
	}
	if kind == 6 {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		l.injure(a.File, "removed")
		return
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(data) == 0 {
		return
	}
	how := ""
	switch kind {
	case 0, 1, 2:
		how = "bits flipped at"
		for range 1 + l.rng.IntN(3) {
			at := l.rng.IntN(len(data))
			if l.chance(3) {
				at = l.rng.IntN(min(len(data), 4096)) // header and record
			}
			data[at] ^= 1 << l.rng.IntN(8)
			how += fmt.Sprintf(" %d", at)
		}
	case 3:
		size := pick(l, 0, l.rng.IntN(len(data)), len(data)-1, len(data)/4096/2*4096)
		how = fmt.Sprintf("truncated from %d to %d", len(data), size)
		data = data[:size]
	case 4:
		at := l.rng.IntN(len(data))
		end := min(at+4096, len(data))
		clear(data[at:end])
		how = fmt.Sprintf("bits cleared from %d to %d", at, end)
	case 5:
		at, from := l.rng.IntN(len(data)), l.rng.IntN(len(data))
		n := min(65536, len(data)-max(at, from))
		copy(data[at:at+n], data[from:from+n])
		how = fmt.Sprintf("bits overwritten, %d at %d by those at %d", n, at, from)
	}
	mtime := info.ModTime()
	if l.chance(4) {
		mtime = time.Now()
		how += ", with a new mtime"
	}
	l.rewrite(t, path, data, info.Mode(), mtime)
	l.injure(a.File, how)
}

// damageNotes damages one of the small files that may be lost.
func (l *life) damageNotes(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(l.dir, "*", ".state", "*.json"))
	if err != nil || len(files) == 0 {
		return
	}
	file := pick(l, files...)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case l.chance(3) || len(data) == 0:
		data = nil
	case l.chance(2):
		data = data[:l.rng.IntN(len(data))]
	default:
		data[l.rng.IntN(len(data))] ^= 1 << l.rng.IntN(8)
	}
	l.say("damage: %s has %q", file, data)
	l.tally["strike damage to notes"]++
	l.rewrite(t, file, data, 0o640, time.Now())
}

// rewrite changes a file in place, as rot does.
func (l *life) rewrite(t *testing.T, path string, data []byte, mode os.FileMode, mtime time.Time) {
	t.Helper()
	for _, step := range []func() error{
		func() error { return os.Chmod(path, 0o600) },
		func() error { return os.WriteFile(path, data, 0o600) },
		func() error { return os.Chmod(path, mode) },
		func() error { return os.Chtimes(path, mtime, mtime) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
}

func (l *life) swap(t *testing.T, a, b status.Point) {
	from, to := filepath.Join(l.dir, a.File), filepath.Join(l.dir, b.File)
	for _, path := range []string{from, to} {
		if _, err := os.Stat(path); err != nil {
			return // pruned
		}
	}
	between := filepath.Join(l.dir, "between")
	for _, names := range [][2]string{{from, between}, {to, from}, {between, to}} {
		if err := os.Rename(names[0], names[1]); err != nil {
			t.Fatal(err)
		}
	}
	l.injure(a.File, "swapped with "+b.File)
	l.injure(b.File, "swapped with "+a.File)
}

func (l *life) injure(file, how string) {
	l.say("damage: %s %s", file, how)
	if before := l.injured[file]; before != "" {
		how = before + "; " + how
	}
	l.injured[file] = how
}
