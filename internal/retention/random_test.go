package retention

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// TestYear prunes after each of two years' daily points: what stays has to be what the rules say, and holes grow with age.
func TestYear(t *testing.T) {
	for _, p := range []Policy{
		{Daily: 7, Weekly: 4, Monthly: 12}, {MaxChain: 16}, {Daily: 7, Weekly: 4, Monthly: 12, Yearly: 5, MaxChain: 14},
		{Last: 5, MaxChain: 3}, {Daily: 30, MaxChain: 10},
	} {
		t.Run(fmt.Sprint(p), func(t *testing.T) {
			var points []Point
			start := time.Date(2025, 1, 1, 3, 0, 0, 0, time.UTC)
			for day := range 730 {
				at := start.AddDate(0, 0, day)
				next := Point{Name: at.Format(time.DateOnly), Time: at}
				if len(points) > 0 {
					next.Parent = points[len(points)-1].Name
				}
				points = append(points, next)
				points = remove(points, Decide(points, p, at))
				if limit := p.MaxChain; limit > 0 && len(points) > limit {
					t.Fatalf("day %d: %d points, the limit is %d", day, len(points), limit)
				}
			}
			// A week and a month are among the days, and a month may be among the weeks.
			if p.MaxChain == 0 && len(points) != 7+4+12-2-1 && len(points) != 7+4+12-2 {
				t.Errorf("%d points are left", len(points))
			}
			newest := points[len(points)-1].Time
			if oldest := points[0].Time; !p.keepsAll() && p.Last == 0 && oldest.Before(p.horizon(newest).AddDate(0, 0, -1)) {
				t.Errorf("a point of %v is left", oldest)
			}
			for i := 1; p.keepsAll() && i < len(points); i++ {
				hole, age := points[i].Time.Sub(points[i-1].Time), newest.Sub(points[i-1].Time)
				if days := hole.Hours() / 24; days > 1 && hole > age/2 {
					t.Errorf("%.0f days between %s and %s", days, points[i-1].Name, points[i].Name)
				}
			}
			t.Log(kept(points, Decide(points, Policy{Last: Unlimited}, newest)))
		})
	}
}

// remove takes out what is decided to go; its child lies on its parent then.
func remove(points []Point, decisions []Decision) []Point {
	var left []Point
	up := map[string]string{}
	for i, p := range points {
		if parent, gone := up[p.Parent]; gone {
			p.Parent = parent
		}
		if decisions[i].Keep {
			left = append(left, p)
		} else {
			up[p.Name] = p.Parent
		}
	}
	return left
}

// TestRandom holds what must always be so against random points, among them such that name each other as parents.
func TestRandom(t *testing.T) {
	for seed := range uint64(2000) {
		rng := rand.New(rand.NewPCG(seed, 0))
		points := make([]Point, rng.IntN(40))
		at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		for i := range points {
			at = at.Add(time.Duration(rng.Int64N(int64(50 * time.Hour))))
			points[i] = Point{Name: fmt.Sprint(i), Time: at, Pinned: rng.IntN(6) == 0}
			if rng.IntN(6) > 0 {
				points[i].Parent = fmt.Sprint(max(i-1-rng.IntN(2), -1))
			}
			if rng.IntN(9) == 0 {
				points[i].Parent = fmt.Sprint(rng.IntN(len(points)))
			}
			if rng.IntN(12) == 0 {
				points[i].Unreadable = "damaged"
			}
		}
		p := Policy{Last: rng.IntN(3), Daily: rng.IntN(5), Weekly: rng.IntN(3), MaxChain: rng.IntN(8)}
		decisions := Decide(points, p, at)
		again := Decide(points, p, at)
		for i, d := range decisions {
			must := points[i].Pinned || points[i].Unreadable != "" || i == len(points)-1
			if must && !d.Keep {
				t.Fatalf("seed %d: %+v goes: %q", seed, points[i], d.Reasons)
			}
			if d.Keep != again[i].Keep {
				t.Fatalf("seed %d: decided twice, differently", seed)
			}
		}
	}
}
