package changes

import (
	"slices"
	"strings"
	"testing"
)

func TestDefects(t *testing.T) {
	for _, c := range []struct {
		library string
		osds    string
		tracker string // number
		want    bool
	}{
		{"16.2.13", "16.2.15", "61616", true},
		{"16.2.14", "16.2.15", "61616", false},
		{"17.2.8", "16.2.13 17.2.8", "61616", true}, // the hosts may be as old as an OSD
		{"16.2.15", "", "63770", true},
		{"17.2.7", "", "63770", true},
		{"17.2.8", "", "63770", false},
		{"17.2.9-0ubuntu0.22.04.1", "", "63770", false},
		{"17.2.7-0ubuntu0.22.04.1", "", "63770", true},
		{"18.2.3", "", "63770", true},
		{"18.2.4", "", "63770", false},
		{"19.0.0-3935-ge3f64cc9", "", "63770", true},
		{"19.2.3", "16.2.15", "63770", false}, // it is the library's, whatever the OSDs are
		{"20.2.1", "", "63770", false},
		{"15.2.17", "", "63770", false},
		{"20.2.1", "16.2.15", "64735", true},
		{"20.2.1", "", "64735", false},
		{"16.2.14", "", "66418", false},
		{"16.2.15", "", "66418", true},
		{"18.2.4", "", "66418", true},
		{"18.2.5", "", "66418", false},
		{"14.2.7", "", "42248", true},
		{"14.2.21", "", "42248", false},
		{"16.2.7", "", "53784", true},
		{"15.2.17", "", "53784", false},
	} {
		got := slices.ContainsFunc(Defects(c.library, strings.Fields(c.osds)), func(d Defect) bool {
			return strings.Contains(d.Source, "tracker "+c.tracker)
		})
		if got != c.want {
			t.Errorf("library %s, OSDs %q: has %s: %v, want %v", c.library, c.osds, c.tracker, got, c.want)
		}
	}
	if d := Defects("20.2.1", nil); len(d) != 0 {
		t.Errorf("20.2.1 has %+v", d)
	}
	for _, release := range []string{"", "pacific", "16.2", "16.2.x", "-1.2.3", "16.2.15.1", "99999999999999999999.0.0"} {
		if d := Defects(release, []string{release}); len(d) != 0 {
			t.Errorf("release %q has %+v", release, d)
		}
	}
}

// TestKnownDefects holds the table to its own rules.
func TestKnownDefects(t *testing.T) {
	for _, d := range knownDefects() {
		if d.Source == "" || d.Effect == "" || d.Because == "" || d.Part == "" {
			t.Errorf("something is left open: %+v", d)
		}
		if len(d.Releases) == 0 && d.Part != Kernel {
			t.Errorf("%s: no release has it", d.Source)
		}
		var last []int
		for _, r := range d.Releases {
			from, to := parseRelease(r.From), parseRelease(r.To)
			if from == nil || slices.Compare(from, last) < 0 || r.To != "" && slices.Compare(to, from) <= 0 {
				t.Errorf("%s: releases %v", d.Source, d.Releases)
			}
			last = to
		}
	}
}

func TestDefectString(t *testing.T) {
	got := Defects("16.2.13", nil)
	want := "object maps of snapshots taken under load lack changes (librbd of the virtual machines; tracker 61616, PR 52109)"
	if !slices.ContainsFunc(got, func(d Defect) bool { return d.String() == want && d.Exposed }) {
		t.Errorf("%v lack %q", got, want)
	}
}
