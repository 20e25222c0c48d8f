// Package mailauth judges what a domain publishes about its mail: who may send it (SPF, RFC 7208), with which keys it
// is signed (DKIM, RFC 6376) and what receivers shall do with the rest (DMARC, RFC 9989).
package mailauth

import (
	"context"
	"net/netip"

	"relayd/internal/resolver"
)

// Resolver is what the checks ask; *resolver.Resolver is one. Errors are those of package resolver.
type Resolver interface {
	LookupMX(ctx context.Context, domain string) ([]resolver.MX, error)
	LookupIP(ctx context.Context, host string) ([]netip.Addr, error)
	LookupTXT(ctx context.Context, name string) ([]string, error)
	LookupPTR(ctx context.Context, ip netip.Addr) ([]string, error)
}
