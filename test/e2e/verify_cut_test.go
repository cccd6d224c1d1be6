package e2e

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/verify"
)

// TestVerifyMaxTime verifies a point in slices. Only a run that may end early takes the word of those before it.
func TestVerifyMaxTime(t *testing.T) {
	t.Parallel()
	d := newDisk(t, cephtest.Require(t).Pool(t), "vm", 128<<20)
	d.pool.IO(t, "vm", "write -P 1 0 64M", "write -P 2 64M 64M")
	p := d.backup(t, "--compress", "none").Points[0]
	slice := func(max string) (verify.PointReport, int) {
		t.Helper()
		r := program.Run(t, "verify", "--json", "--max-time", max, d.dir)
		var report verify.Report
		if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil {
			t.Fatalf("report: %v\n%s", err, r.Stderr)
		}
		return report.Images[0].Points[0], r.Code
	}
	begun := time.Now().Truncate(time.Second)
	limit := time.Millisecond
	first, code := slice(limit.String())
	for ; first.Status == verify.Pending; first, code = slice(limit.String()) { // it was over before it began
		limit *= 2
	}
	if first.Status != verify.Partly || first.Verdict != "" || code != 0 {
		t.Fatalf("the first slice: %+v, exit status %d", first, code)
	}
	if at := list(t, d.dir)[0].Points[0].VerifiedAt; at != nil {
		t.Errorf("verified at %s by a part", at)
	}
	verified := first.Verified
	for slices := 1; ; slices++ {
		point, _ := slice(limit.String())
		verified += point.Verified
		if point.Status == verify.Whole {
			break
		}
		if slices > 1000 {
			t.Fatal("it never comes to an end")
		}
	}
	if at := list(t, d.dir)[0].Points[0].VerifiedAt; at == nil || at.Before(begun) || verified != 128<<20 {
		t.Errorf("verified at %v, begun at %s, %d bytes", at, begun, verified)
	}
	slice(limit.String())
	d.flip(t, p, 1) // before where that has ended
	if found := d.verify(t, 4).Images[0].Points[0]; found.Verdict != repo.FoundDamaged {
		t.Errorf("found %+v", found)
	}
}
