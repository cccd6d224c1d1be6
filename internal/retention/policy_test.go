package retention

import (
	"slices"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // the zones, wherever the test runs
)

// chain makes a chain of points at these local times, the oldest first. Their names are the times. A "*" in front of a time
// pins it, a "!" makes it unreadable, and a "+" begins a new chain.
func chain(t *testing.T, zone string, times ...string) ([]Point, time.Time) {
	t.Helper()
	location, err := time.LoadLocation(zone)
	if err != nil {
		t.Fatal(err)
	}
	var points []Point
	parent := ""
	for _, s := range times {
		name := strings.TrimLeft(s, "*!+")
		layout := "2006-01-02 15:04"
		if strings.ContainsAny(name[10:], "+-") {
			layout += " -0700"
		}
		at, err := time.ParseInLocation(layout, name, location)
		if err != nil {
			t.Fatal(err)
		}
		p := Point{Name: name, Time: at.UTC(), Parent: parent, Pinned: strings.Contains(s, "*")}
		if strings.Contains(s, "!") {
			p.Unreadable = "damaged"
		}
		if s[0] == '+' {
			p.Parent = ""
		}
		points, parent = append(points, p), name
	}
	return points, points[len(points)-1].Time.In(location).Add(time.Minute)
}

// kept gives the names of what stays.
func kept(points []Point, decisions []Decision) []string {
	var names []string
	for i, d := range decisions {
		if d.Keep {
			names = append(names, points[i].Name)
		}
	}
	return names
}

