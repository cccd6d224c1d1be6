package cli

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"os"

	"github.com/spf13/cobra"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/serve"
)

// serveFlags are the options of the command.
type serveFlags struct {
	listen     string
	token      string
	tlsCert    string
	tlsKey     string
	repository repositoryFlags
	output     outputFlags
}

func (p *Program) serveCommand() *cobra.Command {
	var f serveFlags
	c := &cobra.Command{
		Use:   "serve DIR",
		Short: "Show every point as a flat raw disk over HTTP, read-only",
		Long: `Show every point of the repository DIR as one flat raw disk over HTTP, read-only, for curl, QEMU, nbdkit,
librbd's import and whatever else can read a disk from a web server. No cluster is asked.

The URL is printed. It leads to a page of all disks; index.json beside it has the same for programs:

  URL/IMAGE/POINT.raw    a point
  URL/IMAGE/latest.raw   the newest point, from end to end: without ranges

Whoever can connect can read every disk, on loopback every user of this host, unless there is a token: then it is
part of the URL, and without it nothing is to be seen.

The command runs until it is interrupted. Exit status: 1 it could not start; 2 usage; 130 and 143 interrupted.`,
		Example: `  rbd2qcow2 serve /backup/rbd
  rbd2qcow2 serve --token auto --listen :8443 --tls-cert host.pem --tls-key host.key /backup/rbd`,
		Args: arguments(1, 1),
		RunE: func(c *cobra.Command, args []string) error { return p.serve(c.Context(), args[0], &f) },
	}
	flags := c.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.listen, "listen", "127.0.0.1:8080", "`ADDRESS:PORT`; without an address all of this host's, with port 0 a free one")
	flags.StringVar(&f.token, "token", "",
		"first part of every path: `TOKEN|auto`; auto makes one up, which can't be seen in the list of processes")
	flags.StringVar(&f.tlsCert, "tls-cert", "", "`FILE` with the certificate, and those between it and its authority, as PEM")
	flags.StringVar(&f.tlsKey, "tls-key", "", "`FILE` with the certificate's key, as PEM")
	f.repository.add(flags)
	f.output.add(flags)
	return c
}

func (p *Program) serve(ctx context.Context, dir string, f *serveFlags) error {
	if err := f.validate(); err != nil {
		return err
	}
	r, err := f.repository.open(dir, repo.Open)
	if err != nil {
		return err
	}
	log := f.output.logger(p.Stderr, false)
	server, err := serve.New(r, serve.Options{Token: f.token, Logger: log})
	if err != nil {
		return err
	}
	defer server.Close()
	l, err := f.open(ctx)
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	defer l.Close()
	f.warn(log, l.Addr())
	if err := p.printURL(f, f.url(l.Addr(), server)); err != nil {
		return err
	}
	return server.Serve(ctx, l)
}

// validate checks the options, and makes up the token that is asked for.
func (f *serveFlags) validate() error {
	if err := f.output.validate(); err != nil {
		return err
	}
	if (f.tlsCert == "") != (f.tlsKey == "") {
		return usagef("--tls-cert and --tls-key: one without the other")
	}
	if f.token == "auto" {
		f.token = rand.Text()
	}
	if f.token == "" {
		return nil
	}
	if err := serve.CheckToken(f.token); err != nil {
		return usagef("--token: %w", err)
	}
	return nil
}

// open listens for clients.
func (f *serveFlags) open(ctx context.Context) (net.Listener, error) {
	var secure *tls.Config
	if f.tlsCert != "" {
		cert, err := tls.LoadX509KeyPair(f.tlsCert, f.tlsKey)
		if err != nil {
			return nil, fmt.Errorf("load certificate: %w", err)
		}
		secure = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", f.listen)
	if err != nil || secure == nil {
		return l, err
	}
	return tls.NewListener(l, secure), nil
}

// warn says what lies open where others than users of this host can connect.
func (f *serveFlags) warn(log *slog.Logger, a net.Addr) {
	if tcp, ok := a.(*net.TCPAddr); ok && tcp.IP.IsLoopback() {
		return
	}
	if f.token == "" {
		log.Warn("whoever can connect can read every disk of the repository: consider --token auto", "address", a)
	}
	if f.tlsCert == "" {
		log.Warn("disks, and a token, cross the network in clear: consider --tls-cert and --tls-key", "address", a)
	}
}

// url is how to get to the page from this host or, where the server listens on all addresses, from others.
func (f *serveFlags) url(a net.Addr, s *serve.Server) string {
	scheme, address := "http", a.String()
	if f.tlsCert != "" {
		scheme = "https"
	}
	if tcp, ok := a.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		if host, err := os.Hostname(); err == nil {
			address = net.JoinHostPort(host, fmt.Sprint(tcp.Port))
		}
	}
	return scheme + "://" + address + s.Root()
}

// printURL prints where to go. A log would keep the token.
func (p *Program) printURL(f *serveFlags, url string) error {
	if f.output.json {
		return printJSON(p.Stdout, map[string]string{"url": url})
	}
	_, err := fmt.Fprintln(p.Stdout, url)
	return err
}
