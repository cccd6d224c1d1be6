package live

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// Request says which point to restore to which image.
type Request struct {
	Repo   *repo.Repository
	Folder *repo.Folder
	Point  repo.PointName
	FSID   string // of the pool's cluster
	Pool   *rbd.Pool
	Image  string // its name

	Progress Progress
	Logger   *slog.Logger
}

// Options are for what begins; what is resumed has them from then.
type Options struct {
	Listen    string            // ADDRESS:PORT of the server; port 0 is a free one
	Advertise string            // HOST[:PORT] where clients find it; "": as Listen
	Create    rbd.CreateOptions // what the image is made with; the size is that of the point
}

// Progress is told how far a restore is.
type Progress interface {
	Phase(what string) // "import", "commit", "sparsify"
	Advance(done, total int64)
}

// UnfinishedError is the cause why a restore ended before it was done: Resume goes on, Abort removes the image.
type UnfinishedError struct{ Err error }

func (e *UnfinishedError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *UnfinishedError) Unwrap() error { return e.Err }

// Restore is a live restore that this process carries on. Close ends that.
type Restore struct {
	Request
	journal *journal
	source  *source // nil: nobody needs it any more
	stage   stage
}

// Begin makes the image: when it returns, others can use it, for as long as the Restore is not closed. Nothing was changed where
// it returns an error, unless that is an *UnfinishedError.
func Begin(ctx context.Context, r Request, o Options) (*Restore, error) {
	if err := r.Pool.SupportsImport(ctx); err != nil {
		return nil, err
	}
	if err := r.refuseExisting(ctx); err != nil {
		return nil, err
	}
	j, err := createJournal(r.journalPath())
	if err != nil {
		return nil, r.fail(err)
	}
	l := &Restore{Request: r, journal: j, stage: absent}
	if err := l.begin(ctx, o); err != nil {
		var unfinished *UnfinishedError
		if !errors.As(err, &unfinished) {
			err = errors.Join(err, j.remove())
		}
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Restore) begin(ctx context.Context, o Options) error {
	s, err := listen(ctx, &l.Request, o.Listen, newToken())
	if err != nil {
		return l.fail(err)
	}
	l.source = s
	address, err := s.address(o.Advertise)
	if err != nil {
		return l.fail(err)
	}
	l.Logger.Info("serving the point: all hosts that open the image have to reach this", "address", address)
	e := entry{
		Target: l.target(), Point: l.pointSpec(), PointID: l.pointID(), Started: time.Now().UTC().Truncate(time.Second),
		Listen: s.listener.Addr().String(), Token: s.token,
	}
	if err := l.journal.write(e); err != nil {
		return l.fail(err)
	}
	s.start()
	err = l.Pool.PrepareImport(ctx, l.Image, s.spec(address), o.Create)
	if errors.Is(err, rbd.ErrAbandoned) || errors.Is(err, rbd.ErrTimeout) {
		return &UnfinishedError{err} // it may come yet
	}
	if err != nil {
		return err
	}
	l.stage = copying
	ref, err := l.Pool.FindImage(ctx, l.Image)
	if err == nil {
		err = l.journal.write(entry{ImageID: ref.ID})
	}
	if err != nil {
		return &UnfinishedError{err}
	}
	return nil
}

// Resume takes up a restore that was interrupted. When it returns, others can use the image again, as after Begin.
func Resume(ctx context.Context, r Request) (*Restore, error) {
	j, err := openJournal(r.journalPath())
	if err != nil {
		return nil, r.fail(err)
	}
	l := &Restore{Request: r, journal: j}
	if err := l.resume(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Restore) resume(ctx context.Context) (err error) {
	e := l.journal.entry
	if e.Point != l.pointSpec() || e.PointID != l.pointID() {
		return l.fail(fmt.Errorf("it is unfinished, but from %s, not from %s", e.Point, l.pointSpec()))
	}
	s, listenErr := listen(ctx, &l.Request, e.Listen, e.Token)
	if listenErr == nil {
		l.source = s
		s.start()
	} else {
		listenErr = l.fail(listenErr)
	}
	if l.stage, err = l.findStage(ctx, l.journal); err != nil {
		return errors.Join(listenErr, err)
	}
	switch l.stage {
	case absent:
		return errors.Join(l.fail(errors.New("there is no such image any more: nothing to resume")), l.journal.remove())
	case stuck:
		return l.fail(errors.New("its removal has begun, or it was never ready: it can only be aborted"))
	case copying:
		return listenErr
	}
	return nil
}

// Close ends the server. Unless the restore is done, nobody can use the image from now on.
func (l *Restore) Close() error {
	if l.source != nil {
		l.source.close()
		l.source = nil
	}
	return l.journal.close()
}

// target names the image for the journal.
func (r *Request) target() target {
	return target{FSID: r.FSID, PoolID: r.Pool.ID(), Namespace: r.Pool.Namespace(), Image: r.Image}
}

// pointSpec is FOLDER@POINT.
func (r *Request) pointSpec() string { return r.Folder.Name + "@" + string(r.Point) }

// pointID is "" for a point of the Python tool.
func (r *Request) pointID() string {
	if id := r.Folder.Point(r.Point).Identity; id != nil {
		return id.PointID
	}
	return ""
}

func (r *Request) fail(err error) error {
	return fmt.Errorf("live restore to %s: %w", r.Pool.Spec(r.Image), err)
}
