package resolvertest

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"relayd/internal/resolver"
)

// Fake answers from its maps, whose keys are lower-case names without a final dot (addresses in text form for PTR).
// What no map knows is resolver.ErrNXDomain. The maps must not change while it is in use.
type Fake struct {
	MX  map[string][]resolver.MX
	IP  map[string][]netip.Addr
	TXT map[string][]string
	PTR map[string][]string
	Err map[string]error // comes before everything else for that name
}

// LookupMX returns what MX holds in its order, or the name itself when IP knows it (the implicit MX of RFC 5321).
func (f *Fake) LookupMX(_ context.Context, domain string) ([]resolver.MX, error) {
	mx, err := find(f, f.MX, domain)
	if !errors.Is(err, resolver.ErrNXDomain) {
		return mx, err
	}
	if _, ok := f.IP[clean(domain)]; ok {
		return []resolver.MX{{Host: clean(domain)}}, nil
	}
	return nil, err
}

// LookupMXRecords returns what MX holds.
func (f *Fake) LookupMXRecords(_ context.Context, domain string) ([]resolver.MX, error) {
	return find(f, f.MX, domain)
}

// LookupIP returns what IP holds.
func (f *Fake) LookupIP(_ context.Context, host string) ([]netip.Addr, error) {
	return find(f, f.IP, host)
}

// LookupTXT returns what TXT holds.
func (f *Fake) LookupTXT(_ context.Context, name string) ([]string, error) {
	return find(f, f.TXT, name)
}

// LookupPTR returns what PTR holds.
func (f *Fake) LookupPTR(_ context.Context, ip netip.Addr) ([]string, error) {
	return find(f, f.PTR, ip.String())
}

func find[T any](f *Fake, in map[string][]T, name string) ([]T, error) {
	name = clean(name)
	if err := f.Err[name]; err != nil {
		return nil, err
	}
	if v, ok := in[name]; ok {
		return slices.Clone(v), nil
	}
	return nil, resolver.ErrNXDomain
}

func clean(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }
