package e2e

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

// httpServer is a running "serve".
type httpServer struct {
	*exec.Cmd
	url string // that it has printed
}

// serve starts a server of a repository on a free port; the test's end kills it.
func serve(t *testing.T, dir string, more ...string) *httpServer {
	t.Helper()
	c := program.Command(t.Context(), append([]string{"serve", "--listen", "127.0.0.1:0", dir}, more...)...)
	c.Stdout = nil
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		_ = c.Wait()
		t.Fatalf("serve: %v\n%s", err, c.Stderr)
	}
	return &httpServer{c, strings.TrimSpace(line)}
}

// disk is the URL of a point.
func (s *httpServer) disk(p status.Point) string {
	file := strings.TrimSuffix(p.File, ".qcow2") + ".raw"
	return s.url + strings.ReplaceAll(file, "%", "%25") // folders have nothing else that needs it
}

// end sends a signal and fails the test unless the server ends by it, with the right status and nothing to complain about.
func (s *httpServer) end(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if err := s.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	_ = s.Wait()
	if took := time.Since(start); took > 10*time.Second || s.ProcessState.ExitCode() != 128+int(signal) {
		t.Errorf("%v: ended after %v with %v", signal, took, s.ProcessState)
	}
	if said := s.Stderr.(*bytes.Buffer).String(); strings.Contains(said, "level=ERROR") || strings.Contains(said, "DATA RACE") {
		t.Errorf("it has said\n%s", said)
	}
}

// fetch gets a URL, or with a range a part of it.
func fetch(t *testing.T, client *http.Client, url, bytes string) (body []byte, status int) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if bytes != "" {
		r.Header.Set("Range", "bytes="+bytes)
	}
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if body, err = io.ReadAll(response.Body); err != nil {
		t.Fatal(err)
	}
	return body, response.StatusCode
}

// TestServe reads every point of a chain over HTTP, by Go's client and by QEMU.
func TestServe(t *testing.T) {
	t.Parallel()
	const size = diskSize + 1000001
	d := newDisk(t, cephtest.Require(t).Pool(t), "vm 1", size)
	var points []status.Point
	for i := range 3 {
		d.pool.IO(t, d.image, fmt.Sprintf("write -P %d %dM 1100k", i+1, i), fmt.Sprintf("write -P %d 9388000 512", i+1))
		if i == 2 {
			d.pool.Resize(t, d.image, size+12345)
		}
		points = append(points, d.backup(t).Points...)
	}
	s := serve(t, d.dir, "--token", "auto")
	if !regexp.MustCompile(`^http://127\.0\.0\.1:\d+/[A-Z2-7]{26}/$`).MatchString(s.url) {
		t.Errorf("URL %s", s.url)
	}
	client := &http.Client{}
	for _, p := range points {
		url, want := s.disk(p), d.truth[p.File]
		whole, code := fetch(t, client, url, "")
		if got := (content{int64(len(whole)), sha256.Sum256(whole)}); code != http.StatusOK || got != want {
			t.Errorf("%s: status %d, %d bytes, %x, want %d, %x", url, code, got.size, got.sha256, want.size, want.sha256)
		}
		part, code := fetch(t, client, url, "9000000-9388608")
		if code != http.StatusPartialContent || !bytes.Equal(part, whole[9000000:9388609]) {
			t.Errorf("%s: status %d, %d other bytes of the middle", url, code, len(part))
		}
		raw := filepath.Join(t.TempDir(), "disk.raw")
		qemutest.Run(t, "qemu-img", "convert", "-m", "1", "-f", "raw", "-O", "raw", url, raw) // with more at a time QEMU 7.2 may hang
		if got := readContent(t, raw, want.size); got != want {
			t.Errorf("%s: QEMU reads %x, want %x", url, got.sha256, want.sha256)
		}
	}
	newest := points[len(points)-1]
	qemutest.Compare(t, s.disk(newest), d.pool.Export(t, d.image+"@"+newest.Snapshot))
	if latest, _ := fetch(t, client, s.url+"vm%201/latest.raw", ""); sha256.Sum256(latest) != d.truth[newest.File].sha256 {
		t.Error("the newest point is another one")
	}
	if out, err := qemutest.Try("qemu-img", "info", s.url+"vm%201/latest.raw"); err == nil {
		t.Errorf("QEMU would read two newest points as one:\n%s", out)
	}
	var index struct{ Images []status.Image }
	list, _ := fetch(t, client, s.url+"index.json", "")
	if err := json.Unmarshal(list, &index); err != nil || len(index.Images) != 1 || len(index.Images[0].Points) != len(points) {
		t.Errorf("index.json: %v\n%s", err, list)
	}
	if _, code := fetch(t, client, strings.Replace(s.disk(newest), s.url[len(s.url)-27:], "", 1), ""); code != http.StatusNotFound {
		t.Errorf("without the token: status %d", code)
	}
	s.end(t, syscall.SIGTERM)
}

