package changes

import (
	"context"
	"fmt"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
)

// Mode is what --diff chooses.
type Mode string

// The modes.
const (
	Auto    Mode = "auto"    // narrowed where it is proved safe, otherwise precise
	Precise Mode = "precise" // every object of the image is asked about
)

// The methods that a Result names.
const (
	MethodFull     = "full"     // there was no base
	MethodPrecise  = "precise"  // every object of the image was asked about
	MethodNarrowed = "narrowed" // those that the object maps name
)

// Base is what has to be known of the older snapshot.
type Base struct {
	Snapshot rbd.Snapshot // of the user namespace
	Parent   *rbd.Parent  // of the image at that snapshot; nil: none
	// Others are the ids of the other snapshots that the image had when Snapshot was made. nil: that is not known.
	Others []uint64
	Marks  []Marks // that the search for Snapshot has given
}

// Marks are some of the objects that the map of a snapshot called written since the snapshot before.
type Marks struct {
	Snapshot uint64
	Objects  []int64
}

// Options say what to look for, and how. Base and what it refers to stay the caller's.
type Options struct {
	Base     *Base  // nil: all that exists is wanted
	Snapshot uint64 // id of the snapshot that the image is open at; 0: its head
	SnapSeq  uint64 // id of the last snapshot that was made of the image before that one
	Mode     Mode   // empty: Auto
	Distrust string // why object maps must not be believed; empty: they may be
	Parallel int    // calls of librbd at once; 0: 8
	// SpotChecks is how many objects are asked about although the maps do not name them; 0: 64, negative: none.
	SpotChecks int
	Progress   func(done, total int64) // bytes of the disk that are to be asked about; may be nil
}

// Result tells how the changes were found.
type Result struct {
	Method  string  // one of the constants
	Reason  string  // for the method, for people
	Objects int64   // of the image
	Asked   int64   // objects that the cluster was asked about
	Lied    bool    // the object maps were found to be wrong, as Reason tells
	Marks   []Marks // for the next search, from this snapshot; of snapshots whose maps were not read there are none
}

// Find calls add for every range of img that may differ from the base, in ascending order and never concurrently, as
// rbd.Image.Diff does. Nothing that differs is left out. Errors are those of the cluster, and add's own.
func Find(ctx context.Context, img *rbd.Image, o Options, add func(rbd.Extent) error) (Result, error) {
	f := &finder{img: img, o: o, size: img.Size()}
	r := Result{Method: MethodPrecise, Objects: img.Objects(f.size)}
	if o.Base == nil {
		r.Method = MethodFull
	}
	objects, reason, err := f.narrow(ctx)
	r.Reason, r.Lied, r.Marks = reason, f.lied, f.marks
	if err != nil {
		return r, err
	}
	ranges, from := []span{{0, f.size}}, ""
	r.Asked = r.Objects
	if objects != nil {
		ranges = f.ranges(objects)
		r.Asked = objects.count()
		r.Reason = fmt.Sprintf("%s name %d of %d objects", reason, r.Asked, r.Objects)
		if o.Base != nil {
			r.Method = MethodNarrowed
		}
	}
	if o.Base != nil {
		from = o.Base.Snapshot.Name
	}
	return r, f.diff(ctx, from, ranges, f.o.Progress, add)
}

// finder is one call of Find.
type finder struct {
	img       *rbd.Image
	o         Options
	size      int64
	snapshots []rbd.Snapshot // those there are
	newer     rbd.Snapshot   // that the image is open at; for its head with id 0
	lied      bool           // the maps
	marks     []Marks
}

// narrow gives the objects that have to be asked about, and by what they are known, or nil and the reason why all of
// them have to be.
func (f *finder) narrow(ctx context.Context) (*objectSet, string, error) {
	if f.o.Mode == Precise {
		return nil, "asked for", nil
	}
	if f.o.Distrust != "" {
		return nil, f.o.Distrust, nil
	}
	objects, reason, err := f.proof(ctx)
	if damage, ok := asDamage(err); ok {
		return nil, damage, nil
	}
	return objects, reason, err
}
