package main

import (
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
)

// TestYear simulates some weeks of a small disk: what all points read as is compared by the simulation itself.
func TestYear(t *testing.T) {
	qemutest.Require(t, "qemu-img")
	for _, compression := range []string{"none", "zstd"} {
		o, err := parse([]string{"-days", "50", "-sample", "30", "-size", "32", "-compress", compression, "-seed", "2"})
		if err != nil {
			t.Fatal(err)
		}
		y, err := newYear(o, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if err := y.run(t.Context()); err != nil {
			t.Fatal(err)
		}
		// 2023-01-01 was a Sunday. From 19 February back: 7 days, 12, 5 February and 29 January, January's last and the oldest.
		if got, want := y.rows[49].points, 7+3+1+1; got != want {
			t.Errorf("%s: %d points are left, want %d", compression, got, want)
		}
		if len(y.folds) != 50-y.rows[49].points {
			t.Errorf("%s: %d folds", compression, len(y.folds))
		}
		var b strings.Builder
		y.print(&b)
		if n := strings.Count(b.String(), "xychart-beta"); n != 3 {
			t.Errorf("%s: %d charts", compression, n)
		}
	}
}
