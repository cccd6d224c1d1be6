package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/crashpoint"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// FoldOptions of a removal.
type FoldOptions struct {
	Program  string // name and version, for the identity of a point of the Python tool
	Parallel int    // clusters that are decoded and encoded at once
}

// FoldResult says what a fold has done.
type FoldResult struct {
	Point     PointName // that is gone
	Child     PointName // that has its data
	IntoChild bool      // they went into the child's file; otherwise the child's data into its
	Method    string    // "in place", "clone" or "copy": what was done to that file
	Written   int64     // bytes
	// Freed is what both files had allocated, less what the one has now, in bytes. It may be negative where one has another
	// name, or shares extents.
	Freed int64
	// PunchError says why not all of the space came back that was to. The point is gone all the same.
	PunchError error
}

// FoldPoint removes a point that one other lies on, the child, by merging the two into one file that reads as the child does.
// Whatever ends it, at every instant the other points read as they did, and Recover does the rest. The error is an
// *InUseError or a *PinnedError where that is the reason. The caller holds the folder's lock and has called Recover.
func (f *Folder) FoldPoint(ctx context.Context, name PointName, o FoldOptions) (*FoldResult, error) {
	j, err := f.newFold(name, o)
	if err != nil {
		return nil, fmt.Errorf("remove point: %w", err)
	}
	if err := j.run(ctx); err != nil {
		err = fmt.Errorf("remove point %s: %w", f.Path(name), err)
		grace, cancel := undoing(ctx)
		defer cancel()
		done, recoverErr := f.Recover(grace)
		if len(done) > 0 {
			err = fmt.Errorf("%w (%s)", err, strings.Join(done, "; "))
		}
		return nil, errors.Join(err, recoverErr)
	}
	// Only now that it is closed: some file systems allocate more than is written until then.
	j.result.Freed -= f.Point(j.child).DiskSize
	return &j.result, nil
}

// undoGrace bounds what is done after an interruption: to give back space, which can wait for the next fold into the file.
const undoGrace = 10 * time.Second

func undoing(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), undoGrace)
}

// fold is the removal of one point.
type fold struct {
	*Folder
	name, child PointName
	o           FoldOptions
	lock        *PointLock
	chain       *Chain    // of the child
	target      *Point    // whose file gets the data of both
	file        *os.File  // that is changed: the target's, or pending
	pending     *Pending  // nil: the target's is
	confirmed   bool      // the header is about to be written
	unvouched   time.Time // mtime of a point with content that nothing proves; zero: there is none
	result      FoldResult
	step        func(step string) error // for tests
}

// newFold checks what can be without a lock of the points.
func (f *Folder) newFold(name PointName, o FoldOptions) (*fold, error) {
	points, err := f.Points()
	if err != nil {
		return nil, err
	}
	if err := f.removable(points, name); err != nil {
		return nil, err
	}
	above, err := children(points, name)
	if err != nil {
		return nil, err
	}
	if len(above) != 1 {
		return nil, fmt.Errorf("%d points lie on %s, not one", len(above), f.Path(name))
	}
	return &fold{
		Folder: f, name: name, child: above[0].Name, o: o, result: FoldResult{Point: name, Child: above[0].Name},
	}, nil
}

func (j *fold) run(ctx context.Context) (err error) {
	if pending := j.readNote(); pending.Point != "" {
		return &InUseError{j.Path(pending.Child)} // Recover had to leave a removal to another time
	}
	j.note()
	if j.lock, err = j.LockPoints(j.name, j.child); err != nil {
		return err
	}
	defer j.lock.Close()
	// It may have been pinned since newFold has looked. Who pins it from now on waits for the lock.
	if err := j.checkPin(j.name); err != nil {
		return err
	}
	if j.chain, err = j.OpenLockedChain(ctx, j.child, j.lock); err != nil {
		return err
	}
	defer j.chain.Close()
	if err := j.check(ctx); err != nil {
		return err
	}
	if err := j.choose(ctx); err != nil {
		return err
	}
	// What was read may be in memory only, where a removal that was cut short has left it.
	for _, p := range j.chain.Points[:2] {
		if p.Identity == nil || p.Identity.Folded == nil {
			continue
		}
		if err := settle(j.lock.File(p.Name)); err != nil {
			return fmt.Errorf("settle %s: %w", p.Path(), err)
		}
	}
	j.result.Freed = allocated(j.lock.File(j.name)) + allocated(j.lock.File(j.child))
	if err := j.prepare(ctx); err != nil {
		return err
	}
	if j.pending != nil {
		defer j.pending.Discard()
	}
	if err := j.merge(ctx); err != nil {
		return err
	}
	return j.removeNote()
}

