package repo

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

const (
	sceneCluster = 4 << 10
	sceneSize    = 256 << 10
)

// scene is a folder with points that are made without a cluster.
type scene struct {
	*Folder
	t      testing.TB
	rng    *rand.Rand
	codec  qcow2.Codec
	points []PointName
	states map[PointName][]byte // what each point must read as
	writes int                  // clusters that differ from point to point, about

	compression string
}

// newScene makes a chain of n points.
func newScene(t testing.TB, n int) *scene {
	t.Helper()
	f := (&Repository{Dir: t.TempDir()}).Folder("vm")
	if err := f.Create(); err != nil {
		t.Fatal(err)
	}
	s := &scene{
		Folder: f, t: t, rng: rand.New(rand.NewPCG(1, uint64(n))), states: map[PointName][]byte{}, writes: 8, compression: "none",
	}
	for range n {
		s.add()
	}
	return s
}

// add makes a point: a full one, or an increment on the newest.
func (s *scene) add() *Point {
	s.t.Helper()
	id := &Identity{
		Program: "test", Repository: uuid.NewString(), Chain: uuid.NewString(), PointID: uuid.NewString(),
		Point:   NextPointName(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), ""),
		Created: time.Date(2026, 1, 2, 3, 4, 5, 678_000, time.UTC), ClusterSize: sceneCluster, Compression: s.compression,
	}
	state := make([]byte, sceneSize)
	if n := len(s.points); n > 0 {
		newest := s.Point(s.points[n-1])
		copy(state, s.states[newest.Name])
		id.Point, id.Parent = NextPointName(id.Created, newest.Name), newest.AsParent()
		if newest.Identity != nil {
			id.Chain, id.Generation = newest.Identity.Chain, newest.Identity.Generation+1
		}
	}
	for range s.writes {
		off := s.rng.IntN(sceneSize/sceneCluster) * sceneCluster
		for i := range sceneCluster {
			state[off+i] = byte(s.rng.Uint32())
		}
	}
	clear(state[s.rng.IntN(sceneSize/sceneCluster)*sceneCluster:][:sceneCluster])
	id.Image.SetName("vm")
	id.Image.Size = sceneSize
	s.write(id.Point, id, state)
	s.points = append(s.points, id.Point)
	s.states[id.Point] = state
	p := s.Point(id.Point)
	if p.State != Good {
		s.t.Fatalf("point %s is %s: %v", p.Path(), p.State, p.Err)
	}
	return p
}

// write writes a file of that name with an identity and what makes it read as state.
func (s *scene) write(name PointName, id *Identity, state []byte) {
	s.t.Helper()
	o := qcow2.WriterOptions{Size: int64(len(state)), ClusterSize: sceneCluster, Codec: s.codec}
	var was io.ReaderAt = bytes.NewReader(nil)
	if id.Parent != nil {
		chain, err := s.OpenChain(s.t.Context(), id.Parent.Point)
		if err != nil {
			s.t.Fatal(err)
		}
		defer func() { _ = chain.Close() }()
		was, o.BackingFile = chain, s.BackingName(id.Parent.Point)
	}
	file, err := s.CreatePending()
	if err != nil {
		s.t.Fatal(err)
	}
	defer file.Discard()
	w, err := qcow2.NewWriter(file, o)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := errors.Join(appendChanges(w, o.Codec, was, state), finish(w, id)); err != nil {
		s.t.Fatal(err)
	}
	if err := file.Commit(s.FileName(name), id.Created); err != nil {
		s.t.Fatal(err)
	}
}

func appendChanges(w *qcow2.Writer, codec qcow2.Codec, was io.ReaderAt, state []byte) error {
	encoder, err := qcow2.NewChunkEncoder(codec)
	if err != nil {
		return err
	}
	before := make([]byte, sceneCluster)
	for off := 0; off < len(state); off += sceneCluster {
		n, err := was.ReadAt(before, int64(off))
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		clear(before[n:])
		is := state[off:][:sceneCluster]
		if bytes.Equal(is, before) {
			continue
		}
		chunk := &qcow2.Chunk{Offset: int64(off), Data: is}
		if err := errors.Join(encoder.Encode(chunk, sceneCluster), w.Append(chunk)); err != nil {
			return err
		}
	}
	return nil
}

func finish(w *qcow2.Writer, id *Identity) error {
	identity, err := id.Encode()
	if err != nil {
		return err
	}
	return errors.Join(w.Finish(identity), w.Close())
}

// checkReads compares the points that there are to be with what they have to read as.
func (s *scene) checkReads() {
	s.t.Helper()
	for _, name := range s.points {
		got, err := s.read(name)
		if err != nil {
			s.t.Errorf("read point %s: %v", name, err)
		} else if !bytes.Equal(got, s.states[name]) {
			s.t.Errorf("point %s reads as something else", name)
		}
	}
}

// checkStates is checkReads, and asks QEMU too.
func (s *scene) checkStates() {
	s.t.Helper()
	qemutest.Require(s.t, "qemu-img")
	s.checkReads()
	raw := filepath.Join(s.t.TempDir(), "raw")
	for _, name := range s.points {
		qemutest.Check(s.t, s.Path(name))
		if err := os.WriteFile(raw, s.states[name], 0o600); err != nil {
			s.t.Fatal(err)
		}
		qemutest.Compare(s.t, raw, s.Path(name))
	}
}

func (s *scene) read(name PointName) ([]byte, error) {
	chain, err := s.OpenProvedChain(s.t.Context(), name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = chain.Close() }()
	b := make([]byte, chain.Size())
	_, err = chain.ReadAt(b, 0)
	return b, err
}

// forget takes a point off those that there are to be.
func (s *scene) forget(i int) PointName {
	name := s.points[i]
	s.points = append(s.points[:i:i], s.points[i+1:]...)
	return name
}

// checkPoints compares what there is, which must be good, with what there is to be, and looks for leftovers.
func (s *scene) checkPoints() {
	s.t.Helper()
	points, err := s.Points()
	if err != nil {
		s.t.Fatal(err)
	}
	var got []PointName
	for _, p := range points {
		got = append(got, p.Name)
		if p.State != Good && (p.State != Foreign || !p.Name.Foreign()) {
			s.t.Errorf("point %s is %s: %v", p.Name, p.State, p.Err)
		}
	}
	if len(got) != len(s.points) {
		s.t.Errorf("points %v, want %v", got, s.points)
	}
	for _, name := range names(s.t, s.Dir) {
		if _, ok := parseFileName(s.Name, name); !ok && name != stateDir && name != foreignBase {
			s.t.Errorf("file %s is left", name)
		}
	}
	if note := s.readNote(); note != (foldNote{}) {
		s.t.Errorf("note of a fold is left: %+v", note)
	}
}
