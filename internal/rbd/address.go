package rbd

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
)

// Address returns the IP address of this host that the cluster knows it by: what leads to the monitors, and so to other hosts
// that use the cluster (rados_getaddrs).
func (c *Cluster) Address(ctx context.Context) (netip.Addr, error) {
	addrs, err := call(ctx, c.reader.handle, c.reader.rados.GetAddrs, nil)
	var addr netip.Addr
	if err == nil {
		addr, err = parseAddress(addrs)
	}
	return addr, fail("find own address", "", err)
}

// parseAddress finds the IP address in "v1:10.0.0.1:0/123", or in the first of "[v2:[fd00::1]:0/123,v1:[fd00::1]:0/123]".
func parseAddress(addrs string) (netip.Addr, error) {
	first, _, _ := strings.Cut(strings.TrimPrefix(addrs, "["), ",")
	for _, prefix := range []string{"v1:", "v2:", "any:"} {
		first = strings.TrimPrefix(first, prefix)
	}
	address, _, _ := strings.Cut(first, "/")
	parsed, err := netip.ParseAddrPort(address)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("librados calls it %q: %w", addrs, err)
	}
	return parsed.Addr(), nil
}
