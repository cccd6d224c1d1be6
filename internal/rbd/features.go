package rbd

import (
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	librbd "github.com/ceph/go-ceph/rbd"
)

// Features is the set of an image's features, RBD_FEATURE_* of librbd.
type Features uint64

// Features that matter here.
const (
	FeatureExclusiveLock = Features(librbd.FeatureExclusiveLock)
	FeatureObjectMap     = Features(librbd.FeatureObjectMap)
	FeatureFastDiff      = Features(librbd.FeatureFastDiff)
	FeatureMigrating     = Features(librbd.FeatureMigrating)
	FeatureNonPrimary    = Features(1 << 10)
)

// creatable are the features that whoever creates an image chooses.
const creatable = Features(librbd.FeatureLayering | librbd.FeatureExclusiveLock | librbd.FeatureObjectMap |
	librbd.FeatureFastDiff | librbd.FeatureDeepFlatten | librbd.FeatureJournaling)

// unknownFeature and the number of a bit name a feature that we have no name for.
const unknownFeature = "unknown-"

// featureNames returns the names that the rbd tool uses, in order of their bits.
func featureNames() []string {
	return []string{"layering", "striping", "exclusive-lock", "object-map", "fast-diff", "deep-flatten",
		"journaling", "data-pool", "operations", "migrating", "non-primary", "dirty-cache"}
}

// Has reports whether all of f are set.
func (s Features) Has(f Features) bool { return s&f == f }

// Names returns the features as "rbd info" prints them, in order of their bits.
func (s Features) Names() []string {
	known := featureNames()
	var names []string
	for rest := uint64(s); rest != 0; rest &= rest - 1 {
		bit := bits.TrailingZeros64(rest)
		if bit < len(known) {
			names = append(names, known[bit])
		} else {
			names = append(names, unknownFeature+strconv.Itoa(bit))
		}
	}
	return names
}

// ParseFeatures is the inverse of [Features.Names].
func ParseFeatures(names []string) (Features, error) {
	known := featureNames()
	var s Features
	for _, name := range names {
		bit := slices.Index(known, name)
		if number, ok := strings.CutPrefix(name, unknownFeature); ok {
			n, err := strconv.ParseUint(number, 10, 6) // 64 bits
			if err != nil {
				return 0, fmt.Errorf("image feature %q: no number of a bit", name)
			}
			bit = int(n)
		}
		if bit < 0 {
			return 0, fmt.Errorf("image feature %q: unknown", name)
		}
		s |= 1 << bit
	}
	return s, nil
}

// Creatable returns those of the features that can be asked for when an image is created. The others follow from something
// else (striping, data-pool), are states that an image gets into (operations, migrating, non-primary, dirty-cache) or are
// unknown.
func (s Features) Creatable() Features { return s & creatable }