// TestServeTLS reads by HTTPS, with a certificate that is checked.
func TestServeTLS(t *testing.T) {
	t.Parallel()
	d := newDisk(t, cephtest.Require(t).Pool(t), "vm", nameSize)
	d.pool.IO(t, d.image, "write -P 7 4k 8k")
	point := d.backup(t).Points[0]
	cert, key := makeCertificate(t)
	s := serve(t, d.dir, "--tls-cert", cert, "--tls-key", key)
	if !strings.HasPrefix(s.url, "https://127.0.0.1:") {
		t.Errorf("URL %s", s.url)
	}
	roots := x509.NewCertPool()
	text, err := os.ReadFile(cert)
	if err != nil || !roots.AppendCertsFromPEM(text) {
		t.Fatalf("certificate: %v", err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	if whole, _ := fetch(t, client, s.disk(point), ""); sha256.Sum256(whole) != d.truth[point.File].sha256 {
		t.Error("another disk")
	}
	if _, err := http.Get(s.disk(point)); err == nil {
		t.Error("a certificate of nobody is taken")
	}
	if _, code := fetch(t, client, strings.Replace(s.disk(point), "https:", "http:", 1), ""); code != http.StatusBadRequest {
		t.Errorf("without TLS: status %d", code)
	}
	for verify, good := range map[string]bool{"on": false, "off": true} { // QEMU has no option for an authority
		image := "driver=raw,file.driver=https,file.sslverify=" + verify + ",file.url=" + s.disk(point)
		out, err := qemutest.Try("qemu-io", "-r", "--image-opts", "-c", "read -P 7 4k 8k", image)
		if (err == nil) != good || strings.Contains(string(out), "failed") {
			t.Errorf("QEMU with sslverify=%s: %v\n%s", verify, err, out)
		}
	}
	s.end(t, syscall.SIGINT)
}

// makeCertificate makes a certificate for 127.0.0.1 that vouches for itself, and gives the paths of it and its key.
func makeCertificate(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	public, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("cert.pem", "CERTIFICATE", public), write("key.pem", "PRIVATE KEY", secret)
}

// TestServeImport has librbd read a point, of an image with a strange name, while it is already in use as a new image.
func TestServeImport(t *testing.T) {
	t.Parallel()
	const size = diskSize + 513
	pool := cephtest.Require(t).Pool(t)
	d := newDisk(t, pool, "new", size)
	pool.IO(t, d.image, "write -P 1 0 5M", "write -P 2 7M 64k")
	d.image = "a b/c@d%?é#&"
	rename(t, pool, "new", d.image)
	point := program.Backup(t, pool, d.dir).Images[0].Points[0]

	s := serve(t, d.dir, "--token", "auto")
	spec := fmt.Sprintf(`{"type": "raw", "stream": {"type": "http", "url": %q}}`, s.disk(point))
	pool.RBD(t, "migration", "prepare", "--import-only", "--source-spec", spec, pool.Spec("back"))
	pool.IO(t, "back", "read -P 1 0 5M", "read -P 2 7M 64k", "read -P 0 6M 1M", "write -P 3 4M 1M")
	pool.RBD(t, "migration", "execute", "--no-progress", pool.Spec("back"))
	pool.RBD(t, "migration", "commit", "--no-progress", pool.Spec("back"))
	s.end(t, syscall.SIGTERM)
	pool.IO(t, "back", "read -P 1 0 4M", "read -P 3 4M 1M", "read -P 2 7M 64k", "read -P 0 5M 2M")
	if got := pool.Info(t, "back").Size; got != size {
		t.Errorf("size %d, want %d", got, size)
	}
}

// TestServeBadInput tries to serve what can't be, or in no way that can be.
func TestServeBadInput(t *testing.T) {
	t.Parallel()
	dir, empty := program.Init(t), t.TempDir()
	cert, key := makeCertificate(t)
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for name, test := range map[string]struct {
		args []string
		code int
		says string
	}{
		"no directory":       {nil, 2, "usage: rbd2qcow2 serve DIR"},
		"no repository":      {[]string{empty}, 1, empty + ": not a repository"},
		"port in use":        {[]string{dir, "--listen", busy.Addr().String()}, 1, "address already in use"},
		"no port":            {[]string{dir, "--listen", "127.0.0.1"}, 1, "missing port in address"},
		"short token":        {[]string{dir, "--token", "secret"}, 2, "--token: a token has 16 to 200 characters"},
		"token of two parts": {[]string{dir, "--token", "0123456789/abcdef"}, 2, "--token: a token has"},
		"certificate alone":  {[]string{dir, "--tls-cert", cert}, 2, "--tls-cert and --tls-key"},
		"no certificate":     {[]string{dir, "--tls-cert", empty + "/nope", "--tls-key", key}, 1, empty + "/nope: no such file"},
		"no key":             {[]string{dir, "--tls-cert", cert, "--tls-key", cert}, 1, "load certificate: "},
		"unknown log format": {[]string{dir, "--log-format", "xml"}, 2, `log format "xml"`},
	} {
		t.Run(name, func(t *testing.T) {
			wantComplaint(t, program.Run(t, append([]string{"serve"}, test.args...)...), test.code, test.says)
		})
	}
}