func TestDecide(t *testing.T) {
	for _, c := range []struct {
		name   string
		zone   string
		policy Policy
		times  []string
		kept   []string // the times; empty: all
	}{
		{name: "the last ones", policy: Policy{Last: 2},
			times: []string{"2026-01-01 10:00", "2026-01-02 10:00", "2026-01-03 10:00"},
			kept:  []string{"2026-01-02 10:00", "2026-01-03 10:00"}},
		{name: "more than there are", policy: Policy{Last: 9}, times: []string{"2026-01-01 10:00", "2026-01-02 10:00"}},
		{name: "the newest stays whatever the rules say", policy: Policy{Within: Duration{Hours: 1}},
			times: []string{"2026-01-01 10:00", "2026-01-02 10:00"}, kept: []string{"2026-01-02 10:00"}},
		{name: "pins stay and are counted", policy: Policy{Last: 2},
			times: []string{"*2026-01-01 10:00", "2026-01-02 10:00", "*2026-01-03 10:00", "2026-01-04 10:00"},
			kept:  []string{"2026-01-01 10:00", "2026-01-03 10:00", "2026-01-04 10:00"}},
		{name: "the unreadable stays and is not counted", policy: Policy{Last: 2},
			times: []string{"2026-01-01 10:00", "2026-01-02 10:00", "!2026-01-03 10:00", "2026-01-04 10:00"},
			kept:  []string{"2026-01-02 10:00", "2026-01-03 10:00", "2026-01-04 10:00"}},
		{name: "the newest of an hour", policy: Policy{Hourly: 2},
			times: []string{"2026-01-01 08:59", "2026-01-01 09:00", "2026-01-01 09:59", "2026-01-01 10:00", "2026-01-01 10:59"},
			kept:  []string{"2026-01-01 09:59", "2026-01-01 10:59"}},
		{name: "the newest of a day, by the local clock", zone: "America/New_York", policy: Policy{Daily: 3},
			// In UTC, the first two are of one day, and so are the last two.
			times: []string{"2025-12-31 23:30", "2026-01-01 00:30", "2026-01-01 23:30", "2026-01-02 00:30", "2026-01-02 01:30"},
			kept:  []string{"2025-12-31 23:30", "2026-01-01 23:30", "2026-01-02 01:30"}},
		{name: "days without points are not counted", policy: Policy{Daily: 2},
			times: []string{"2026-01-01 10:00", "2026-02-01 10:00", "2026-07-01 10:00", "2026-07-01 11:00"},
			kept:  []string{"2026-02-01 10:00", "2026-07-01 11:00"}},
		{name: "the oldest stays until there are enough", policy: Policy{Daily: 3},
			times: []string{"2026-01-01 10:00", "2026-01-01 11:00", "2026-01-01 12:00", "2026-01-02 10:00"},
			kept:  []string{"2026-01-01 10:00", "2026-01-01 12:00", "2026-01-02 10:00"}},
		{name: "a day of 23 hours", zone: "Europe/Berlin", policy: Policy{Daily: 2, Hourly: 3},
			times: []string{"2026-03-28 23:30", "2026-03-29 00:30", "2026-03-29 01:30 +0100", "2026-03-29 03:30 +0200",
				"2026-03-29 23:30"},
			kept: []string{"2026-03-28 23:30", "2026-03-29 01:30 +0100", "2026-03-29 03:30 +0200", "2026-03-29 23:30"}},
		{name: "the two hours of one name", zone: "Europe/Berlin", policy: Policy{Hourly: 2},
			times: []string{"2026-10-25 01:30", "2026-10-25 02:10 +0200", "2026-10-25 02:40 +0200", "2026-10-25 02:30 +0100"},
			kept:  []string{"2026-10-25 02:40 +0200", "2026-10-25 02:30 +0100"}},
		{name: "weeks begin on Mondays", policy: Policy{Weekly: 2},
			times: []string{"2026-11-14 10:00", "2026-11-15 23:59", "2026-11-16 00:00", "2026-11-22 10:00"},
			kept:  []string{"2026-11-15 23:59", "2026-11-22 10:00"}},
		{name: "the week of the new year", policy: Policy{Weekly: 2}, // Monday 2025-12-29 to Sunday 2026-01-04 is 2026-W01
			times: []string{"2025-12-28 10:00", "2025-12-29 10:00", "2025-12-31 10:00", "2026-01-01 10:00", "2026-01-04 10:00"},
			kept:  []string{"2025-12-28 10:00", "2026-01-04 10:00"}},
		{name: "the 53rd week", policy: Policy{Weekly: 3}, // 2026-12-28 to 2027-01-03 is 2026-W53
			times: []string{"2026-12-27 10:00", "2026-12-31 10:00", "2027-01-03 10:00", "2027-01-04 10:00"},
			kept:  []string{"2026-12-27 10:00", "2027-01-03 10:00", "2027-01-04 10:00"}},
		{name: "months and years", policy: Policy{Monthly: 2, Yearly: 2},
			times: []string{"2024-06-01 10:00", "2025-12-30 10:00", "2025-12-31 10:00", "2026-01-01 10:00", "2026-01-31 10:00",
				"2026-02-01 00:00"},
			kept: []string{"2025-12-31 10:00", "2026-01-31 10:00", "2026-02-01 00:00"}},
		{name: "the newest of the year, by the local clock", zone: "Asia/Tokyo", policy: Policy{Yearly: 2},
			times: []string{"2025-12-31 08:00", "2025-12-31 23:00", "2026-01-01 01:00", "2026-01-01 08:30"},
			kept:  []string{"2025-12-31 23:00", "2026-01-01 08:30"}},
		{name: "all of a kind", policy: Policy{Monthly: Unlimited},
			times: []string{"2024-06-01 10:00", "2024-06-02 10:00", "2025-12-30 10:00", "2025-12-31 10:00", "2026-01-31 10:00"},
			kept:  []string{"2024-06-01 10:00", "2024-06-02 10:00", "2025-12-31 10:00", "2026-01-31 10:00"}}, // with the oldest
		{name: "all", policy: Policy{Last: Unlimited}, times: []string{"2024-06-01 10:00", "2025-06-01 10:00", "2026-06-01 10:00"}},
		{name: "within, to the minute", policy: Policy{Within: Duration{Months: 1, Hours: 1}},
			times: []string{"2026-02-15 08:59", "2026-02-15 09:00", "2026-02-15 09:01", "2026-03-15 10:00"},
			kept:  []string{"2026-02-15 09:01", "2026-03-15 10:00"}},
		{name: "a month ago over a change of the clock", zone: "Europe/Berlin", policy: Policy{Within: Duration{Months: 1}},
			times: []string{"2026-03-15 09:30", "2026-03-15 10:30", "2026-04-15 10:00"},
			kept:  []string{"2026-03-15 10:30", "2026-04-15 10:00"}},
		{name: "within a leap year", policy: Policy{Within: Duration{Years: 1}},
			times: []string{"2023-02-28 10:00", "2023-03-01 10:01", "2024-02-29 10:00"},
			kept:  []string{"2023-03-01 10:01", "2024-02-29 10:00"}},
		{name: "every rule may keep", policy: Policy{Last: 1, Daily: 2, Yearly: 2},
			times: []string{"2024-06-01 10:00", "2025-06-01 10:00", "2026-05-30 10:00", "2026-05-31 10:00", "2026-06-01 10:00"},
			kept:  []string{"2025-06-01 10:00", "2026-05-31 10:00", "2026-06-01 10:00"}},
		{name: "a limit alone keeps all within it", policy: Policy{MaxChain: 3},
			times: []string{"2026-01-01 10:00", "2026-01-02 10:00", "2026-01-03 10:00"}},
		{name: "the limit goes over the rules, not over pins", policy: Policy{Last: Unlimited, MaxChain: 3},
			times: []string{"2026-01-01 10:00", "*2026-01-02 10:00", "2026-01-03 10:00", "2026-01-04 10:00", "2026-01-05 10:00"},
			kept:  []string{"2026-01-01 10:00", "2026-01-02 10:00", "2026-01-05 10:00"}},
		{name: "a limit below the pins", policy: Policy{MaxChain: 1},
			times: []string{"*2026-01-01 10:00", "*2026-01-02 10:00", "2026-01-03 10:00", "2026-01-04 10:00"},
			kept:  []string{"2026-01-01 10:00", "2026-01-02 10:00", "2026-01-04 10:00"}},
		{name: "the limit is of each chain", policy: Policy{MaxChain: 2},
			times: []string{"2026-01-01 10:00", "2026-01-02 10:00", "+2026-01-03 10:00", "2026-01-04 10:00", "2026-01-05 10:00"},
			kept:  []string{"2026-01-01 10:00", "2026-01-02 10:00", "2026-01-04 10:00", "2026-01-05 10:00"}},
		{name: "the limit takes first what only gaps have kept", policy: Policy{Last: 2, Daily: 3, MaxChain: 3},
			times: []string{"2026-01-01 10:00", "2026-01-04 10:00", "2026-01-09 10:00", "2026-01-10 09:00", "2026-01-10 10:00"},
			kept:  []string{"2026-01-09 10:00", "2026-01-10 09:00", "2026-01-10 10:00"}},
		{name: "the limit is of what the rules leave", policy: Policy{Daily: 2, MaxChain: 2},
			times: []string{"2026-01-01 10:00", "2026-01-01 11:00", "2026-01-02 10:00", "2026-01-02 11:00"},
			kept:  []string{"2026-01-01 11:00", "2026-01-02 11:00"}},
		{name: "only the newest", policy: Policy{MaxChain: 1},
			times: []string{"2026-01-01 10:00", "2026-01-02 10:00", "2026-01-03 10:00"}, kept: []string{"2026-01-03 10:00"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			zone := c.zone
			if zone == "" {
				zone = "UTC"
			}
			points, now := chain(t, zone, c.times...)
			decisions := Decide(points, c.policy, now)
			want := c.kept
			if want == nil {
				want = c.times
			}
			if got := kept(points, decisions); !slices.Equal(got, want) {
				t.Errorf("kept %q, want %q\n%v", got, want, decisions)
			}
			for i, d := range decisions {
				if len(d.Reasons) == 0 {
					t.Errorf("no reason for %s", points[i].Name)
				}
			}
		})
	}
}

