package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A far cluster: clients live in a network namespace of their own, in which a relay listens on the addresses that the
// daemons have outside, and forwards each stream to them with a constant delay. Bandwidth is not limited.
//
// Ceph's own injection (ms_inject_delay_*) delays at random, and network emulation (netem) is missing in many kernels.
type farNetwork struct {
	delay atomic.Int64 // nanoseconds, of each direction
	calls chan func()  // run on the thread that lives in the namespace
	close []io.Closer
}

// newFarNetwork makes the namespace and relays the addresses, which have to be of the loopback interface.
// The caller closes it. It needs root, or whoever else may make network namespaces.
func newFarNetwork(ctx context.Context, addresses []string) (*farNetwork, error) {
	n := &farNetwork{calls: make(chan func())}
	made := make(chan error)
	go n.live(made)
	if err := <-made; err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	for _, address := range addresses {
		var l net.Listener
		var err error
		n.do(func() { l, err = listen(ctx, address) })
		if err != nil {
			n.Close()
			return nil, fmt.Errorf("relay %s: %w", address, err)
		}
		n.close = append(n.close, l)
		// Only what is called by do is inside: this dials outside.
		go n.serve(l, func() (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "tcp", address) })
	}
	return n, nil
}

// live runs calls in a new namespace, on a thread that is never used for anything else and ends with it. What is made there
// belongs there: sockets, and processes with all that they do.
func (n *farNetwork) live(made chan<- error) {
	runtime.LockOSThread()
	err := unix.Unshare(unix.CLONE_NEWNET)
	if err == nil {
		err = setUp("lo")
	}
	made <- err
	if err == nil {
		for call := range n.calls {
			call()
		}
	}
}

func setUp(device string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	request, err := unix.NewIfreq(device)
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

func listen(ctx context.Context, address string) (net.Listener, error) {
	var c net.ListenConfig
	c.SetMultipathTCP(false)
	return c.Listen(ctx, "tcp", address)
}

// do runs f inside and returns when f does.
func (n *farNetwork) do(f func()) {
	done := make(chan struct{})
	n.calls <- func() { defer close(done); f() }
	<-done
}

// setDelay makes every operation take that much longer from now on: half of it on the way there, half on the way back.
func (n *farNetwork) setDelay(extra time.Duration) { n.delay.Store(int64(extra / 2)) }

// Close ends the relay and the namespace.
func (n *farNetwork) Close() {
	for _, l := range n.close {
		_ = l.Close()
	}
	close(n.calls)
}

func (n *farNetwork) serve(l net.Listener, dial func() (net.Conn, error)) {
	for {
		near, err := l.Accept()
		if err != nil {
			return // closed
		}
		far, err := dial()
		if err != nil {
			_ = near.Close()
			continue
		}
		go n.forward(far, near)
		go n.forward(near, far)
	}
}

// chunk is what was read at once, and when it may arrive.
type chunk struct {
	data []byte
	due  time.Time
}

// forward copies a stream until it ends. What is on its way waits in memory, as it would on a wire, while more is read.
func (n *farNetwork) forward(to, from net.Conn) {
	wire := make(chan chunk, 1<<14)
	go deliver(to, wire)
	defer close(wire)
	buffer := make([]byte, 256<<10)
	for {
		k, err := from.Read(buffer)
		if k > 0 {
			wire <- chunk{bytes.Clone(buffer[:k]), time.Now().Add(time.Duration(n.delay.Load()))}
		}
		if err != nil {
			return
		}
	}
}

// deliver closes the connection when the wire is empty and closed, or nobody listens any more.
func deliver(to net.Conn, wire <-chan chunk) {
	clock, err := newClock()
	for c := range wire {
		if err == nil {
			err = clock.until(c.due)
		}
		if err == nil {
			_, err = to.Write(c.data)
		}
	}
	if clock != nil {
		clock.Close()
	}
	_ = to.Close()
}

// clock sleeps exactly. time.Sleep is off by up to a millisecond, the unit of epoll_wait's timeout.
type clock struct{ *os.File }

func newClock() (*clock, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make timer: %w", err)
	}
	return &clock{os.NewFile(uintptr(fd), "timer")}, nil
}

func (c *clock) until(t time.Time) error {
	left := time.Until(t)
	if left <= 0 {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.TimerfdSettime(int(fd), 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(left))}, nil)
	})
	var expirations [8]byte
	if err = errors.Join(err, set); err == nil {
		_, err = c.Read(expirations[:])
	}
	return err
}
