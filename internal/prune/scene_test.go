package prune

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/retention"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

const (
	clusterSize = 4 << 10
	clusters    = 64
)

// scene is a repository with points that are made without a cluster.
type scene struct {
	t    *testing.T
	repo *repo.Repository
	log  bytes.Buffer
	want map[string][]byte // what the points that there are to be read as, by their files' paths
}

func newScene(t *testing.T) *scene {
	t.Helper()
	r, err := repo.Init(t.TempDir() + "/repository")
	if err != nil {
		t.Fatal(err)
	}
	return &scene{t: t, repo: r, want: map[string][]byte{}}
}

// add makes an increment on the newest point of a folder, or a full one where that is asked for or there is none. The disk is
// that of the point before, with some clusters changed.
func (s *scene) add(folder string, at time.Time, full bool) repo.PointName {
	s.t.Helper()
	f := s.repo.Folder(folder)
	newest, err := f.Newest()
	if err := errors.Join(err, f.Create()); err != nil {
		s.t.Fatal(err)
	}
	id := &repo.Identity{
		Program: "test", Repository: s.repo.ID(), Chain: uuid.NewString(), PointID: uuid.NewString(), Point: repo.NextPointName(at, ""),
		Created: at, ClusterSize: clusterSize, Compression: "none",
	}
	state := make([]byte, clusters*clusterSize)
	var changed []int
	for i := range clusters / 2 {
		changed = append(changed, i)
	}
	if newest != nil {
		copy(state, s.want[newest.Path()])
		id.Point = repo.NextPointName(at, newest.Name)
	}
	if newest != nil && !full {
		id.Parent, id.Chain, id.Generation = newest.AsParent(), newest.Identity.Chain, newest.Identity.Generation+1
		n := len(s.want)
		changed = []int{n % clusters, n * 7 % clusters, clusters - 1}
		slices.Sort(changed)
		changed = slices.Compact(changed)
	}
	for _, i := range changed {
		copy(state[i*clusterSize:], strings.Repeat(uuid.NewString(), clusterSize/36))
	}
	id.Image.SetName(folder)
	id.Image.Size = int64(len(state))
	if err := write(s.t.Context(), f, id, state); err != nil {
		s.t.Fatal(err)
	}
	s.want[f.Path(id.Point)] = state
	return id.Point
}

// write makes a point of all clusters that differ from what its parent has.
func write(ctx context.Context, f *repo.Folder, id *repo.Identity, state []byte) error {
	o := qcow2.WriterOptions{Size: int64(len(state)), ClusterSize: clusterSize}
	before := make([]byte, len(state))
	if id.Parent != nil {
		o.BackingFile = f.BackingName(id.Parent.Point)
		chain, err := f.OpenChain(ctx, id.Parent.Point)
		if err != nil {
			return err
		}
		defer chain.Close()
		if _, err := chain.ReadAt(before, 0); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	file, err := f.CreatePending()
	if err != nil {
		return err
	}
	defer file.Discard()
	w, err := qcow2.NewWriter(file, o)
	if err != nil {
		return err
	}
	encoder, err := qcow2.NewChunkEncoder(nil)
	if err != nil {
		return err
	}
	for off := 0; off < len(state); off += clusterSize {
		if is := state[off:][:clusterSize]; !bytes.Equal(is, before[off:][:clusterSize]) {
			chunk := &qcow2.Chunk{Offset: int64(off), Data: is}
			if err := errors.Join(encoder.Encode(chunk, clusterSize), w.Append(chunk)); err != nil {
				return err
			}
		}
	}
	identity, err := id.Encode()
	if err != nil {
		return err
	}
	return errors.Join(w.Finish(identity), w.Close(), file.Commit(f.FileName(id.Point), id.Created))
}

// options are those of a test; the log goes to s.log.
func (s *scene) options(p retention.Policy, now time.Time) Options {
	log := slog.New(slog.NewTextHandler(&s.log, nil))
	return Options{Policy: p, Now: now, Logger: log, Progress: progress.Log{Logger: log}}
}

// run prunes, which must not fail as a whole.
func (s *scene) run(o Options) *Report {
	s.t.Helper()
	report, err := Run(s.t.Context(), s.repo, o)
	if err != nil {
		s.t.Fatal(err)
	}
	return report
}

// forget says that a point is to be gone.
func (s *scene) forget(folder string, points ...repo.PointName) {
	for _, p := range points {
		delete(s.want, s.repo.Folder(folder).Path(p))
	}
}

// check compares what there is with what there is to be, to the byte.
func (s *scene) check() {
	s.t.Helper()
	folders, err := s.repo.Folders()
	if err != nil {
		s.t.Fatal(err)
	}
	missing := maps.Clone(s.want)
	for _, f := range folders {
		points, err := f.Points()
		if err != nil {
			s.t.Fatal(err)
		}
		for _, p := range points {
			want, ok := missing[p.Path()]
			if !ok {
				s.t.Errorf("%s is still there", p.Path())
				continue
			}
			delete(missing, p.Path())
			s.checkPoint(p, want)
		}
	}
	for path := range missing {
		s.t.Errorf("%s is gone", path)
	}
}

func (s *scene) checkPoint(p *repo.Point, want []byte) {
	s.t.Helper()
	if p.State != repo.Good {
		s.t.Errorf("%s is %s: %v", p.Path(), p.State, p.Err)
	}
	chain, err := p.Folder.OpenProvedChain(s.t.Context(), p.Name)
	if err != nil {
		s.t.Error(err)
		return
	}
	defer chain.Close()
	got := make([]byte, len(want))
	if _, err := chain.ReadAt(got, 0); err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(got, want) {
		s.t.Errorf("%s reads as something else (%v)", p.Path(), err)
	}
	qemutest.Check(s.t, p.Path())
}
