package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/rbd2qcow2/rbd2qcow2/internal/crashpoint"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

const (
	markerName   = "rbd2qcow2.json"
	markerFormat = 1
	stateDir     = ".state"
)

// ErrNotRepository says that a directory has no marker and does not look like the Python tool's either.
var ErrNotRepository = errors.New("not a repository")

// marker is the content of the marker file.
type marker struct {
	Format     int    `json:"format"`
	Repository string `json:"repository"` // UUID
	Source
}

// Source is the pool that a repository is bound to by its first backup.
type Source struct {
	FSID      string `json:"fsid,omitempty"`
	PoolID    int64  `json:"pool_id,omitempty"`
	Pool      string `json:"pool,omitempty"`
	Namespace string `json:"namespace,omitempty"`
}

// Repository is an open repository.
type Repository struct {
	Dir string
	// DigestKey is the key of the digests, for those points that have such, and for new ones; nil: none.
	DigestKey *qcow2.DigestKey
	marker    marker
}

// Init makes a repository of a new or empty directory. A mount point's lost+found does not count.
func Init(dir string) (*Repository, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("make repository: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("make repository: %w", err)
	}
	for _, e := range entries {
		switch e.Name() {
		case "lost+found":
		case markerName:
			return nil, fmt.Errorf("make repository: %s is one already", dir)
		default:
			if strings.HasPrefix(e.Name(), temporaryPrefix) {
				continue // of an init that was killed; the first backup removes it
			}
			return nil, fmt.Errorf("make repository: %s is not empty (it has %q)", dir, e.Name())
		}
	}
	r := newRepository(dir)
	if err := r.writeMarker(); err != nil {
		return nil, fmt.Errorf("make repository: %w", err)
	}
	return r, nil
}

// newRepository gives a repository that is not on disk yet.
func newRepository(dir string) *Repository {
	return &Repository{Dir: dir, marker: marker{Format: markerFormat, Repository: uuid.NewString()}}
}

// Open opens a repository. Nothing is written.
func Open(dir string) (*Repository, error) {
	b, err := os.ReadFile(filepath.Join(dir, markerName))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(dir); err != nil {
			return nil, fmt.Errorf("open repository: %w", err)
		}
		return nil, fmt.Errorf("open repository %s: %w: it has no %s; is the right file system mounted? "+
			"\"rbd2qcow2 init %s\" makes a repository", dir, ErrNotRepository, markerName, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("open repository: %w", err)
	}
	r := &Repository{Dir: dir}
	if err := json.Unmarshal(b, &r.marker); err != nil {
		return nil, fmt.Errorf("open repository %s: read %s: %w", dir, markerName, err)
	}
	if r.marker.Format != markerFormat {
		return nil, fmt.Errorf("open repository %s: format %d, this program knows format %d",
			dir, r.marker.Format, markerFormat)
	}
	if _, err := uuid.Parse(r.marker.Repository); err != nil {
		return nil, fmt.Errorf("open repository %s: %s has no repository id: %w", dir, markerName, err)
	}
	return r, nil
}

// OpenOrAdopt opens a repository, or takes a directory that the Python tool has left for one; Bind makes it one for good.
func OpenOrAdopt(dir string) (*Repository, error) {
	r, err := Open(dir)
	if !errors.Is(err, ErrNotRepository) {
		return r, err
	}
	old, scanErr := hasForeignLayout(dir)
	if scanErr != nil {
		return nil, fmt.Errorf("open repository: %w", scanErr)
	}
	if !old {
		return nil, err
	}
	return newRepository(dir), nil
}

// hasForeignLayout looks for IMAGE/IMAGE@SECONDS.qcow2 beside IMAGE/empty.qcow2.
func hasForeignLayout(dir string) (old bool, err error) {
	empties, err := filepath.Glob(filepath.Join(globEscape(dir), "*", foreignBase))
	if err != nil {
		return false, err
	}
	for _, empty := range empties {
		f := &Folder{Dir: filepath.Dir(empty), Name: filepath.Base(filepath.Dir(empty))}
		names, err := f.pointNames()
		if err != nil {
			return false, err
		}
		if i := slices.IndexFunc(names, func(n PointName) bool { return !n.Foreign() }); i >= 0 {
			return false, fmt.Errorf("%s is missing, though there are points of a repository (%s): put it back from a copy",
				filepath.Join(dir, markerName), f.Path(names[i]))
		}
		old = old || len(names) > 0
	}
	return old, nil
}

