package main

import (
	"context"
	"io"
	"net"
	"testing"
	"time"
)

// relayed returns a connection to a server that echoes what it gets, through a relay in this test's own namespace.
func relayed(t *testing.T, extra time.Duration) net.Conn {
	t.Helper()
	server, err := listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	relay, err := listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dial := func(l net.Listener) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(context.Background(), "tcp", l.Addr().String())
	}
	var n farNetwork
	n.setDelay(extra)
	go n.serve(relay, func() (net.Conn, error) { return dial(server) })
	go func() {
		c, err := server.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(c, c)
		_ = c.Close()
	}()
	c, err := dial(relay)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		_ = relay.Close()
		_ = server.Close()
	})
	return c
}

func TestRelayDelays(t *testing.T) {
	const extra, rounds = 10 * time.Millisecond, 20
	c := relayed(t, extra)
	message := make([]byte, 4096)
	start := time.Now()
	for range rounds {
		if _, err := c.Write(message); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, message); err != nil {
			t.Fatal(err)
		}
	}
	if each := time.Since(start) / rounds; each < extra || each > 5*extra {
		t.Errorf("a round trip takes %v, want little more than %v, even on a busy machine", each, extra)
	}
}

// A relay that waited for one chunk after the other would need minutes.
func TestRelayDoesNotLimitBandwidth(t *testing.T) {
	const total = 16 << 20
	c := relayed(t, 100*time.Millisecond)
	sent := make(chan error, 1)
	start := time.Now()
	go func() {
		message := make([]byte, 4096)
		for range total / len(message) {
			if _, err := c.Write(message); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	if _, err := io.CopyN(io.Discard, c, total); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("%d bytes took %v", total, took)
	}
}
