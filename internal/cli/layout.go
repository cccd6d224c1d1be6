//go:build !noceph

package cli

import (
	"cmp"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/restore"
)

// unfinishedGrace bounds the look at what a failed restore has left.
const unfinishedGrace = 3 * time.Second

// layoutFlags are what a new image is made with, by the names of "rbd create".
type layoutFlags struct {
	features    []string
	objectSize  string
	dataPool    string
	stripeUnit  string
	stripeCount int64
}

func (f *layoutFlags) add(flags *pflag.FlagSet) {
	flags.StringSliceVar(&f.features, "image-feature", nil, "`FEATURE`s of a new image; by default those that the image had")
	flags.StringVar(&f.objectSize, "object-size", "", "`SIZE` of a new image's objects; by default as it was")
	flags.StringVar(&f.dataPool, "data-pool", "", "`POOL` for a new image's data; by default as it was")
	flags.StringVar(&f.stripeUnit, "stripe-unit", "", "`SIZE` of a new image's stripes; by default as it was, where that fits --object-size")
	flags.Int64Var(&f.stripeCount, "stripe-count", 0, "over `N` objects a new image's stripes go in turn; by default as it was")
}

func (f *layoutFlags) given() bool {
	return len(f.features) > 0 || f.objectSize+f.dataPool+f.stripeUnit != "" || f.stripeCount != 0
}

func (f *layoutFlags) validate(target string) error {
	if f.given() && !isRBD(target) {
		return usagef("--image-feature, --object-size, --data-pool and --stripe-* are for RBD images")
	}
	for option, size := range map[string]string{"object-size": f.objectSize, "stripe-unit": f.stripeUnit} {
		if _, err := parseSize(size); err != nil {
			return usageError{fmt.Errorf("--%s: %w", option, err)}
		}
	}
	return nil
}

// create gives what was asked for, and otherwise what the point's identity tells of the image.
// pool is the name of the pool that it is made in, which as a data pool means none.
func (f *layoutFlags) create(src *restore.Source, pool string, log *slog.Logger) (o rbd.CreateOptions, err error) {
	var names []string
	// What the Python tool has made tells nothing of the image, also where a fold has given it an identity.
	if id := src.Chain.Points[0].Identity; id != nil && id.Image.ObjectSize > 0 {
		i := &id.Image
		names = append([]string{}, i.Features...)
		o = rbd.CreateOptions{ObjectSize: i.ObjectSize, DataPool: cmp.Or(i.DataPool, pool)}
		if i.StripeCount > 1 || i.StripeUnit != i.ObjectSize {
			o.StripeUnit, o.StripeCount = i.StripeUnit, i.StripeCount
		}
	}
	if len(f.features) > 0 {
		names = strings.Split(strings.Join(f.features, ","), ",")
	}
	if names != nil {
		if o.Features, err = rbd.ParseFeatures(names); err != nil {
			return o, err
		}
		o.FeaturesSet = true
	}
	if f.dataPool != "" {
		o.DataPool = f.dataPool
	}
	return o, f.stripes(&o, log)
}

// stripes sets the size of objects, and how stripes go over them: as before, where that is possible and nothing else was
// asked for.
func (f *layoutFlags) stripes(o *rbd.CreateOptions, log *slog.Logger) (err error) {
	if f.objectSize != "" {
		if o.ObjectSize, err = parseSize(f.objectSize); err != nil {
			return err
		}
	}
	if f.stripeUnit != "" {
		if o.StripeUnit, err = parseSize(f.stripeUnit); err != nil {
			return err
		}
	}
	if f.stripeCount != 0 {
		o.StripeCount = f.stripeCount
	}
	if f.stripeUnit == "" && f.stripeCount == 0 && o.StripeUnit > 0 && o.ObjectSize%o.StripeUnit != 0 {
		log.Warn("the image was striped, and the new one is not: its stripes don't fit into objects of the size given",
			"object_size", o.ObjectSize, "stripe_unit", o.StripeUnit, "stripe_count", o.StripeCount)
		o.StripeUnit, o.StripeCount = 0, 0
	}
	return nil
}
