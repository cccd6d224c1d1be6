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
	// Settle is called before the cluster is asked about changes where a rollback or a shrink may be under way, which
	// goes on writing into the snapshot. It must see to it that this ends. nil: nothing is done.
	Settle   func(ctx context.Context) error
	Progress func(done, total int64) // bytes of the disk that are to be asked about; may be nil
}

// Result tells how the changes were found.
type Result struct {
	Method  string // one of the constants
	Reason  string // for the method, for people
	Objects int64  // of the image
	Asked   int64  // objects that the cluster was asked about
	Lied    bool   // the object maps were found to be wrong, as Reason tells
	// Unprovable says that nothing was reported, for the reason given: what the base was read by is not known any more.
	Unprovable bool

	// For the next search, from this snapshot:

	Quiet     bool    // neither a rollback nor a shrink was under way when it was made
	Marks     []Marks // of snapshots whose maps were not read there are none
	Existence string  // what objects it was read by: ByObjects, or a hash of those that exist by its map
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
	doubt, err := f.settle(ctx, &r)
	if err != nil {
		return r, err
	}
	r.Marks = f.marks
	if r.Existence, err = f.readBy(); err != nil {
		return r, err
	}
	if f.unprovable != "" {
		r.Unprovable, r.Reason = true, f.unprovable
		return r, nil
	}
	objects, reason := f.narrow(doubt)
	if objects != nil && doubt == "" {
		lie, err := f.spotCheck(ctx, objects)
		if err != nil {
			return r, err
		}
		if lie != "" {
			r.Lied, r.Quiet, objects, reason = true, false, nil, lie
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

// settle finds out whether something may be under way that writes into the snapshot, and has it ended. doubt is why the
// marks are not to be relied on.
func (f *finder) settle(ctx context.Context, r *Result) (doubt string, err error) {
	doubt = f.doubt()
	r.Quiet = (doubt == "" || f.quiet()) && !f.beingRemoved()
	if !r.Quiet && f.o.Settle != nil {
		if err := f.o.Settle(ctx); err != nil {
			return doubt, err
		}
	}
	if err := f.lookAtHead(ctx); err != nil || !r.Quiet || doubt != "" || f.head == nil || f.headNotRolledBack() {
		return doubt, err
	}
	// One that has begun just before the snapshot.
	if r.Quiet = false; f.o.Settle != nil {
		err = f.o.Settle(ctx)
	}
	return doubt, err
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
	damage     string                    // why newer's map, or the head's, is of no use; "": they are
	mapless    bool                      // librbd reads newer without a map
	baseDamage string                    // why the base's is of no use
	unsure     *unsure                   // nil: not known
	unprovable string                    // why there can be no diff; "": there can
	marks      []Marks

	head *rbd.ObjectMap // some time after newer; nil: not known
}
