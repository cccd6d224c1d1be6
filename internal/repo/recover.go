package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// foldNote says in .state/fold that a fold is under way, so that recovery need not read a whole file to know that it is as
// it should be. The files alone tell all that must be known.
type foldNote struct {
	Point PointName `json:"point"` // that is to go
	Child PointName `json:"child"` // that lies on it
	Inode uint64    `json:"inode"` // of the file that is changed, which no copy of it has; 0: none is yet
	// Before is the hash of the identity that this file had; "" where it had none.
	Before string `json:"before,omitempty"`
}

// isOf says whether a point's file is the one that the fold has changed, and nobody else has since.
func (n *foldNote) isOf(p *Point) bool {
	if p.inode != n.Inode || p.State == Damaged {
		return false
	}
	folded := p.Identity != nil && p.Identity.Folded != nil && p.Identity.Folded.Point == n.Point
	return folded || p.identityHash() == n.Before
}

// identityHash is the hash of the file's identity; "" where it has none.
func (p *Point) identityHash() string {
	if p.IdentityRaw == nil {
		return ""
	}
	return HashIdentity(p.IdentityRaw)
}

func (f *Folder) writeNote(n foldNote) error {
	b, err := json.Marshal(&n)
	if err != nil {
		return err
	}
	if err := f.writeState("fold", b); err != nil {
		return fmt.Errorf("note that a point is being removed: %w", err)
	}
	return nil
}

// readNote gives an empty note where there is none to be read.
func (f *Folder) readNote() (n foldNote) {
	b, err := os.ReadFile(f.StatePath("fold"))
	if err != nil || json.Unmarshal(b, &n) != nil {
		return foldNote{}
	}
	return n
}

