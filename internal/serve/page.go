package serve

import (
	"bytes"
	_ "embed" // for the page
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"strconv"

	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

//go:embed page.html
var pageHTML string

func newPage() (*template.Template, error) {
	return template.New("page").Funcs(template.FuncMap{"bytes": progress.Bytes}).Parse(pageHTML)
}

// listedImage is an image of the page, its points the oldest first.
type listedImage struct {
	status.Image
	Points []listedPoint `json:"points"`
}

// listedPoint is a point of the page.
type listedPoint struct {
	status.Point
	URL string `json:"url,omitempty"` // relative to the page; "" for a damaged one
}

func (s *Server) list() ([]listedImage, error) {
	images, err := status.Read(s.repo, nil)
	if err != nil {
		return nil, err
	}
	listed := make([]listedImage, 0, len(images))
	for _, image := range images {
		folder := s.repo.Folder(image.Folder)
		l := listedImage{Image: image}
		for _, p := range image.Points {
			point := listedPoint{Point: p}
			if p.State != repo.Damaged && p.State != repo.Removing {
				point.URL = "./" + diskPath(folder, p.Point) // lest a colon be taken for that behind "http"
			}
			l.Points = append(l.Points, point)
		}
		listed = append(listed, l)
	}
	return listed, nil
}

// serveJSON answers with what "list --json" prints, and the URLs.
func (s *Server) serveJSON(a *answer) {
	images, err := s.list()
	var b []byte
	if err == nil {
		b, err = json.MarshalIndent(map[string]any{"images": images}, "", "  ")
	}
	s.serveText(a, "application/json", append(b, '\n'), err)
}

// servePage answers with a list for people, the newest points first.
func (s *Server) servePage(a *answer) {
	images, err := s.list()
	for _, i := range images {
		slices.Reverse(i.Points)
	}
	var b bytes.Buffer
	if err == nil {
		err = s.page.Execute(&b, images)
	}
	a.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	s.serveText(a, "text/html; charset=utf-8", b.Bytes(), err)
}

func (s *Server) serveText(a *answer, kind string, text []byte, err error) {
	if err != nil {
		s.fail(a, "", fmt.Errorf("list points: %w", err))
		return
	}
	a.Header().Set("Content-Type", kind)
	a.Header().Set("Content-Length", strconv.Itoa(len(text)))
	a.Header().Set("Cache-Control", "no-store")
	a.WriteHeader(http.StatusOK)
	_, _ = a.Write(text) // a client that has gone needs no answer
}
