package serve

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"html"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// strangeNames are names of images, some of which would lead elsewhere if they were taken for paths or for HTML.
func strangeNames() []string {
	return []string{
		"vm", "a/b", "../../etc/passwd", "..", ".", "%2e%2e", "per%cent", "with space", "<script>alert(1)</script>", `"quoted"`,
		"a@b", "colon:name", "two\nlines", "Größe", "\xff\xfe", "index.json", "?query", "#fragment", "latest", "javascript:alert(1)",
	}
}

// percentEncode encodes every byte of a name.
func percentEncode(name string) (encoded string) {
	for _, b := range []byte(name) {
		encoded += fmt.Sprintf("%%%02X", b)
	}
	return encoded
}

// TestPaths asks for images by all the names that they have, and for what is not there.
func TestPaths(t *testing.T) {
	r := newRepository(t)
	images := map[string]*vm{}
	for i, name := range strangeNames() {
		images[name] = newVM(t, r, repo.Escape(name), name)
		images[name].add(t, bytes.Repeat([]byte{byte(i + 1)}, 1000+i))
	}
	s, h := start(t, r, Options{})
	for name, v := range images {
		want := v.states[v.newest.Name]
		for _, path := range []string{
			s.Path(v.newest),
			"/" + percentEncode(name) + "/" + string(v.newest.Name) + ".raw",
			"/" + percentEncode(name) + "/latest.raw",
		} {
			if got := ask(t, "GET", h.URL+path).want(t, http.StatusOK); !bytes.Equal(got.body, want) {
				t.Errorf("%q: another disk", path)
			}
		}
	}
	point := string(images["vm"].newest.Name)
	for _, path := range []string{
		"//", "/vm", "/vm/", "/nope/" + point + ".raw", "/vm/20200101T000000Z.raw", "/vm/nope.raw", "/vm/" + point, "/vm/" + point + ".qcow2",
		"/vm/vm@" + point + ".qcow2", "/vm/a@" + point + ".raw",
		"/vm//" + point + ".raw", "/vm/" + point + ".raw/", "/rbd2qcow2.json",
		"/vm/.state", "/%2E%2E/%2E%2E@latest.raw", "/%2E/latest.raw/x", "/.state/latest.raw", "//latest.raw", "/vm%00/latest.raw",
		"/vm%2F..%2Fvm/latest.raw", "/vm%2Fvm@" + point + ".raw/latest.raw",
	} {
		if got := ask(t, "GET", h.URL+path).want(t, http.StatusNotFound); len(got.body) == 0 {
			t.Errorf("%q: nothing is said", path)
		}
	}
}

// TestSameName has two images with one name, and one that is named like the folder of another.
func TestSameName(t *testing.T) {
	r := newRepository(t)
	for i, folder := range []string{"vm", "vm~1", "other", "moved"} {
		name := []string{"vm", "vm", "moved", "elsewhere"}[i]
		newVM(t, r, folder, name).add(t, bytes.Repeat([]byte{byte('0' + i)}, 10))
	}
	_, h := start(t, r, Options{})
	said := string(ask(t, "GET", h.URL+"/vm/latest.raw").want(t, http.StatusNotFound).body)
	if !strings.Contains(said, "/vm/vm@") || !strings.Contains(said, "/vm~1/vm~1@") {
		t.Errorf("two images have the name: %s", said)
	}
	for path, want := range map[string]string{
		"/vm/vm@latest.raw": "0", "/vm~1/vm~1@latest.raw": "1", "/vm~1/latest.raw": "1",
		"/moved/latest.raw": "2", "/moved/moved@latest.raw": "3", "/elsewhere/latest.raw": "3",
	} {
		if got := ask(t, "GET", h.URL+path).want(t, http.StatusOK); string(got.body) != strings.Repeat(want, 10) {
			t.Errorf("%s is %s, want %s", path, got.body, want)
		}
	}
}

// TestToken tries to see something without the token.
func TestToken(t *testing.T) {
	v := newVM(t, newRepository(t), "vm", "vm")
	v.add(t, []byte("disk"))
	const token = "0123456789-abcdef_XYZ"
	s, h := start(t, v.repo, Options{Token: token})
	for _, path := range []string{s.Root(), s.Root() + "index.json", s.Root() + "vm/latest.raw", s.Path(v.newest)} {
		ask(t, "GET", h.URL+path).want(t, http.StatusOK)
		nothing := ask(t, "GET", h.URL+"/nope").want(t, http.StatusNotFound).body
		inside := strings.TrimPrefix(path, "/"+token)
		for _, wrong := range []string{
			inside, "/" + token[:20] + inside, "/" + token + "x" + inside, "/" + strings.ToLower(token) + inside, "//" + token + inside,
			"/" + inside, "/%30" + token[1:] + inside, "/" + token, inside + "?token=" + token,
		} {
			for _, method := range []string{"GET", "HEAD", "POST"} {
				got := ask(t, method, h.URL+wrong).want(t, http.StatusNotFound)
				if method != "HEAD" && !bytes.Equal(got.body, nothing) {
					t.Errorf("%s %s: %s", method, wrong, got.body)
				}
			}
		}
	}
	for _, bad := range []string{"short", "0123456789abcdef/", "0123456789abcdé0", strings.Repeat("x", 201), "................"} {
		if _, err := New(v.repo, Options{Token: bad}); err == nil {
			t.Errorf("token %q is allowed", bad)
		}
	}
}

