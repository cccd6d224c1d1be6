package serve

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

const clusterSize = 64 << 10

// vm is an image whose points are made without a cluster.
type vm struct {
	repo   *repo.Repository
	folder *repo.Folder
	name   string
	codec  qcow2.Codec
	newest *repo.Point
	states map[repo.PointName][]byte // what each point must read as
}

func newRepository(t *testing.T) *repo.Repository {
	t.Helper()
	r, err := repo.Init(filepath.Join(t.TempDir(), "repository"))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func newVM(t *testing.T, r *repo.Repository, folder, name string) *vm {
	t.Helper()
	v := &vm{repo: r, folder: r.Folder(folder), name: name, codec: qcow2.ZstdCodec(1), states: map[repo.PointName][]byte{}}
	if err := v.folder.Create(); err != nil {
		t.Fatal(err)
	}
	return v
}

// add makes a point of a state of the disk: a full one, or an increment on the newest.
func (v *vm) add(t *testing.T, state []byte) *repo.Point {
	t.Helper()
	id := &repo.Identity{
		Program: "test", Repository: v.repo.ID(), Chain: uuid.NewString(), PointID: uuid.NewString(),
		Point: repo.NextPointName(time.Now(), ""), Created: time.Now().UTC(), ClusterSize: clusterSize, Compression: "none",
	}
	id.Image.SetName(v.name)
	id.Image.Size = int64(len(state))
	o := qcow2.WriterOptions{Size: int64(len(state)), ClusterSize: clusterSize, Codec: v.codec}
	was := io.ReaderAt(bytes.NewReader(nil))
	if v.newest != nil {
		id.Point = repo.NextPointName(time.Now(), v.newest.Name)
		id.Parent = &repo.Parent{
			Point: v.newest.Name, PointID: v.newest.Identity.PointID, IdentitySHA256: repo.HashIdentity(v.newest.IdentityRaw),
		}
		o.BackingFile = v.folder.BackingName(v.newest.Name)
		chain, err := v.folder.OpenChain(t.Context(), v.newest.Name)
		if err != nil {
			t.Fatal(err)
		}
		defer chain.Close()
		was = chain
	}
	v.write(t, o, id, was, state)
	v.newest = v.folder.Point(id.Point)
	if v.newest.State != repo.Good {
		t.Fatalf("point %s: %v", v.newest.Path(), v.newest.Err)
	}
	v.states[id.Point] = state
	return v.newest
}

// write writes a point with what differs from was.
func (v *vm) write(t *testing.T, o qcow2.WriterOptions, id *repo.Identity, was io.ReaderAt, state []byte) {
	t.Helper()
	file, err := v.folder.CreatePending()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Discard()
	w, err := qcow2.NewWriter(file, o)
	if err != nil {
		t.Fatal(err)
	}
	encoder, err := qcow2.NewChunkEncoder(o.Codec)
	if err != nil {
		t.Fatal(err)
	}
	is, before := make([]byte, clusterSize), make([]byte, clusterSize)
	for off := 0; off < len(state); off += clusterSize {
		clear(is[copy(is, state[off:]):])
		n, err := was.ReadAt(before, int64(off))
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		clear(before[n:])
		if bytes.Equal(is, before) {
			continue
		}
		chunk := &qcow2.Chunk{Offset: int64(off), Data: is}
		if err := errors.Join(encoder.Encode(chunk, clusterSize), w.Append(chunk)); err != nil {
			t.Fatal(err)
		}
	}
	identity, err := id.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Finish(identity), w.Close(), file.Commit(v.folder.FileName(id.Point), id.Created)); err != nil {
		t.Fatal(err)
	}
}

// change gives a copy of a state with other data in a third of its clusters, zeroes in some.
func change(rng *rand.Rand, state []byte, size int) []byte {
	b := make([]byte, size)
	copy(b, state)
	for off := 0; off < size; off += clusterSize {
		cluster := b[off:min(off+clusterSize, size)]
		switch rng.IntN(6) {
		case 0:
			clear(cluster)
		case 1:
			copy(cluster, noise(len(cluster)))
		case 2:
			for i := range cluster {
				cluster[i] = byte(off>>16) ^ byte(i/500)
			}
		}
	}
	return b
}

// noise gives bytes that do not compress.
func noise(size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func seed(n uint64) *rand.Rand { return rand.New(rand.NewPCG(n, n)) }

// start makes a server and what asks it: clients of a real connection.
func start(t *testing.T, r *repo.Repository, o Options) (*Server, *httptest.Server) {
	t.Helper()
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	s, err := New(r, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	return s, h
}

// answered is an answer that has been read to its end.
type answered struct {
	*http.Response
	body []byte
	err  error // of reading the body
}

// ask sends a request with pairs of header names and values.
func ask(t *testing.T, method, url string, header ...string) answered {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	response, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return answered{err: err}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return answered{response, body, err}
}

// want fails the test unless the answer has a status and came to its end.
func (a answered) want(t *testing.T, status int) answered {
	t.Helper()
	if a.err != nil {
		t.Fatalf("no answer: %v", a.err)
	}
	if a.StatusCode != status {
		t.Fatalf("%s %s: status %d, want %d: %s", a.Request.Method, a.Request.URL, a.StatusCode, status, a.body)
	}
	return a
}
