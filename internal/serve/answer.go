package serve

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"
)

// serveDisk answers with a disk, or ranges of it.
func (s *Server) serveDisk(a *answer, r *http.Request, image, file string) {
	select {
	case a.buffer = <-s.buffers:
	case <-r.Context().Done():
		return
	}
	if a.buffer == nil {
		a.buffer = make([]byte, bufferSize)
	}
	defer func() { s.buffers <- a.buffer }()

	d, newest, err := s.find(image, file)
	if err != nil {
		s.fail(a, image+"/"+file, err)
		return
	}
	defer s.disks.release(d)
	if newest && r.Header.Get("Range") != "" {
		http.Error(a, "the newest point is another one after the next backup: name a point to read it by ranges",
			http.StatusRequestedRangeNotSatisfiable)
		return
	}
	h := a.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": diskName(d.folder, d.name)}))
	h.Set("ETag", d.etag)
	h.Set("Cache-Control", "private, no-transform")
	b := &body{disk: d}
	if newest {
		serveWhole(a, r, b)
	} else {
		http.ServeContent(a, r, "", d.modified, b)
	}
	if err := b.end(); err != nil {
		s.log.Error("read disk", "point", d.folder.Path(d.name), "error", err)
		panic(http.ErrAbortHandler) // what the client has got must not pass for the whole
	}
}

// serveWhole answers with a whole disk, and says that there are no ranges: most clients who read by ranges, QEMU and
// librbd among them, don't look whether all are of one disk, and would put the newest one together from two.
func serveWhole(a *answer, r *http.Request, b *body) {
	h := a.Header()
	h.Set("Accept-Ranges", "none")
	h.Set("Content-Length", strconv.FormatInt(b.disk.size, 10))
	h.Set("Last-Modified", b.disk.modified.UTC().Format(http.TimeFormat))
	a.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = io.Copy(a, b) // the client is told by the length; body has what went wrong on our side
	}
}

// body is a disk as one request reads it.
type body struct {
	disk *disk

	mu    sync.Mutex // an answer of several ranges is put together by a goroutine, which may outlive it
	at    int64
	err   error // of the first read that failed
	ended bool
}

var _ io.ReadSeeker = (*body)(nil)

func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.ended:
		return 0, os.ErrClosed
	case b.err != nil:
		return 0, b.err
	}
	n, err := b.disk.ReadAt(p, b.at)
	b.at += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		b.err = err
	}
	return n, err
}

func (b *body) Seek(offset int64, whence int) (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch whence {
	case io.SeekCurrent:
		offset += b.at
	case io.SeekEnd:
		offset += b.disk.size
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek to %d: %w", offset, os.ErrInvalid)
	}
	b.at = offset
	return offset, nil
}

// end waits for a read that is under way, lets no other one begin, and gives the error of the one that failed.
func (b *body) end() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	return b.err
}

// answer is a response on its way: it counts, and gives up on a client that does not take a buffer's worth in time.
type answer struct {
	http.ResponseWriter
	control *http.ResponseController
	stall   time.Duration
	buffer  []byte
	status  int
	sent    int64 // bytes
}

func (a *answer) WriteHeader(status int) {
	a.status = status
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	_ = a.control.SetWriteDeadline(time.Now().Add(a.stall)) // not every writer has one
	n, err := a.ResponseWriter.Write(p)
	a.sent += int64(n)
	return n, err
}

// ReadFrom is what io.Copy uses: it reads by the buffer of this answer, which is larger than the server's own, so that
// clusters are read and proved as a whole.
func (a *answer) ReadFrom(r io.Reader) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{a}, struct{ io.Reader }{r}, a.buffer)
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }
