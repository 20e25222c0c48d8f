package resolver

import (
	"context"
	"net/netip"
)

// MX is one mail exchanger of a domain.
type MX struct {
	Host string // lower case, without the final dot
	Pref uint16 // lower is preferred
}

// Resolver is safe for concurrent use.
type Resolver struct{}

// New returns a resolver.
func New(cfg Config, deps Deps) (*Resolver, error) { panic("CONTRACT STUB") }

// LookupMX returns the mail exchangers of a domain by preference, equals in a new random order at each call.
func (r *Resolver) LookupMX(ctx context.Context, domain string) ([]MX, error) {
	panic("CONTRACT STUB")
}

// LookupIP returns the addresses of a host.
func (r *Resolver) LookupIP(ctx context.Context, host string) ([]netip.Addr, error) {
	panic("CONTRACT STUB")
}

// LookupTXT returns the TXT records of a name, each with its strings joined.
func (r *Resolver) LookupTXT(ctx context.Context, name string) ([]string, error) {
	panic("CONTRACT STUB")
}

// LookupPTR returns the names of an address.
func (r *Resolver) LookupPTR(ctx context.Context, ip netip.Addr) ([]string, error) {
	panic("CONTRACT STUB")
}