func TestReasons(t *testing.T) {
	points, now := chain(t, "UTC", "2026-10-31 10:00", "*2026-11-20 10:00", "2026-11-21 10:00", "!2026-11-21 10:30",
		"2026-11-21 11:00", "2026-11-22 10:00")
	got := Decide(points, Policy{Last: 1, Hourly: 1, Daily: 2, Weekly: 1, Monthly: 3, Yearly: 1, Within: Duration{Days: 1}}, now)
	want := [][]string{
		{"monthly 2026-10"},
		{"pinned"},
		{NoRule},
		{"not counted, not removed: damaged"},
		{"within 1d", "daily 2026-11-21"},
		{"newest", "last 1", "within 1d", "hourly 2026-11-22 10h +0000", "daily 2026-11-22", "weekly 2026-W47",
			"monthly 2026-11", "yearly 2026"},
	}
	for i := range got {
		if !slices.Equal(got[i].Reasons, want[i]) {
			t.Errorf("%s: reasons %q, want %q", points[i].Name, got[i].Reasons, want[i])
		}
	}
}

// TestWrongClock has points that were made while the clock was years ahead: names keep their order then, times do not.
func TestWrongClock(t *testing.T) {
	points, _ := chain(t, "UTC", "2026-01-01 10:00", "2036-01-02 10:00", "2026-01-03 10:00", "2026-01-04 10:00", "2026-01-05 10:00")
	now := points[4].Time.Add(time.Minute)
	got := kept(points, Decide(points, Policy{Within: Duration{Days: 1, Hours: 1}}, now))
	if want := []string{"2036-01-02 10:00", "2026-01-04 10:00", "2026-01-05 10:00"}; !slices.Equal(got, want) {
		t.Errorf("kept %q, want %q", got, want)
	}
	got = kept(points, Decide(points, Policy{Last: 1}, now)) // the last by its time, and the newest
	if want := []string{"2036-01-02 10:00", "2026-01-05 10:00"}; !slices.Equal(got, want) {
		t.Errorf("kept %q, want %q", got, want)
	}
}

func TestParseDuration(t *testing.T) {
	for s, want := range map[string]Duration{
		"":         {},
		"2y5m7d3h": {2, 5, 7, 3},
		"7d":       {Days: 7},
		"3h12m":    {Months: 12, Hours: 3},
		"0d":       {},
	} {
		if got, err := ParseDuration(s); err != nil || got != want {
			t.Errorf("%q: %v, %v, want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"7", "d", "1w", "-1d", "1d2", "1d1d", "1D", "1.5d", " 1d", "99999999999999999999d", "2000000d"} {
		if d, err := ParseDuration(s); err == nil {
			t.Errorf("%q is taken for %v", s, d)
		}
	}
	if s := (Duration{1, 2, 3, 4}).String(); s != "1y2m3d4h" {
		t.Error(s)
	}
}
