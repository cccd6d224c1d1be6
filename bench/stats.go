package main

import "slices"

// spread is of values of which one was measured per round.
type spread struct {
	median, least, most float64
	n                   int
}

func newSpread(values []float64) spread {
	if len(values) == 0 {
		return spread{}
	}
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return spread{median: (v[(n-1)/2] + v[n/2]) / 2, least: v[0], most: v[n-1], n: n}
}

// runs are in the order in which they were measured.
type runs []run

// key names what is compared.
type key struct {
	workload  string
	latencyMS int
}

func (rs runs) of(k key, contestant string) (found runs) {
	for _, r := range rs {
		if r.Workload == k.workload && r.LatencyMS == k.latencyMS && r.Contestant == contestant {
			found = append(found, r)
		}
	}
	return found
}

func (rs runs) spread(value func(run) float64) spread {
	var values []float64
	for _, r := range rs {
		values = append(values, value(r))
	}
	return newSpread(values)
}

// ratio is of the values of two contestants in the same round.
func (rs runs) ratio(k key, contestant, reference string, value func(run) float64) spread {
	ours, theirs := rs.of(k, contestant), rs.of(k, reference)
	var values []float64
	for i := range min(len(ours), len(theirs)) {
		values = append(values, value(ours[i])/value(theirs[i]))
	}
	return newSpread(values)
}

// net is the ratio of times without what each of them takes for an empty image, on median: connecting, and our snapshots.
func (rs runs) net(k key, contestant, reference string) spread {
	fixed := func(contestant string) float64 {
		return rs.of(key{tiny, k.latencyMS}, fixedCosts(contestant)).spread(seconds).median
	}
	ours, theirs := fixed(contestant), fixed(reference)
	if ours == 0 || theirs == 0 {
		return spread{}
	}
	return rs.ratio(k, contestant, reference, func(r run) float64 {
		if r.Contestant == contestant {
			return max(0, r.Seconds-ours)
		}
		return r.Seconds - theirs
	})
}

// fixedCosts names the contestant whose time tells what another takes without any work.
func fixedCosts(contestant string) string {
	switch contestant {
	case oursNone, oursZstd:
		return oursFirst
	case oursAuto, oursPrecise:
		return oursAgain
	case convertNone, convertZstd:
		return convertInfo
	}
	return info
}

// groups returns what was compared and by whom, in the order of measurement.
func (rs runs) groups() (keys []key, contestants map[key][]string) {
	contestants = map[key][]string{}
	for _, r := range rs {
		k := key{r.Workload, r.LatencyMS}
		if contestants[k] == nil {
			keys = append(keys, k)
		}
		if !slices.Contains(contestants[k], r.Contestant) {
			contestants[k] = append(contestants[k], r.Contestant)
		}
	}
	return keys, contestants
}

func seconds(r run) float64   { return r.Seconds }
func peak(r run) float64      { return float64(r.PeakBytes) }
func apparent(r run) float64  { return float64(r.Apparent) }
func allocated(r run) float64 { return float64(r.Allocated) }
func cpu(r run) float64       { return r.CPUSeconds }
