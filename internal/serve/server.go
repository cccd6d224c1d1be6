package serve

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

const (
	maxReaders    = 64               // requests that read at a time; the others wait
	bufferSize    = 256 << 10        // of each, in bytes
	maxHeader     = 16 << 10         // of a request, in bytes: bounds the number of ranges too
	headerTimeout = 10 * time.Second // for the header of a request
	idleTimeout   = 2 * time.Minute  // of a connection between requests
	stallTimeout  = 2 * time.Minute  // for a client to take a buffer's worth
	graceTime     = 2 * time.Second  // for answers under way when the server ends
)

// Options of a server. The zero value serves all points to whoever asks.
type Options struct {
	Token  string       // first element of every path; "": there is none. See CheckToken
	Only   *repo.Point  // serve this point alone, and keep its files open to the end; nil: serve all
	Logger *slog.Logger // nil: nothing is logged
}

// Server is the http.Handler of a repository, or of one point. Memory is bounded by the points that are read at the
// same time, each with the caches of its chain, and by a buffer for each of 64 requests.
type Server struct {
	repo    *repo.Repository
	token   string
	log     *slog.Logger
	page    *template.Template
	names   names
	disks   *disks
	only    *disk         // nil: all points are served
	buffers chan []byte   // one for each request that may read; nil before its first use
	stall   time.Duration // stallTimeout
}

var _ http.Handler = (*Server)(nil)

// New makes a server. Close ends it.
func New(r *repo.Repository, o Options) (*Server, error) {
	if o.Token != "" {
		if err := CheckToken(o.Token); err != nil {
			return nil, err
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		repo:    r,
		token:   o.Token,
		log:     o.Logger,
		names:   names{repo: r},
		disks:   &disks{open: map[string]*disk{}},
		buffers: make(chan []byte, maxReaders),
		stall:   stallTimeout,
	}
	for range maxReaders {
		s.buffers <- nil
	}
	var err error
	if s.page, err = newPage(); err != nil {
		return nil, err
	}
	if o.Only != nil {
		if s.only, err = s.disks.acquire(o.Only.Folder, o.Only.Name); err != nil {
			return nil, fmt.Errorf("serve point: %w", err)
		}
	}
	return s, nil
}

var tokenPattern = regexp.MustCompile(`^[A-Za-z0-9_-]{16,200}$`)

// CheckToken checks that a token is fit for a path and not short enough to be guessed.
func CheckToken(token string) error {
	if !tokenPattern.MatchString(token) {
		return errors.New("a token has 16 to 200 characters from A to Z, a to z, 0 to 9, - and _")
	}
	return nil
}

// Root is the path of the page, escaped for a URL; those of disks begin with it.
func (s *Server) Root() string {
	if s.token == "" {
		return "/"
	}
	return "/" + s.token + "/"
}

// Path is the path of a point's disk, escaped for a URL.
func (s *Server) Path(p *repo.Point) string { return s.Root() + diskPath(p.Folder, p.Name) }

// Serve answers requests on l, which it closes, until ctx ends; that is no error. Answers under way then have two
// seconds left.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: headerTimeout,
		WriteTimeout:      s.stall, // of what is small; for disks see answer
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), graceTime)
	defer cancel()
	if server.Shutdown(grace) != nil {
		s.log.Warn("clients that are still reading are cut off")
		_ = server.Close()
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// Close closes the points that are open; those that are being read, when that has ended.
func (s *Server) Close() {
	if s.only != nil {
		s.disks.release(s.only)
	}
	s.disks.close()
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a := &answer{ResponseWriter: w, control: http.NewResponseController(w), stall: s.stall}
	path, ok := s.path(r.URL.EscapedPath())
	defer s.logAccess(a, r, path, time.Now())
	if r.ContentLength != 0 {
		a.Header().Set("Connection", "close") // nobody waits for what may never come
	}
	a.Header().Set("X-Content-Type-Options", "nosniff")
	a.Header().Set("Referrer-Policy", "no-referrer") // a referrer would tell the token
	switch {
	case !ok:
		http.NotFound(a, r)
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		a.Header().Set("Allow", "GET, HEAD")
		http.Error(a, "disks can be read, nothing else", http.StatusMethodNotAllowed)
	case len(path) == 2:
		s.serveDisk(a, r, path[0], path[1])
	case len(path) == 1 && path[0] == "" && s.only == nil:
		s.servePage(a)
	case len(path) == 1 && path[0] == "index.json" && s.only == nil:
		s.serveJSON(a)
	default:
		http.NotFound(a, r)
	}
}

// path gives the elements of an escaped path behind the token, without escapes; ok is false where the token is wrong.
func (s *Server) path(escaped string) (elements []string, ok bool) {
	path, ok := strings.CutPrefix(escaped, "/")
	if !ok {
		return nil, false
	}
	if s.token != "" {
		token, rest, found := strings.Cut(path, "/")
		if subtle.ConstantTimeCompare([]byte(token), []byte(s.token)) != 1 || !found {
			return nil, false
		}
		path = rest
	}
	elements = strings.Split(path, "/")
	for i, e := range elements {
		plain, err := url.PathUnescape(e)
		if err != nil {
			return nil, false
		}
		elements[i] = plain
	}
	return elements, true
}

// logAccess logs a request without its token. Where that was wrong the path stays unsaid: it may be nearly right.
func (s *Server) logAccess(a *answer, r *http.Request, path []string, start time.Time) {
	s.log.Debug("request", "method", r.Method, "path", strings.Join(path, "/"), "range", r.Header.Get("Range"),
		"status", a.status, "bytes", a.sent, "client", r.RemoteAddr, "duration", time.Since(start).Round(time.Microsecond))
}

// fail answers with an error: that there is nothing, or that it can't be read.
func (s *Server) fail(a *answer, path string, err error) {
	var missing notFoundError
	if errors.As(err, &missing) {
		http.Error(a, err.Error(), http.StatusNotFound)
		return
	}
	s.log.Error("request failed", "path", path, "error", err)
	http.Error(a, err.Error(), http.StatusInternalServerError)
}