// TestMethods tries to change something.
func TestMethods(t *testing.T) {
	v := newVM(t, newRepository(t), "vm", "vm")
	v.add(t, []byte("disk"))
	s, h := start(t, v.repo, Options{})
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "PATCH", "PROPFIND", "TRACE"} {
		for _, path := range []string{"/", s.Path(v.newest)} {
			got := ask(t, method, h.URL+path).want(t, http.StatusMethodNotAllowed)
			if got.Header.Get("Allow") != "GET, HEAD" {
				t.Errorf("%s: Allow %q", method, got.Header.Get("Allow"))
			}
		}
	}
}

// TestOnly serves a point that somebody removes.
func TestOnly(t *testing.T) {
	v := newVM(t, newRepository(t), "v%m", "v m")
	one := v.add(t, []byte("one"))
	two := v.add(t, []byte("two"))
	s, h := start(t, v.repo, Options{Only: one, Token: "0123456789abcdef"})
	for _, p := range []*repo.Point{one, two} {
		if err := os.Remove(p.Path()); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if got := ask(t, "GET", h.URL+s.Path(one)).want(t, http.StatusOK); string(got.body) != "one" {
			t.Errorf("got %q", got.body)
		}
	}
	for _, path := range []string{s.Path(two), s.Root(), s.Root() + "index.json", s.Root() + "v%25m/latest.raw"} {
		ask(t, "GET", h.URL+path).want(t, http.StatusNotFound)
	}
	wantOpen(t, v.repo.Dir, 1)
	s.Close()
	wantOpen(t, v.repo.Dir, 0)
	if _, err := New(v.repo, Options{Only: one}); err == nil {
		t.Error("a point that is not there is served")
	}
}

// TestPage reads the list, and follows its links.
func TestPage(t *testing.T) {
	r := newRepository(t)
	_, h := start(t, r, Options{})
	if got := ask(t, "GET", h.URL+"/").want(t, http.StatusOK); !strings.Contains(string(got.body), "no points") {
		t.Errorf("of an empty repository:\n%s", got.body)
	}
	if got := ask(t, "GET", h.URL+"/index.json").want(t, http.StatusOK); !strings.Contains(string(got.body), `"images": []`) {
		t.Errorf("of an empty repository:\n%s", got.body)
	}
	want := map[string]bool{}
	for _, name := range strangeNames() {
		v := newVM(t, r, repo.Escape(name), name)
		for range 2 {
			v.add(t, []byte(name))
			want[name] = true
		}
	}
	newVM(t, r, "colon:name", "colon:name").add(t, []byte("colon:name")) // a folder as the Python tool names it
	page := ask(t, "GET", h.URL+"/").want(t, http.StatusOK)
	if kind := page.Header.Get("Content-Type"); kind != "text/html; charset=utf-8" {
		t.Errorf("Content-Type %q", kind)
	}
	if bytes.Contains(page.body, []byte("<script")) {
		t.Errorf("a name is taken for HTML:\n%s", page.body)
	}
	links := regexp.MustCompile(`<a href="(\./[^"]*)"`).FindAllSubmatch(page.body, -1)
	if len(links) != 2*len(want)+1 {
		t.Errorf("%d links, want %d", len(links), 2*len(want)+1)
	}
	for _, link := range links {
		follow(t, h.URL+"/", html.UnescapeString(string(link[1])), want)
	}
	var list struct{ Images []listedImage }
	if err := json.Unmarshal(ask(t, "GET", h.URL+"/index.json").want(t, http.StatusOK).body, &list); err != nil {
		t.Fatal(err)
	}
	if len(list.Images) != len(want)+1 {
		t.Errorf("%d images, want %d", len(list.Images), len(want)+1)
	}
	for _, image := range list.Images {
		for _, p := range image.Points {
			if p.VirtualSize == 0 || p.State != repo.Good || p.File == "" {
				t.Errorf("point %+v", p)
			}
			follow(t, h.URL+"/", p.URL, want)
		}
	}
}

// follow follows a link as a browser does. The disk must be one of those expected.
func follow(t *testing.T, base, link string, want map[string]bool) {
	t.Helper()
	b, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	target, err := b.Parse(link)
	if err != nil {
		t.Fatalf("link %q: %v", link, err)
	}
	if got := ask(t, "GET", target.String()).want(t, http.StatusOK); !want[string(got.body)] {
		t.Errorf("link %q leads to %q", link, got.body)
	}
}

// TestServe ends a server while a client reads, and finds everything closed.
func TestServe(t *testing.T) {
	v := newVM(t, newRepository(t), "vm", "vm")
	v.add(t, noise(24<<20)) // more than fits into the buffers of a connection
	s, err := New(v.repo, Options{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	response, err := http.Get("http://" + l.Addr().String() + s.Path(v.newest))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	start := time.Now()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took < graceTime || took > graceTime+10*time.Second {
		t.Errorf("ended after %v", took)
	}
	if n, err := new(bytes.Buffer).ReadFrom(response.Body); err == nil {
		t.Errorf("a cut answer ends, after %d bytes, as if it were whole", n)
	}
	s.Close()
	wantOpen(t, v.repo.Dir, 0)
	if _, err := http.Get("http://" + l.Addr().String()); err == nil {
		t.Error("it still listens")
	}
}
