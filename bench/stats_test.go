package main

import "testing"

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   spread
	}{
		{nil, spread{}},
		{[]float64{3}, spread{3, 3, 3, 1}},
		{[]float64{4, 1}, spread{2.5, 1, 4, 2}},
		{[]float64{9, 1, 2}, spread{2, 1, 9, 3}},
	} {
		if got := newSpread(c.values); got != c.want {
			t.Errorf("spread of %v is %v, want %v", c.values, got, c.want)
		}
	}
}

// Ratios are of the same round: here the machine was slower in the second.
func TestRatios(t *testing.T) {
	var rs runs
	add := func(workload, contestant string, seconds ...float64) {
		for round, s := range seconds {
			rs = append(rs, run{Workload: workload, Contestant: contestant, Round: round, Seconds: s})
		}
	}
	k := key{thin, 0}
	add(thin, oursAuto, 4, 8)
	add(thin, exportDiff, 8, 16)
	if got, want := rs.ratio(k, oursAuto, exportDiff, seconds), (spread{0.5, 0.5, 0.5, 2}); got != want {
		t.Errorf("ratio %v, want %v", got, want)
	}
	if got := rs.net(k, oursAuto, exportDiff); got.n != 0 {
		t.Errorf("net ratio %v without fixed costs", got)
	}
	add(tiny, oursAgain, 2, 2)
	add(tiny, info, 0.5, 1.5)
	if got, want := rs.net(k, oursAuto, exportDiff), (spread{(2./7 + 6./15) / 2, 2. / 7, 6. / 15, 2}); got != want {
		t.Errorf("net ratio %v, want %v", got, want)
	}
	if got := rs.ratio(key{thin, 2}, oursAuto, exportDiff, seconds); got.n != 0 {
		t.Errorf("ratio %v of runs that were not measured", got)
	}
}
