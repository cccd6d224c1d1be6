package serve

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// TestDisk reads all points of chains, compressed and not, as a whole and by ranges.
func TestDisk(t *testing.T) {
	for _, size := range []int{0, 1, 511, 512, 3<<20 + 1001, 2 * clusterSize} {
		for name, codec := range map[string]qcow2.Codec{"plain": nil, "zstd": qcow2.ZstdCodec(1)} {
			t.Run(fmt.Sprintf("%d %s", size, name), func(t *testing.T) {
				v := newVM(t, newRepository(t), "vm", "vm")
				v.codec = codec
				rng, state := seed(uint64(size)), []byte(nil)
				for i := range 3 {
					state = change(rng, state, size+i*1000*(size%2)) // an odd one grows
					v.add(t, state)
				}
				s, h := start(t, v.repo, Options{})
				for name, want := range v.states {
					url := h.URL + s.Path(v.folder.Point(name))
					checkWhole(t, url, want)
					checkRanges(t, url, want)
				}
			})
		}
	}
}

// checkWhole reads a disk from end to end.
func checkWhole(t *testing.T, url string, want []byte) {
	t.Helper()
	got := ask(t, "GET", url).want(t, http.StatusOK)
	if !bytes.Equal(got.body, want) {
		t.Errorf("%s: %d bytes, want %d others", url, len(got.body), len(want))
	}
	head := ask(t, "HEAD", url).want(t, http.StatusOK)
	if len(head.body) != 0 || head.Header.Get("Content-Length") != strconv.Itoa(len(want)) {
		t.Errorf("HEAD: %d bytes, length %q, want 0 and %d", len(head.body), head.Header.Get("Content-Length"), len(want))
	}
	for _, a := range []answered{got, head} {
		for name, want := range map[string]string{
			"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", "Content-Encoding": "",
		} {
			if got := a.Header.Get(name); got != want {
				t.Errorf("%s: %s %q, want %q", a.Request.Method, name, got, want)
			}
		}
		if tag := a.Header.Get("ETag"); len(tag) < 10 || tag[0] != '"' {
			t.Errorf("ETag %s is not a strong one", tag)
		}
		if _, err := http.ParseTime(a.Header.Get("Last-Modified")); err != nil {
			t.Errorf("Last-Modified: %v", err)
		}
	}
	_, parameters, err := mime.ParseMediaType(got.Header.Get("Content-Disposition"))
	if err != nil || !strings.HasSuffix(url, "/"+parameters["filename"]) {
		t.Errorf("file name %q of %s, %v", parameters["filename"], url, err)
	}
}

// checkRanges reads parts of a disk.
func checkRanges(t *testing.T, url string, want []byte) {
	t.Helper()
	size := len(want)
	for _, r := range [][2]int{ // [from, to)
		{0, 1}, {0, size}, {1, 2}, {size - 1, size}, {size / 2, size}, {511, 1025}, {clusterSize - 1, clusterSize + 1},
		{clusterSize, 3 * clusterSize}, {bufferSize - 1, 2*bufferSize + 1}, {100, 1 << 30},
	} {
		from, to := r[0], min(r[1], size)
		if from < 0 || from >= to {
			continue
		}
		got := ask(t, "GET", url, "Range", fmt.Sprintf("bytes=%d-%d", from, r[1]-1)).want(t, http.StatusPartialContent)
		if !bytes.Equal(got.body, want[from:to]) {
			t.Errorf("bytes %d to %d are others", from, to)
		}
		if got, want := got.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/%d", from, to-1, size); got != want {
			t.Errorf("Content-Range %q, want %q", got, want)
		}
	}
	if size == 0 {
		return
	}
	last := ask(t, "GET", url, "Range", "bytes=-700").want(t, http.StatusPartialContent)
	if !bytes.Equal(last.body, want[max(0, size-700):]) {
		t.Errorf("the last 700 bytes are others")
	}
	behind := ask(t, "GET", url, "Range", fmt.Sprintf("bytes=%d-", size)).want(t, http.StatusRequestedRangeNotSatisfiable)
	if got := behind.Header.Get("Content-Range"); got != fmt.Sprintf("bytes */%d", size) {
		t.Errorf("behind the end: Content-Range %q", got)
	}
	if size > 3000 {
		checkParts(t, ask(t, "GET", url, "Range", "bytes=0-9,1000-1999,-5").want(t, http.StatusPartialContent),
			want[:10], want[1000:2000], want[size-5:])
	}
	tag := ask(t, "HEAD", url).want(t, http.StatusOK).Header.Get("ETag")
	ask(t, "GET", url, "If-None-Match", tag).want(t, http.StatusNotModified)
	ask(t, "GET", url, "If-Match", `"another"`).want(t, http.StatusPreconditionFailed)
	ask(t, "GET", url, "Range", "bytes=0-0", "If-Range", tag).want(t, http.StatusPartialContent)
	ask(t, "GET", url, "Range", "bytes=0-0", "If-Range", `"another"`).want(t, http.StatusOK)
}

