package changes

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Defect is a known way in which some releases of Ceph tell wrongly what has changed.
type Defect struct {
	Source   string // where it is described: numbers at tracker.ceph.com, pull requests of github.com/ceph/ceph
	Effect   string // what goes wrong, for a message
	Part     Part
	Releases []Releases // that have it
	Exposed  bool       // whether a point made by this program may be wrong by it
	Because  string     // why it is not exposed, or how far it is
}

// Part is the software that has a defect.
type Part string

// The parts.
const (
	Library Part = "librbd" // as this program has loaded it
	OSD     Part = "OSD"
	// Writer is librbd where the virtual machines run, which keeps the object map. It can't be seen from here: the
	// release of the library and of the OSDs is the best guess.
	Writer Part = "librbd of the virtual machines"
	// Kernel is Linux where images are mapped by it, which can't be seen from here, nor guessed.
	Kernel Part = "kernel client"
)

// Releases is a range of Ceph releases, of which From has the defect and To, if there is one, no longer.
type Releases struct{ From, To string }

// Defects gives the defects of the Ceph release that the loaded library is of and of those that the OSDs run, such as
// "16.2.15", as [rbd.Version] tells them. Of a release that is empty or no release it knows none.
func Defects(library string, osds []string) []Defect {
	cluster := append([]string{library}, osds...)
	return slices.DeleteFunc(knownDefects(), func(d Defect) bool {
		switch d.Part {
		case Library:
			return !d.in(library)
		case OSD:
			return !slices.ContainsFunc(osds, d.in)
		case Writer:
			return !slices.ContainsFunc(cluster, d.in)
		}
		return true
	})
}

// String says what goes wrong, in what, and where that is described.
func (d Defect) String() string { return fmt.Sprintf("%s (%s; %s)", d.Effect, d.Part, d.Source) }

func (d *Defect) in(release string) bool {
	r := parseRelease(release)
	return r != nil && slices.ContainsFunc(d.Releases, func(have Releases) bool {
		return slices.Compare(r, parseRelease(have.From)) >= 0 && (have.To == "" || slices.Compare(r, parseRelease(have.To)) < 0)
	})
}

// parseRelease splits "16.2.15", which distributions and developers may have added to behind a hyphen; nil if it is
// nothing of the kind.
func parseRelease(release string) []int {
	release, _, _ = strings.Cut(release, "-")
	var numbers []int
	for part := range strings.SplitSeq(release, ".") {
		n, err := strconv.ParseUint(part, 10, 16)
		if err != nil {
			return nil
		}
		numbers = append(numbers, int(n))
	}
	if len(numbers) != 3 {
		return nil
	}
	return numbers
}

// knownDefects is the table. The releases with a repair are those whose release notes (doc/releases in Ceph's sources)
// list the backport; "seen" is what this program's authors found themselves, and says nothing about other releases.
func knownDefects() []Defect {
	return slices.Concat(preciseDefects(), mapDefects(), fastDiffDefects())
}

// preciseDefects are those of the precise diff.
func preciseDefects() []Defect {
	return []Defect{{
		Source:   "tracker 63770, PR 56064",
		Effect:   "discards that truncate an object are not accounted for",
		Part:     Library,
		Releases: []Releases{{"16.0.0", "17.2.8"}, {"18.0.0", "18.2.4"}, {"19.0.0", "19.1.0"}},
		Exposed:  true,
		Because:  "the precise diff lists objects by the code repaired, though none was ever seen wrong on 16.2.15",
	}, {
		Source:   "tracker 64735, PR 55991",
		Effect:   "what was written before a rollback is reported as changed by it",
		Part:     OSD,
		Releases: []Releases{{"0.0.0", ""}},
		Because:  "too much is reported, and read for nothing",
	}, {
		Source:   "PR 54547",
		Effect:   "holes are reported where there was a hole before",
		Part:     Library,
		Releases: []Releases{{"0.0.0", "16.2.15"}, {"17.0.0", "17.2.8"}, {"18.0.0", "18.2.4"}},
		Because:  "zeroes over zeroes are right, and not stored",
	}}
}

// mapDefects are those by which the object maps themselves are wrong.
func mapDefects() []Defect {
	return []Defect{{
		Source:   "tracker 61616, PR 52109",
		Effect:   "object maps of snapshots taken under load lack changes",
		Part:     Writer,
		Releases: []Releases{{"16.0.0", "16.2.14"}, {"17.0.0", "17.2.7"}, {"18.0.0", "18.2.0"}},
		Exposed:  true,
		Because:  "object maps are believed, unless only the precise diff is asked for",
	}, {
		Source:  "tracker 61472, repaired in Linux 6.4 and the stable series of June 2023",
		Effect:  "object maps of snapshots taken under load lack changes",
		Part:    Kernel,
		Exposed: true,
		Because: "object maps are believed, unless only the precise diff is asked for",
	}}
}

// fastDiffDefects are those of librbd's own use of object maps and of its diff by whole objects.
func fastDiffDefects() []Defect {
	const notUsed = "librbd's diff by whole objects is not used: object maps are read and compared here"
	fastDiff := func(source, effect string, have ...Releases) Defect {
		return Defect{Source: source, Effect: effect, Part: Library, Releases: have, Because: notUsed}
	}
	return []Defect{
		fastDiff("seen on 16.2.15", "holes are missed where the image was smaller at a snapshot in between",
			Releases{"16.2.15", "16.2.16"}),
		fastDiff("seen on 16.2.15", "changes are missed after a rollback",
			Releases{"16.2.15", "16.2.16"}),
		fastDiff("tracker 48526, PR 38539; seen on 16.2.15", "changes are missed where the map of a snapshot in between can't be read",
			Releases{"16.2.15", "16.2.16"}),
		fastDiff("tracker 66570, PR 58201; seen on 16.2.15", "of an image opened with its encryption, offsets are wrong",
			Releases{"16.0.0", "17.2.8"}, Releases{"18.0.0", "18.2.5"}, Releases{"19.0.0", "19.2.0"}),
		fastDiff("tracker 66418, PR 57973", "the process ends where a range is empty",
			Releases{"16.2.15", "16.2.16"}, Releases{"18.2.4", "18.2.5"}, Releases{"19.0.0", "19.2.0"}),
		fastDiff("tracker 63654, PR 54755", "changes by whole objects are reported wrongly where there is no valid object map",
			Releases{"16.0.0", "16.2.15"}, Releases{"17.0.0", "17.2.8"}, Releases{"18.0.0", "18.2.4"}),
		fastDiff("tracker 63341, PR 55127", "each call loads whole object maps",
			Releases{"0.0.0", "16.2.15"}, Releases{"17.0.0", "17.2.8"}, Releases{"18.0.0", "18.2.4"}),
		fastDiff("tracker 53784, PR 44483", "offsets are wrong where a range begins inside an object",
			Releases{"0.0.0", "15.2.16"}, Releases{"16.0.0", "16.2.8"}),
		fastDiff("tracker 53787, PR 44496", "data of a clone's parent is left out",
			Releases{"16.0.0", "16.2.8"}),
		fastDiff("tracker 42248, PR 32403", "data of a clone's parent is left out",
			Releases{"0.0.0", "14.2.8"}),
		fastDiff("tracker 53885, PR 45638", "extents come unsorted",
			Releases{"16.0.0", "16.2.8"}),
		fastDiff("tracker 50787, PR 41657", "all of the image is reported",
			Releases{"0.0.0", "15.2.16"}, Releases{"16.0.0", "16.2.7"}),
	}
}
