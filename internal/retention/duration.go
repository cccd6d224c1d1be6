package retention

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Duration is a span of the calendar: a month is from a day to the same day of another month.
type Duration struct{ Years, Months, Days, Hours int }

// maxDuration bounds each number of a duration, so that every time less every duration is one that can be computed.
const maxDuration = 1_000_000

// ParseDuration reads a duration such as "2y5m7d3h": years, months, days and hours, each at most once.
func ParseDuration(s string) (Duration, error) {
	var d Duration
	units := map[byte]*int{'y': &d.Years, 'm': &d.Months, 'd': &d.Days, 'h': &d.Hours}
	for rest := s; rest != ""; {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		if digits == 0 || digits == len(rest) || units[rest[digits]] == nil {
			return Duration{}, fmt.Errorf("duration %q: must be numbers, each with its unit y, m, d or h, as in 2y5m7d3h", s)
		}
		n, err := strconv.Atoi(rest[:digits])
		if err != nil || n > maxDuration {
			return Duration{}, fmt.Errorf("duration %q: %s is too large", s, rest[:digits])
		}
		unit := rest[digits]
		*units[unit] = n
		delete(units, unit)
		rest = rest[digits+1:]
	}
	return d, nil
}

// IsZero says that a duration is none.
func (d Duration) IsZero() bool { return d == Duration{} }

// String gives what ParseDuration reads; "" for none.
func (d Duration) String() string {
	var b strings.Builder
	for _, part := range []struct {
		n    int
		unit byte
	}{{d.Years, 'y'}, {d.Months, 'm'}, {d.Days, 'd'}, {d.Hours, 'h'}} {
		if part.n != 0 {
			fmt.Fprintf(&b, "%d%c", part.n, part.unit)
		}
	}
	return b.String()
}

// times gives n times the duration.
func (d Duration) times(n int) Duration {
	return Duration{d.Years * n, d.Months * n, d.Days * n, d.Hours * n}
}

// Before gives the time that lies so long before t, by the calendar of t's location.
func (d Duration) Before(t time.Time) time.Time {
	return t.AddDate(-d.Years, -d.Months, -d.Days).Add(-time.Duration(d.Hours) * time.Hour)
}