// check verifies what the quick check of the two points does not vouch for: the result passes it.
func (j *fold) check(ctx context.Context) error {
	x, image := j.chain.Points[1], j.chain.Image
	if x.Name != j.name || x.State == Removing {
		return fmt.Errorf("it does not lie below %s: was a removal cut short?", j.Path(j.child))
	}
	for _, p := range j.chain.Points[2:] {
		if p.State == Removing {
			return fmt.Errorf("the removal of %s below it has to be completed first", p.Path())
		}
	}
	// What is read from below gets digests with the key.
	for _, p := range j.chain.Points {
		if err := p.CheckKey(j.chain.Points); err != nil {
			return fmt.Errorf("point %s: %w", p.Path(), err)
		}
	}
	for _, p := range j.chain.Points[:2] {
		if p.State == Copied {
			if err := j.checkCopy(ctx, p, image); err != nil {
				return fmt.Errorf("verify %s: %w", p.Path(), err)
			}
		}
		image = image.Backing()
	}
	return nil
}

// checkCopy verifies what the mtime does not vouch for. Without digests that is the structure alone; then the mtime of the result
// does not vouch for it either.
func (j *fold) checkCopy(ctx context.Context, p *Point, image *qcow2.Image) error {
	err := image.VerifyDigests(ctx)
	if errors.Is(err, qcow2.ErrNoDigests) {
		j.unvouched = p.ModTime
		err = image.CheckStructure(ctx)
	}
	return err
}

// choose takes the file that fewer bytes have to be written to.
func (j *fold) choose(ctx context.Context) error {
	intoChild, intoBacking, err := j.chain.FoldCost(ctx)
	if err != nil {
		return err
	}
	c, x := j.chain.Points[0], j.chain.Points[1]
	intoChild, intoBacking = withCopy(intoChild, c), withCopy(intoBacking, x)
	if min(intoChild, intoBacking) == math.MaxInt64 {
		return errors.New("its file and that of the point above can't be merged")
	}
	j.target = x
	if intoChild <= intoBacking {
		j.target, j.result.IntoChild = c, true
	}
	return nil
}

// withCopy adds the cost of copying the file first.
func withCopy(cost int64, p *Point) int64 {
	if p.mustNotChange() && cost < math.MaxInt64-p.DiskSize {
		cost += p.DiskSize
	}
	return cost
}

// merge makes one file of the two.
func (j *fold) merge(ctx context.Context) error {
	if err := j.reached(crashpoint.FoldBegun); err != nil {
		return err
	}
	folded, err := j.fill(ctx)
	if err != nil {
		return errors.Join(err, j.takeBack(ctx))
	}
	j.result.Written += folded.Stats.WrittenBytes
	created := j.chain.Points[0].Created()
	if !j.unvouched.IsZero() {
		created = j.unvouched
	}
	// There is less to do than to undo: no look at ctx any more.
	if err := j.reached(crashpoint.FoldFilled); err != nil {
		return errors.Join(err, folded.Close())
	}
	if err := j.install(created); err != nil {
		return errors.Join(err, folded.Close())
	}
	j.result.PunchError = folded.Punch(puncher{j.file})
	if err := j.reached(crashpoint.FoldPunched); err != nil {
		return err
	}
	return setTime(j.file, created)
}

// takeBack makes of a file that was not switched over what it was: on a full disk no note can tell Recover to.
func (j *fold) takeBack(ctx context.Context) error {
	if j.pending != nil {
		return nil
	}
	ctx, cancel := undoing(ctx)
	defer cancel()
	if now := j.Point(j.target.Name); now.State != Damaged && bytes.Equal(now.IdentityRaw, j.target.IdentityRaw) {
		now.punchFree(ctx, j.file)
	}
	if j.target.Identity == nil {
		return nil
	}
	return setTime(j.file, j.target.Identity.Created)
}

// reached says that a step is done.
func (j *fold) reached(step string) error {
	crashpoint.Reach(step)
	if j.step == nil {
		return nil
	}
	return j.step(step)
}

// note notes what the fold is about. On a full disk it goes on without: that is when space is wanted most.
func (j *fold) note() {
	n := foldNote{Point: j.name, Child: j.child}
	if j.target != nil {
		n.Before = j.target.identityHash()
	}
	if p := (Point{}); j.file != nil && p.stat(j.file) == nil {
		n.Inode = p.inode
	}
	_ = j.writeNote(n)
}
