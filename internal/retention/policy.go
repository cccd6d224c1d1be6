// Package retention decides which points of an image stay: points and rules in, reasons out. It reads and removes
// nothing. The rules have the meaning that restic gives them.
package retention

import (
	"fmt"
	"time"
)

// Unlimited is the count of a rule that keeps all of its kind.
const Unlimited = -1

// maxCount bounds the counts, so that as many years are a time that can be computed.
const maxCount = 100_000

// Policy is the rules. A point stays if any of them keeps it.
type Policy struct {
	// Of as many points, hours, days, ISO weeks, months and years as have a point, the newest point each; 0: no such rule.
	Last, Hourly, Daily, Weekly, Monthly, Yearly int
	// Within keeps what was made in that time before the newest point; zero: no such rule.
	Within Duration
	// MaxChain is how many points a chain may have at most, whatever the rules keep; 0: any number.
	MaxChain int
}

// Empty says that there is no rule and no limit, so that nothing is to be done.
func (p Policy) Empty() bool { return p == Policy{} }

// Validate reports the first value that is out of its range.
func (p Policy) Validate() error {
	for _, n := range []int{p.Last, p.Hourly, p.Daily, p.Weekly, p.Monthly, p.Yearly} {
		if n < Unlimited || n > maxCount {
			return fmt.Errorf("keep %d: must be from 0 to %d", n, maxCount)
		}
	}
	if p.MaxChain < 0 {
		return fmt.Errorf("max-chain %d: must be at least 1", p.MaxChain)
	}
	return nil
}

// keepsAll says that there is a limit alone.
func (p Policy) keepsAll() bool {
	p.MaxChain = 0
	return p.Empty()
}

// Point is a point, as far as it matters here.
type Point struct {
	Name   string
	Time   time.Time // when it was made
	Parent string    // name of the point that it lies on; "": none
	Pinned bool
	// Unreadable is why the point can't be read, "" if it can. No rule counts it, or the good one of the same day would
	// go, and it is not removed either: what is to become of it is for people to say.
	Unreadable string
}

// Decision is what becomes of a point.
type Decision struct {
	Keep    bool
	Reasons []string // at least one, for either
}

// NoRule is the reason why a point goes that nothing speaks for.
const NoRule = "no rule keeps it"

// Decide decides about the points of an image, which are in the repository's order: the last one is the base of the next
// increment. It gives the decisions in the same order. Hours, days, weeks, months and years are those of now's location.
//
// The newest point stays, and so does each that is pinned, that can't be read or that a rule keeps. Where a chain then still
// has more than p.MaxChain points, those go that would be missed least, even if a rule keeps them: see chain.go.
func Decide(points []Point, p Policy, now time.Time) []Decision {
	d := &decider{policy: p, now: now, points: points, out: make([]Decision, len(points))}
	if len(points) == 0 {
		return d.out
	}
	d.keep(len(points)-1, "newest")
	for i, point := range points {
		if point.Pinned {
			d.keep(i, "pinned")
		}
		if point.Unreadable != "" {
			d.keep(i, "not counted, not removed: "+point.Unreadable)
		}
	}
	d.applyRules()
	if p.MaxChain > 0 {
		d.shorten()
	}
	for i := range d.out {
		if len(d.out[i].Reasons) == 0 {
			d.out[i].Reasons = []string{NoRule}
		}
	}
	return d.out
}

// decider is one call of Decide.
type decider struct {
	policy Policy
	now    time.Time
	points []Point
	out    []Decision
}

func (d *decider) keep(i int, reason string) {
	d.out[i].Keep = true
	d.out[i].Reasons = append(d.out[i].Reasons, reason)
}
