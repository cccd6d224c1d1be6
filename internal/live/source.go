package live

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strconv"
	"strings"
	"syscall"

	"github.com/rbd2qcow2/rbd2qcow2/internal/serve"
)

// Free ports are looked for below those that the kernel gives to outgoing connections: one of them could take the port before
// a restore is resumed.
const (
	firstPort = 20000
	lastPort  = 32000
	portTries = 20
)

// source is the server that the image is read from.
type source struct {
	listener net.Listener
	server   *serve.Server
	token    string
	path     string // of the disk
	stop     context.CancelFunc
	done     chan struct{} // closed when the server has ended
	err      error         // why; valid then
}

func newToken() string { return rand.Text() }

// listen opens the point and the address.
func listen(ctx context.Context, r *Request, address, token string) (*source, error) {
	point := r.Folder.Point(r.Point)
	server, err := serve.New(r.Repo, serve.Options{Token: token, Only: point, Logger: r.Logger})
	if err != nil {
		return nil, err
	}
	l, err := listenTCP(ctx, address)
	if err != nil {
		server.Close()
		return nil, err
	}
	return &source{listener: l, server: server, token: token, path: server.Path(point), done: make(chan struct{})}, nil
}

func listenTCP(ctx context.Context, address string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	config := new(net.ListenConfig)
	if port != "0" {
		return config.Listen(ctx, "tcp", address)
	}
	for try := 1; ; try++ {
		n, err := rand.Int(rand.Reader, big.NewInt(lastPort-firstPort))
		if err != nil {
			return nil, err
		}
		l, err := config.Listen(ctx, "tcp", net.JoinHostPort(host, strconv.FormatInt(firstPort+n.Int64(), 10)))
		if !errors.Is(err, syscall.EADDRINUSE) || try == portTries {
			return l, err
		}
	}
}

// spec is the source as librbd takes it, for clients that find the server at an address.
func (s *source) spec(address string) string {
	type stream struct {
		Type string `json:"type"`
		URL  string `json:"url"`
	}
	spec, _ := json.Marshal(struct { // of strings, which can't fail
		Type   string `json:"type"`
		Stream stream `json:"stream"`
	}{"raw", stream{"http", "http://" + address + s.path}})
	return string(spec)
}

// address is HOST:PORT where clients find the server; host, which may have a port, wins over what it listens on.
func (s *source) address(host string) (string, error) {
	address := s.listener.Addr().String()
	if strings.Contains(host, ":") {
		address = host
	} else if host != "" {
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			return "", err
		}
		address = net.JoinHostPort(host, port)
	}
	if strings.Count(address, ":") > 1 {
		return "", fmt.Errorf("librbd can't read the IPv6 address in http://%s: advertise a name, or listen on IPv4", address)
	}
	return address, nil
}

// start answers clients until close.
func (s *source) start() {
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	go func() {
		defer close(s.done)
		s.err = s.server.Serve(ctx, s.listener)
	}()
}

// close ends the server; who is still reading has two seconds left.
func (s *source) close() {
	if s.stop != nil {
		s.stop()
		<-s.done
	}
	_ = s.listener.Close()
	s.server.Close()
}
