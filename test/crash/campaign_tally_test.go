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
	fmt.Fprintf(&b, "campaign: %d rounds of %d lives; points checked %d, wrong %d; damages injected %d: reported %d, gone with the file %d, "+
		"of unused bytes %d; failed lives %d\n",
		c["rounds"], c["lives"], c["points checked"], c["wrong"], c["damages injected"], c["damages reported"], c["damages gone"],
		c["damages harmless"], c["failed lives"])
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
