package serve

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// overwrite changes bytes of a point's file, whose mtime stays.
func overwrite(t *testing.T, p *repo.Point, b []byte, off int64) {
	t.Helper()
	if err := os.Chmod(p.Path(), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(p.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(p.Path(), p.ModTime, p.ModTime); err != nil {
		t.Fatal(err)
	}
}

// output is where a server logs to.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// TestDamagedPoint asks for points that are not as they were made, or lie on such ones.
func TestDamagedPoint(t *testing.T) {
	v := newVM(t, newRepository(t), "vm", "vm")
	full := v.add(t, change(seed(1), nil, 1<<20))
	middle := v.add(t, change(seed(2), nil, 1<<20))
	v.add(t, change(seed(3), nil, 1<<20))
	overwrite(t, middle, []byte{0xff}, 25) // virtual size
	log := new(output)
	s, h := start(t, v.repo, Options{Logger: slog.New(slog.NewTextHandler(log, nil))})
	for _, p := range []*repo.Point{middle, v.newest} {
		for _, method := range []string{"GET", "HEAD"} {
			got := ask(t, method, h.URL+s.Path(p)).want(t, http.StatusInternalServerError)
			if method == "GET" && !bytes.Contains(got.body, []byte(middle.Path())) {
				t.Errorf("%s: it is not said which file is damaged: %s", p.Name, got.body)
			}
		}
	}
	if got := ask(t, "GET", h.URL+s.Path(full)).want(t, http.StatusOK); !bytes.Equal(got.body, v.states[full.Name]) {
		t.Error("what does not lie on the damaged point reads as something else")
	}
	page := string(ask(t, "GET", h.URL+"/").want(t, http.StatusOK).body)
	if !strings.Contains(page, "damaged: ") || strings.Contains(page, string(middle.Name)+".raw") {
		t.Errorf("the page does not say what is damaged:\n%s", page)
	}
	if err := os.Remove(full.Path()); err != nil {
		t.Fatal(err)
	}
	ask(t, "GET", h.URL+s.Path(full)).want(t, http.StatusNotFound)
	if n := strings.Count(log.String(), "level=ERROR"); n != 4 {
		t.Errorf("%d errors are logged, want 4:\n%s", n, log)
	}
}

// TestDamagedData reads disks with data in the middle that is not what was stored: no answer may pass for whole.
func TestDamagedData(t *testing.T) {
	for name, codec := range map[string]qcow2.Codec{"plain": nil, "zstd": qcow2.ZstdCodec(1)} {
		t.Run(name, func(t *testing.T) {
			v := newVM(t, newRepository(t), "vm", "vm")
			v.codec = codec
			state := noise(8 << 20)
			for i := range state {
				state[i] |= byte(i) // half of it can be compressed
			}
			v.add(t, state)
			overwrite(t, v.newest, []byte("damage"), v.newest.FileSize/2)
			log := new(output)
			s, h := start(t, v.repo, Options{Logger: slog.New(slog.NewTextHandler(log, nil))})
			point := s.Path(v.newest)
			for _, c := range [][2]string{
				{point, ""}, {point, "bytes=1000-"}, {point, "bytes=0-9,100-7000000"}, {"/vm/latest.raw", ""},
			} {
				got := ask(t, "GET", h.URL+c[0], "Range", c[1])
				if got.err == nil {
					t.Errorf("%s: %d bytes, status %d, as if they were all", c, len(got.body), got.StatusCode)
				}
			}
			if n := strings.Count(log.String(), "other content than was stored"); n != 4 && codec == nil {
				t.Errorf("the log has it %d times, want 4:\n%s", n, log)
			}
			if n := strings.Count(log.String(), "level=ERROR"); n != 4 {
				t.Errorf("%d errors are logged, want 4:\n%s", n, log)
			}
			// What is not damaged can be read.
			got := ask(t, "GET", h.URL+point, "Range", "bytes=0-65535").want(t, http.StatusPartialContent)
			if !bytes.Equal(got.body, state[:65536]) {
				t.Error("other bytes")
			}
		})
	}
}

// TestReplaced has a point that is open be replaced, removed, and put back.
func TestReplaced(t *testing.T) {
	v := newVM(t, newRepository(t), "vm", "vm")
	v.add(t, []byte("before"))
	s, h := start(t, v.repo, Options{})
	url := h.URL + s.Path(v.newest)
	before := ask(t, "GET", url).want(t, http.StatusOK)

	other := newVM(t, newRepository(t), "vm", "vm")
	id := *v.newest.Identity
	id.PointID, id.Created = "another", id.Created.Add(time.Hour)
	id.Image.Size = 5
	other.write(t, qcow2.WriterOptions{Size: 5, ClusterSize: clusterSize}, &id, bytes.NewReader(nil), []byte("after"))
	if err := os.Rename(other.folder.Path(id.Point), v.newest.Path()); err != nil {
		t.Fatal(err)
	}
	after := ask(t, "GET", url).want(t, http.StatusOK)
	if string(before.body) != "before" || string(after.body) != "after" || before.Header.Get("ETag") == after.Header.Get("ETag") {
		t.Errorf("%q, then %q; ETag %s, then %s", before.body, after.body, before.Header.Get("ETag"), after.Header.Get("ETag"))
	}
	aside := v.newest.Path() + ".aside"
	if err := os.Rename(v.newest.Path(), aside); err != nil {
		t.Fatal(err)
	}
	ask(t, "GET", url).want(t, http.StatusNotFound)
	wantOpen(t, v.repo.Dir, 0)
	if err := os.Rename(aside, v.newest.Path()); err != nil {
		t.Fatal(err)
	}
	ask(t, "GET", url, "If-Match", after.Header.Get("ETag")).want(t, http.StatusOK)
}

// TestIdle has nobody read for a while.
func TestIdle(t *testing.T) {
	r := newRepository(t)
	var points []*repo.Point
	for i := range maxIdleDisks + 2 {
		points = append(points, newVM(t, r, fmt.Sprint(i), "").add(t, []byte("disk")))
	}
	synctest.Test(t, func(t *testing.T) {
		c := &disks{open: map[string]*disk{}}
		var all []*disk
		for _, p := range points {
			d, err := c.acquire(p.Folder, p.Name)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, d)
		}
		time.Sleep(2 * idleDiskTime)
		if n := len(openPoints(t, r.Dir)); n != len(all) {
			t.Errorf("%d open while they are read, want %d", n, len(all))
		}
		for _, d := range all {
			c.release(d)
		}
		if n := len(openPoints(t, r.Dir)); n != maxIdleDisks {
			t.Errorf("%d open when nobody reads, want %d", n, maxIdleDisks)
		}
		time.Sleep(idleDiskTime - time.Second)
		last := points[len(points)-1]
		if d, err := c.acquire(last.Folder, last.Name); err != nil || d != all[len(all)-1] {
			t.Errorf("the one used last was opened anew, %v", err)
		} else {
			c.release(d)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := len(openPoints(t, r.Dir)); n != 1 {
			t.Errorf("%d open after a while, want that which was used since", n)
		}
		time.Sleep(idleDiskTime)
		synctest.Wait()
		if n := len(openPoints(t, r.Dir)); n != 0 {
			t.Errorf("%d open after a longer while", n)
		}
	})
}

// TestStalledClient has clients that ask and read nothing: they must not keep others from reading.
func TestStalledClient(t *testing.T) {
	v := newVM(t, newRepository(t), "vm", "vm")
	v.add(t, noise(32<<20))
	s, h := start(t, v.repo, Options{})
	s.stall = time.Second
	var stalled []net.Conn
	for range maxReaders {
		c, err := net.Dial("tcp", h.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET "+s.Path(v.newest)+" HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err != nil { // the answer has begun
			t.Fatal(err)
		}
		stalled = append(stalled, c)
	}
	got := ask(t, "GET", h.URL+s.Path(v.newest), "Range", "bytes=0-99").want(t, http.StatusPartialContent)
	if !bytes.Equal(got.body, v.states[v.newest.Name][:100]) {
		t.Error("other bytes")
	}
	for deadline := time.Now().Add(time.Minute); len(s.buffers) < maxReaders; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d requests are still being answered", maxReaders-len(s.buffers))
		}
	}
	for _, c := range stalled {
		if n, _ := io.Copy(io.Discard, c); n >= 32<<20 {
			t.Error("who reads after a long while gets the whole answer")
		}
	}
}