func globEscape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// ID is the repository's UUID.
func (r *Repository) ID() string { return r.marker.Repository }

// SnapshotPrefix begins the names of this repository's snapshots, and of no others.
func (r *Repository) SnapshotPrefix() string {
	return "rbd2qcow2." + strings.ReplaceAll(r.marker.Repository, "-", "")[:12] + "."
}

// SnapshotName is the name of the snapshot that a point is read from.
func (r *Repository) SnapshotName(p PointName) string { return r.SnapshotPrefix() + string(p) }

// Source is the pool that the repository is bound to; ok is false before its first backup.
func (r *Repository) Source() (s Source, ok bool) { return r.marker.Source, r.marker.FSID != "" }

// CheckSource refuses another pool than the one that the repository is bound to. A pool may be renamed, or be made
// anew under its name: what its images are then is for their identities to tell.
func (r *Repository) CheckSource(s Source) error {
	bound, ok := r.Source()
	samePool := bound.PoolID == s.PoolID || bound.Pool == s.Pool
	if ok && (bound.FSID != s.FSID || bound.Namespace != s.Namespace || !samePool) {
		return fmt.Errorf("repository %s belongs to %s, not to %s: use another directory", r.Dir, bound, s)
	}
	return nil
}

// Bind binds the repository to a pool, for good, or checks that it is bound to that one.
func (r *Repository) Bind(ctx context.Context, s Source) error {
	if err := r.CheckSource(s); err != nil {
		return err
	}
	if bound, _ := r.Source(); bound == s {
		return nil
	}
	if err := r.bind(ctx, s); err != nil {
		return fmt.Errorf("bind repository to its pool: %w", err)
	}
	crashpoint.Reach(crashpoint.MarkerBound)
	return nil
}

// bind does it alone: of two first backups, of different pools, one must not bind over the other.
func (r *Repository) bind(ctx context.Context, s Source) error {
	ctx, cancel := context.WithTimeoutCause(ctx, markerWait, errors.New("another run has it locked"))
	defer cancel()
	lock, err := r.lockMarker(ctx)
	if errors.Is(err, fs.ErrNotExist) { // a directory of the Python tool
		if err := r.createMarker(); err != nil {
			return err
		}
		lock, err = r.lockMarker(ctx)
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	current, err := Open(r.Dir)
	if err != nil {
		return err
	}
	if err := current.CheckSource(s); err != nil {
		return err
	}
	if _, err := removeDeadTemporaries(r.Dir); err != nil {
		return err
	}
	current.marker.Source = s
	if err := current.writeMarker(); err != nil {
		return err
	}
	r.marker = current.marker
	return nil
}

// markerWait bounds the wait for the marker's lock, which is held for moments only.
const markerWait = 10 * time.Second

// lockMarker waits for the lock of the marker file, which ends when the file is closed.
func (r *Repository) lockMarker(ctx context.Context) (*os.File, error) {
	path := filepath.Join(r.Dir, markerName)
	for {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		if err := awaitFlock(ctx, f); err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		locked, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		if current, err := os.Stat(path); err == nil && os.SameFile(locked, current) {
			return f, nil
		}
		f.Close() // another run has replaced it
	}
}

// awaitFlock waits for a file's lock until ctx ends.
func awaitFlock(ctx context.Context, f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s Source) String() string {
	spec := s.Pool
	if s.Namespace != "" {
		spec += "/" + s.Namespace
	}
	return fmt.Sprintf("pool %s (id %d) of cluster %s", spec, s.PoolID, s.FSID)
}

func (r *Repository) writeMarker() error { return r.putMarker((*Pending).replace) }

// createMarker writes the marker unless another run has done so meanwhile.
func (r *Repository) createMarker() error {
	if err := r.putMarker((*Pending).link); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func (r *Repository) putMarker(name func(p *Pending, path string) error) error {
	b, err := json.MarshalIndent(&r.marker, "", "  ")
	if err != nil {
		return err
	}
	return writeFileAtomic(filepath.Join(r.Dir, markerName), append(b, '\n'), 0o640, name)
}
