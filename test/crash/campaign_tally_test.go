package crash

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// tally counts what a campaign has done.
type tally map[string]int

// String is the summary of a campaign.
func (c tally) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "campaign: %d rounds of %d lives, failed %d; points checked %d, wrong %d\n",
		c["rounds"], c["lives"], c["failed lives"], c["points checked"], c["wrong"])
	fmt.Fprintf(&b, "damages: injected %d, reported %d, gone with the file %d, of unused bytes %d, mended %d\n",
		c["damages injected"], c["damages reported"], c["damages gone"], c["damages harmless"], c["damages mended"])
	for _, kind := range []string{"run", "strike", "signal", "exit", "reason"} {
		var parts []string
		for _, key := range slices.Sorted(maps.Keys(c)) {
			if what, ok := strings.CutPrefix(key, kind+" "); ok {
				parts = append(parts, fmt.Sprintf("%s %d", what, c[key]))
			}
		}
		fmt.Fprintf(&b, "%ss: %s\n", kind, strings.Join(parts, ", "))
	}
	return b.String()
}
