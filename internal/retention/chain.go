package retention

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// shorten takes points away, one after the other, until no chain has more than MaxChain. Of the chains that are too long those
// go that would be missed least:
//
// First what is older than the time that the rules speak of, the oldest first: seven daily points reach back a week, unless there
// are days without one. Or the limit, which makes such days, would keep points that the rules alone had given up.
//
// Then the one whose removal leaves the smallest hole for its age,
//
//	(time of the point after it - time of the point before it) / (time of the newest point - its own time)
//
// among all points that are left. So distances grow with age, however often this is repeated. The oldest point goes only where
// no other may. Of equals the older goes.
func (d *decider) shorten() {
	order := d.byTime()
	latest := d.latest(order)
	since := d.policy.horizon(latest.In(d.now.Location()))
	slices.Reverse(order) // the oldest first
	for {
		kept := slices.DeleteFunc(slices.Clone(order), func(i int) bool { return !d.out[i].Keep })
		n := d.leastMissed(kept, latest, since)
		if n < 0 {
			return
		}
		d.drop(kept, n, since)
	}
}

// horizon is how far the rules reach back from a point in time; the zero time where there is no end to it.
func (p Policy) horizon(latest time.Time) time.Time {
	if p.keepsAll() {
		return time.Time{}
	}
	since := latest
	for _, reach := range []struct {
		count int
		unit  Duration
	}{
		{p.Last, Duration{}}, {p.Hourly, Duration{Hours: 1}}, {p.Daily, Duration{Days: 1}}, {p.Weekly, Duration{Days: 7}},
		{p.Monthly, Duration{Months: 1}}, {p.Yearly, Duration{Years: 1}}, {1, p.Within},
	} {
		if reach.count == Unlimited {
			return time.Time{}
		}
		if t := reach.unit.times(reach.count).Before(latest); t.Before(since) {
			since = t
		}
	}
	return since
}

// leastMissed gives the place in kept of the point to go next, -1 where no chain is too long or nothing in it may go. kept is
// the points that are left, the oldest first.
func (d *decider) leastMissed(kept []int, latest, since time.Time) int {
	tooLong := d.inLongChains()
	victim, least := -1, math.Inf(1)
	for n, i := range kept {
		if !tooLong[i] || d.points[i].Pinned || i == len(d.points)-1 {
			continue
		}
		if d.points[i].Time.Before(since) {
			return n
		}
		if hole := d.hole(kept, n, latest); victim < 0 || hole < least {
			victim, least = n, hole
		}
	}
	return victim
}

// hole is how much the point kept[n] would be missed.
func (d *decider) hole(kept []int, n int, latest time.Time) float64 {
	if n == 0 || n == len(kept)-1 {
		return math.Inf(1)
	}
	at := func(n int) time.Time { return d.points[kept[n]].Time }
	age := max(latest.Sub(at(n)), time.Second)
	return at(n+1).Sub(at(n-1)).Seconds() / age.Seconds()
}

// drop has a point go that was to stay.
func (d *decider) drop(kept []int, n int, since time.Time) {
	i := kept[n]
	reason := fmt.Sprintf("chain of more than %d points: ", d.policy.MaxChain)
	switch {
	case d.points[i].Time.Before(since):
		reason += "older than the rules reach back"
	case n == 0 || n == len(kept)-1:
		reason += "no other may go"
	default:
		reason += fmt.Sprintf("missed least, between %s and %s", d.points[kept[n-1]].Name, d.points[kept[n+1]].Name)
	}
	if !d.policy.keepsAll() {
		reason += ", despite " + strings.Join(d.out[i].Reasons, ", ")
	}
	d.out[i] = Decision{Reasons: []string{reason}}
}

// inLongChains gives the points of chains that are too long: from any point down to the full one, as far as they stay.
func (d *decider) inLongChains() map[int]bool {
	index := make(map[string]int, len(d.points))
	for i, p := range d.points {
		index[p.Name] = i
	}
	parent := func(i int) int {
		if up, ok := index[d.points[i].Parent]; ok && up < i { // what is not older is no parent, nor a way out of here
			return up
		}
		return -1
	}
	length := make([]int, len(d.points)) // of the chain that ends in a point, of those that stay
	for i := range d.points {
		if up := parent(i); up >= 0 {
			length[i] = length[up]
		}
		if d.out[i].Keep {
			length[i]++
		}
	}
	tooLong := map[int]bool{}
	for i := len(d.points) - 1; i >= 0; i-- { // children before their parents
		if d.out[i].Keep && length[i] > d.policy.MaxChain {
			tooLong[i] = true
		}
		if up := parent(i); tooLong[i] && up >= 0 {
			tooLong[up] = true
		}
	}
	return tooLong
}
