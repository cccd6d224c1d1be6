package rbd

import (
	"net"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
)

func TestParseAddress(t *testing.T) {
	t.Parallel()
	for addrs, want := range map[string]string{
		"10.0.0.1:0/123":                               "10.0.0.1",
		"v1:10.0.0.1:0/123":                            "10.0.0.1",
		"[v2:10.0.0.1:0/123,v1:10.0.0.2:0/123]":        "10.0.0.1",
		"v2:[fd00::1]:0/123":                           "fd00::1",
		"[v2:[fd00::1]:0/123,v1:[fd00::1]:6789/12345]": "fd00::1",
	} {
		if got, err := parseAddress(addrs); err != nil || got.String() != want {
			t.Errorf("%s: %v, %v, want %s", addrs, got, err, want)
		}
	}
	for _, addrs := range []string{"", "-", "[]", "v2:", "host:0/1"} {
		if got, err := parseAddress(addrs); err == nil {
			t.Errorf("%q: %v", addrs, got)
		}
	}
}

func TestAddress(t *testing.T) {
	t.Parallel()
	ctx, p := connectAs(t, cephtest.Require(t).Pool(t))
	address, err := p.cluster.Address(ctx)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(address.String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
}
