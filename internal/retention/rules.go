package retention

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// rule keeps the newest point of each of as many periods as have one.
type rule struct {
	name  string
	count int
	// period names the period that a time is in. It differs from that of the times around it.
	period func(t time.Time) string
}

func (p Policy) rules() []rule {
	return []rule{
		{"hourly", p.Hourly, func(t time.Time) string { return t.Format("2006-01-02 15h -0700") }}, // the offset: 25 hours in a day
		{"daily", p.Daily, func(t time.Time) string { return t.Format("2006-01-02") }},
		{"weekly", p.Weekly, func(t time.Time) string {
			year, week := t.ISOWeek()
			return fmt.Sprintf("%d-W%02d", year, week)
		}},
		{"monthly", p.Monthly, func(t time.Time) string { return t.Format("2006-01") }},
		{"yearly", p.Yearly, func(t time.Time) string { return t.Format("2006") }},
	}
}

// byTime lists the readable points, the newest first. It goes by the true times: names keep their order even where the clock
// has been set back.
func (d *decider) byTime() []int {
	var order []int
	for i := range d.points {
		if d.points[i].Unreadable == "" {
			order = append(order, i)
		}
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(d.points[b].Time.Compare(d.points[a].Time), cmp.Compare(b, a))
	})
	return order
}

// applyRules keeps what the rules keep.
func (d *decider) applyRules() {
	order := d.byTime()
	if d.policy.keepsAll() {
		for _, i := range order {
			d.keep(i, "kept unless its chain is too long")
		}
		return
	}
	for n, i := range order {
		if d.policy.Last == Unlimited || n < d.policy.Last {
			d.keep(i, fmt.Sprintf("last %d", n+1))
		}
	}
	d.keepWithin(order)
	for _, r := range d.policy.rules() {
		d.keepPeriods(r, order)
	}
}

// latest is the time of the newest point that is not in the future; the zero time where all are, by a clock that is wrong.
func (d *decider) latest(order []int) time.Time {
	for _, i := range order {
		if t := d.points[i].Time; !t.After(d.now) {
			return t
		}
	}
	return time.Time{}
}

// keepWithin keeps what is not older than Within, seen from the latest point.
func (d *decider) keepWithin(order []int) {
	if d.policy.Within.IsZero() {
		return
	}
	since := d.policy.Within.Before(d.latest(order).In(d.now.Location()))
	for _, i := range order {
		if d.points[i].Time.After(since) {
			d.keep(i, "within "+d.policy.Within.String())
		}
	}
}

// keepPeriods keeps the newest point of each period, as many as the rule says. While it still has some left the very oldest
// point stays too, so that the history is as long as it was meant to be from the beginning.
func (d *decider) keepPeriods(r rule, order []int) {
	left, last := r.count, ""
	for n, i := range order {
		if left == 0 {
			return
		}
		period := r.period(d.points[i].Time.In(d.now.Location()))
		switch {
		case period != last:
			d.keep(i, r.name+" "+period)
		case n == len(order)-1:
			d.keep(i, "oldest "+r.name)
		default:
			continue
		}
		last = period
		if left > 0 {
			left--
		}
	}
}
