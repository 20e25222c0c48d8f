package e2e

import (
	"context"
	"net"
)

// dialDNS sends look-ups of Go's own resolver to the relay's DNS server.
func (r *relay) dialDNS(ctx context.Context, network, _ string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, r.dns.Addr)
}