func (f *Folder) removeNote() error {
	if err := os.Remove(f.StatePath("fold")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// PendingRemoval is the point whose removal was cut short and has to be completed by Recover; "" for none.
func (f *Folder) PendingRemoval() PointName { return f.readNote().Point }

// recovery completes what was cut short of removing points.
type recovery struct {
	*Folder
	note   foldNote
	points []*Point
	done   []string
	later  bool // something is left to do
}

// Recover completes, or takes back, what was cut short of removing points, and says what it has done, a line each. What is in
// use is left to the next time: it reads right as it is. The caller holds the folder's lock. ctx ends only what takes long,
// to give space back.
func (f *Folder) Recover(ctx context.Context) (done []string, err error) {
	if _, err := removeDeadTemporaries(filepath.Join(f.Dir, stateDir)); err != nil {
		return nil, err
	}
	r := &recovery{Folder: f, note: f.readNote()}
	for _, step := range []func(context.Context) error{r.nameResults, r.unlinkFolded, r.restoreTarget} {
		if r.points, err = f.Points(); err != nil {
			return r.done, err
		}
		if err := step(ctx); err != nil {
			return r.done, fmt.Errorf("complete the removal of a point: %w", err)
		}
	}
	if r.later {
		return r.done, nil
	}
	return r.done, f.removeNote()
}

func (r *recovery) say(format string, args ...any) {
	r.done = append(r.done, fmt.Sprintf(format, args...))
}

// lock locks points for the sake of the one to be removed; where that is not possible now, ok is false.
func (r *recovery) lock(removed PointName, names ...PointName) (l *PointLock, ok bool, err error) {
	l, err = r.LockPoints(names...)
	var inUse *InUseError
	if errors.As(err, &inUse) || hasNoLocks(err) {
		r.later = true
		r.say("the removal of point %s is completed another time: %v", removed, err)
		return nil, false, nil
	}
	return l, err == nil, err
}

// point gives one of the points, nil if it is not there.
func (r *recovery) point(name PointName) *Point {
	for _, p := range r.points {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// nameResults gives the files that have the data of a point and of the one above it the name of that one.
func (r *recovery) nameResults(ctx context.Context) error {
	for _, x := range r.points {
		if x.State != Removing {
			continue
		}
		name := x.Identity.Point
		locked := []PointName{x.Name}
		if child := r.point(name); child != nil {
			if child.State != Damaged && (child.Parent() != x.Name || !x.carries(child)) {
				continue // another one: nobody can tell how this came about
			}
			locked = append(locked, name)
		}
		if err := r.nameResult(ctx, x, locked); err != nil {
			return err
		}
	}
	return nil
}

func (r *recovery) nameResult(ctx context.Context, x *Point, locked []PointName) error {
	l, ok, err := r.lock(x.Name, locked...)
	if !ok {
		return err
	}
	defer l.Close()
	if err := x.settle(ctx, l.File(x.Name), r.note.isOf(x)); err != nil {
		return err
	}
	if err := os.Rename(x.Path(), r.Path(x.Identity.Point)); err != nil {
		return err
	}
	r.say("completed the removal of point %s, which was cut short: its file is that of point %s now", x.Name, x.Identity.Point)
	return SyncDir(r.Dir)
}

// settle is settle for the file of a point. The mtime is put right where it was, or where the file is known to be the one that the fold
// has changed; of which then goes what it has superseded.
func (p *Point) settle(ctx context.Context, file *os.File, known bool) error {
	if err := settle(file); err != nil {
		return fmt.Errorf("settle %s: %w", p.Path(), err)
	}
	fits := known || p.hasOwnTime()
	if known {
		p.punchFree(ctx, file)
	}
	if fits {
		return setTime(file, p.Identity.Created) // otherwise the next backup verifies the digests
	}
	return setTime(file, p.ModTime)
}

// unlinkFolded removes the point that has been folded into another one. Only the note tells which: a point that was put back from
// a copy looks the same, and one too many does no harm. While a file waits for its name nothing goes: what it is below, by its old
// name, can't be told apart from what is below the point above.
func (r *recovery) unlinkFolded(ctx context.Context) error {
	if r.later {
		return nil
	}
	for _, c := range r.points {
		if c.State == Damaged || c.Identity == nil || c.Identity.Folded == nil {
			continue
		}
		x := r.point(c.Identity.Folded.Point)
		if x == nil || !r.wasFolded(x, c) {
			continue
		}
		l, ok, err := r.lock(x.Name, x.Name, c.Name)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if err = c.settle(ctx, l.File(c.Name), r.note.isOf(c)); err == nil {
			err = r.unlink(x.Name)
		}
		if err = errors.Join(err, l.Close()); err != nil {
			return err
		}
		r.say("completed the removal of point %s, which was cut short: point %s has its data", x.Name, c.Name)
	}
	return nil
}

// wasFolded says whether x is what has just been folded into c.
func (r *recovery) wasFolded(x, c *Point) bool {
	if r.note.Point != x.Name || r.note.Child != c.Name || !r.note.isOf(c) || x.OriginHash() != c.Identity.Folded.OriginSHA256 {
		return false
	}
	if x.State == Damaged || x.State == Removing || r.checkPin(x.Name) != nil {
		return false
	}
	above, err := children(r.points, x.Name)
	return err == nil && len(above) == 0
}

// restoreTarget puts right the file that a fold has changed in place.
func (r *recovery) restoreTarget(ctx context.Context) error {
	for _, p := range r.points {
		if p.Name != r.note.Point && p.Name != r.note.Child {
			continue
		}
		// A user other than root makes a file writable for a moment.
		if info, err := os.Stat(p.Path()); err == nil && info.Mode()&0o200 != 0 && p.Identity != nil {
			_ = os.Chmod(p.Path(), info.Mode()&^0o222)
		}
		if !r.note.isOf(p) || p.State == Removing {
			continue
		}
		l, ok, err := r.lock(r.note.Point, p.Name)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if err := errors.Join(r.restore(ctx, p, l.File(p.Name)), l.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (r *recovery) restore(ctx context.Context, p *Point, file *os.File) error {
	excess := p.excess()
	if excess > 0 {
		if err := p.cutExcess(file); err != nil {
			return err
		}
		r.say("took back the removal of point %s, which was cut short: cut %d bytes off point %s", r.note.Point, excess, p.Name)
	}
	p.punchFree(ctx, file)
	if p.Identity == nil {
		return nil
	}
	return setTime(file, p.Identity.Created)
}