// checkParts compares an answer of several ranges.
func checkParts(t *testing.T, a answered, want ...[]byte) {
	t.Helper()
	_, parameters, err := mime.ParseMediaType(a.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	parts := multipart.NewReader(bytes.NewReader(a.body), parameters["boundary"])
	for _, w := range want {
		part, err := parts.NextPart()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(part); err != nil || !bytes.Equal(got, w) {
			t.Errorf("part %s: %d bytes, want %d others, %v", part.Header.Get("Content-Range"), len(got), len(w), err)
		}
	}
	if _, err := parts.NextPart(); err != io.EOF {
		t.Errorf("behind the last part: %v", err)
	}
}

// TestLatest reads the newest point, which is another one after each backup.
func TestLatest(t *testing.T) {
	v := newVM(t, newRepository(t), "vm", "vm")
	_, h := start(t, v.repo, Options{})
	tags := map[string]bool{}
	for i := range 3 {
		want := change(seed(uint64(i)), nil, 300_001)
		v.add(t, want)
		for _, path := range []string{"/vm/latest.raw", "/vm/vm@latest.raw"} {
			ask(t, "GET", h.URL+path, "Range", "bytes=5-9").want(t, http.StatusRequestedRangeNotSatisfiable)
			got := ask(t, "GET", h.URL+path).want(t, http.StatusOK)
			if !bytes.Equal(got.body, want) || got.Header.Get("Accept-Ranges") != "none" {
				t.Errorf("%d bytes, want %d others; ranges: %s", len(got.body), len(want), got.Header.Get("Accept-Ranges"))
			}
			head := ask(t, "HEAD", h.URL+path).want(t, http.StatusOK)
			if head.ContentLength != int64(len(want)) {
				t.Errorf("HEAD: length %d", head.ContentLength)
			}
			tags[got.Header.Get("ETag")] = true
		}
	}
	if len(tags) != 3 {
		t.Errorf("ETags of three points: %v", tags)
	}
}

// TestConcurrent has many clients read parts of many points, more than are kept open, in all orders.
func TestConcurrent(t *testing.T) {
	v := newVM(t, newRepository(t), "vm", "vm")
	rng, state := seed(1), []byte(nil)
	var points []*repo.Point
	for range maxIdleDisks + 3 {
		state = change(rng, state, 1<<20+77)
		points = append(points, v.add(t, state))
	}
	s, h := start(t, v.repo, Options{})
	var clients sync.WaitGroup
	for client := range 8 {
		clients.Go(func() {
			rng := seed(uint64(client))
			for range 20 {
				p := points[rng.IntN(len(points))]
				want := v.states[p.Name]
				from := rng.IntN(len(want))
				to := from + 1 + rng.IntN(len(want)-from)
				got := ask(t, "GET", h.URL+s.Path(p), "Range", fmt.Sprintf("bytes=%d-%d", from, to-1))
				if got.err != nil || !bytes.Equal(got.body, want[from:to]) {
					t.Errorf("point %s, bytes %d to %d: %d others, %v", p.Name, from, to, len(got.body), got.err)
				}
			}
		})
	}
	clients.Wait()
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	if open := openPoints(t, v.repo.Dir); len(open) > maxIdleDisks*len(points) {
		t.Errorf("%d files are open", len(open))
	}
	s.Close()
	wantOpen(t, v.repo.Dir, 0)
}

// wantOpen waits until so many files below a directory are open: a request ends a little later than its answer.
func wantOpen(t *testing.T, dir string, want int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); len(openPoints(t, dir)) != want; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("open: %q, want %d", openPoints(t, dir), want)
		}
	}
}

// openPoints lists the files below a directory that this process has open.
func openPoints(t *testing.T, dir string) (open []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if path, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(path, dir+"/") {
			open = append(open, path)
		}
	}
	return open
}
