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
	// Marks and Settled are what the search for Snapshot has given. nil: that was not asked.
	Marks   []Marks
	Settled bool
	// LastSnapshot is the last that was made of the image when Snapshot was complete: that one, or one that Settle made.
	LastSnapshot uint64
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
	// Settle is called before the cluster is asked anything where a rollback may be under way, which goes on writing
	// into the snapshot. It must see to it that this ends. nil: nothing is done.
	Settle   func(ctx context.Context) error
	Progress func(done, total int64) // bytes of the disk that are to be asked about; may be nil
}

// Result tells how the changes were found.
type Result struct {
	Method  string  // one of the constants
	Reason  string  // for the method, for people
	Objects int64   // of the image
	Asked   int64   // objects that the cluster was asked about
	Lied    bool    // the object maps were found to be wrong, as Reason tells
	Settled bool    // no rollback was under way when the snapshot was made
	Marks   []Marks // for the next search, from this snapshot; of snapshots whose maps were not read there are none
}

// Find calls add for every range of img that may differ from the base, in ascending order and never concurrently, as
// rbd.Image.Diff does. Nothing that differs is left out. Errors are those of the cluster, and add's own.
func Find(ctx context.Context, img *rbd.Image, o Options, add func(rbd.Extent) error) (Result, error) {
	f := &finder{img: img, o: o, size: img.Size(), maps: map[uint64]*rbd.ObjectMap{}}
	r := Result{Method: MethodPrecise, Objects: img.Objects(f.size)}
	from := ""
	if o.Base == nil {
		r.Method = MethodFull
	} else {
		from = o.Base.Snapshot.Name
	}
	if f.size == 0 {
		r.Reason = "the image is empty"
		return r, nil
	}
	if err := f.look(ctx); err != nil {
		return r, err
	}
	doubt := f.doubt()
	r.Marks, r.Settled = f.marks, doubt == "" || f.quiet()
	if !r.Settled && o.Settle != nil {
		if err := o.Settle(ctx); err != nil {
			return r, err
		}
	}
	if err := f.lookAtHead(ctx); err != nil {
		return r, err
	}
	objects, reason := f.narrow(doubt)
	if objects != nil && doubt == "" {
		lie, err := f.spotCheck(ctx, objects)
		if err != nil {
			return r, err
		}
		if lie != "" {
			r.Lied, objects, reason = true, nil, lie
		}
	}
	r.Reason, r.Asked = reason, r.Objects
	ranges := []span{{0, f.size}}
	if objects != nil {
		ranges, r.Asked = f.ranges(objects), objects.count()
		r.Reason = fmt.Sprintf("%s name %d of %d objects", reason, r.Asked, r.Objects)
		if o.Base != nil {
			r.Method = MethodNarrowed
		}
	}
	return r, f.diff(ctx, from, ranges, f.o.Progress, add)
}

// finder is one call of Find.
type finder struct {
	img  *rbd.Image
	o    Options
	size int64

	// What look finds.
	snapshots  []rbd.Snapshot            // those there are
	newer      rbd.Snapshot              // that the image is open at; for its head with id 0
	parent     *rbd.Parent               // at newer
	maps       map[uint64]*rbd.ObjectMap // by snapshot; of those that are not to be trusted there is none
	damage     string                    // why newer has no map; "": it has
	baseDamage string                    // why the base has none
	appeared   *objectSet                // between the base and newer; nil: not known
	marks      []Marks

	head *rbd.ObjectMap // some time after newer; nil: not known
}
