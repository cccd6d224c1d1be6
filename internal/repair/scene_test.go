package repair

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/verify"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

const (
	sceneCluster = 4 << 10
	sceneSize    = 6 << 20 // three L2 tables
)

// scene is a repository with a chain that is made without a cluster.
type scene struct {
	*repo.Folder
	t      *testing.T
	r      *repo.Repository
	rng    *rand.Rand
	points []repo.PointName
	states [][]byte // what each must read as
}

// newScene makes three points: each has 20 changed clusters, the first one of them in all points, the others where nobody
// else has. Those of zstd have digests with a key.
func newScene(t *testing.T, compression string, codec qcow2.Codec) *scene {
	t.Helper()
	r, err := repo.Init(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if compression == "zstd:1" {
		if r.DigestKey, err = qcow2.NewDigestKey(make([]byte, qcow2.DigestKeySize)); err != nil {
			t.Fatal(err)
		}
	}
	s := &scene{Folder: r.Folder("vm"), t: t, r: r, rng: rand.New(rand.NewPCG(1, 2))}
	if err := s.Create(); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		s.add(i, compression, codec)
	}
	return s
}

// place is the j-th cluster that point i changes, in bytes.
func place(i, j int) int64 {
	if j == 0 {
		return 0
	}
	return int64(1+j*70+i*3) * sceneCluster
}

func (s *scene) add(i int, compression string, codec qcow2.Codec) {
	s.t.Helper()
	id := &repo.Identity{
		Program: "test", Repository: s.r.ID(), Chain: uuid.NewString(), PointID: uuid.NewString(), ClusterSize: sceneCluster,
		Created: time.Date(2026, 1, 2, 3, i, 5, 0, time.UTC), Compression: compression,
	}
	id.Point = repo.NextPointName(id.Created, "")
	id.Image.Size = sceneSize
	state := make([]byte, sceneSize)
	o := qcow2.WriterOptions{Size: sceneSize, ClusterSize: sceneCluster, Codec: codec, Key: s.r.DigestKey}
	if i > 0 {
		copy(state, s.states[i-1])
		below := s.Point(s.points[i-1])
		id.Parent, id.Generation, o.BackingFile = below.AsParent(), i, s.BackingName(below.Name)
	}
	file, err := s.CreatePending()
	s.must(err)
	defer file.Discard()
	w, err := qcow2.NewWriter(file, o)
	s.must(err)
	encoder, err := qcow2.NewChunkEncoder(codec)
	s.must(err)
	encoder.UseKey(s.r.DigestKey)
	for j := range 20 {
		off := place(i, j)
		p := state[off:][:sceneCluster]
		for k := range p[:sceneCluster/2] {
			p[k] = byte(s.rng.Uint32())
		}
		chunk := &qcow2.Chunk{Offset: off, Data: p}
		s.must(errors.Join(encoder.Encode(chunk, sceneCluster), w.Append(chunk)))
	}
	identity, err := id.Encode()
	s.must(err)
	s.must(errors.Join(w.Finish(identity), w.Close(), file.Commit(s.FileName(id.Point), id.Created)))
	s.points, s.states = append(s.points, id.Point), append(s.states, state)
}

func (s *scene) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// read gives what a point reads as, proved.
func (s *scene) read(i int) ([]byte, error) {
	chain, err := s.OpenProvedChain(s.t.Context(), s.points[i])
	if err != nil {
		return nil, err
	}
	defer chain.Close()
	b := make([]byte, chain.Size())
	_, err = chain.ReadAt(b, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return b, err
}

// edit changes bytes of a point's file, at its mtime.
func (s *scene) edit(i int, change func(b []byte, h *qcow2.Header)) {
	s.t.Helper()
	p := s.Point(s.points[i])
	b, err := os.ReadFile(p.Path())
	s.must(err)
	change(b, p.Header)
	s.must(os.Chmod(p.Path(), 0o600))
	s.must(os.WriteFile(p.Path(), b, 0o600))
	s.must(os.Chmod(p.Path(), 0o440))
	s.must(os.Chtimes(p.Path(), p.ModTime, p.ModTime))
}

// entryAt is where in a file the L2 entry of a guest offset lies.
func entryAt(b []byte, h *qcow2.Header, guest int64) int64 {
	const span = sceneCluster / 8 * sceneCluster
	table := binary.BigEndian.Uint64(b[h.L1Offset+guest/span*8:]) & 0x00fffffffffffe00
	return int64(table) + guest%span/sceneCluster*8
}

// rot damages the data that a file has of a guest offset.
func rot(guest int64) func(b []byte, h *qcow2.Header) {
	return func(b []byte, h *qcow2.Header) {
		entry := binary.BigEndian.Uint64(b[entryAt(b, h, guest):])
		if entry&(1<<62) == 0 {
			b[entry&0x00fffffffffffe00+100] ^= 1
			return
		}
		b[entry&(1<<(62-(h.ClusterBits-8))-1)+100] ^= 1
	}
}

// ram is a snapshot in memory, of objects of 1 MiB.
type ram []byte

func (s ram) Size() int64       { return int64(len(s)) }
func (s ram) ObjectSize() int64 { return 1 << 20 }
func (s ram) Close() error      { return nil }

func (s ram) Read(_ context.Context, p []byte, off int64) error {
	_, err := bytes.NewReader(s).ReadAt(p, off)
	return err
}

func (s ram) Data(_ context.Context, add func(off, n int64) error) error { return add(0, s.Size()) }

// repair mends the chain; withSource says whether its snapshot is there.
func (s *scene) repair(withSource bool) ImageReport {
	s.t.Helper()
	log := slog.New(slog.DiscardHandler)
	report, err := Run(s.t.Context(), s.r, Options{
		Parallel: 2, Logger: log, Progress: progress.Log{Logger: log},
		Source: func(_ context.Context, p *repo.Point) (verify.Source, error) {
			if !withSource || p.Name != s.points[len(s.points)-1] {
				return nil, fmt.Errorf("the snapshot of %s is gone", p.Name)
			}
			return ram(s.states[len(s.states)-1]), nil
		},
	})
	s.must(err)
	if len(report.Images) != 1 || report.Images[0].Error != "" {
		s.t.Fatalf("report %+v", report)
	}
	return report.Images[0]
}
