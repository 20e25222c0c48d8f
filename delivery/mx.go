package delivery

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"relayd/internal/mail"
	"relayd/internal/resolver"
)

// addressBook turns the hosts of a route into addresses to try.
type addressBook struct {
	resolver Resolver
	private  bool     // private addresses are allowed
	dead     *hostSet // addresses that did not answer of late: they go last
	now      func() time.Time
}

// deadFor is how long an address that could not be reached stands behind the others.
const deadFor = 2 * time.Minute

// targets returns the addresses of r in the order in which to try them: by preference, equals shuffled
// (RFC 5321 section 5.1), families mixed inside a host, dead ones last. With none it returns the refusal that says why,
// or an error that is temporary.
func (b *addressBook) targets(ctx context.Context, r *route) ([]target, *route, error) {
	var alive, dead []target
	var temporary error
	private := false
	for _, h := range shuffled(r.hosts) {
		addrs, err := b.addresses(ctx, h)
		switch {
		case errors.Is(err, resolver.ErrNXDomain), errors.Is(err, resolver.ErrNoData), errors.Is(err, resolver.ErrNoMX):
			continue
		case err != nil:
			temporary = fmt.Errorf("look up addresses of %s: %w", h.name, err)
			continue
		}
		for _, a := range addrs {
			if r.smart == nil && !b.private && isPrivate(a) {
				private = true
				continue
			}
			t := target{host: h.name, addr: netip.AddrPortFrom(a, r.port), smart: r.smart}
			if b.dead.has(a.String(), b.now()) {
				dead = append(dead, t)
			} else {
				alive = append(alive, t)
			}
		}
		if len(alive) >= maxAddresses {
			break
		}
	}
	all := append(alive, dead...)
	switch {
	case len(all) > 0:
		return all[:min(len(all), maxAddresses)], nil, nil
	case temporary != nil:
		return nil, nil, temporary
	case r.smart != nil:
		return nil, nil, fmt.Errorf("smarthost %s has no address", r.name)
	case private:
		return nil, refused(550, mail.Status{Class: 5, Subject: 4, Detail: 4}, "MX of the domain has only private addresses", "private_mx"), nil
	}
	return nil, refused(550, mail.Status{Class: 5, Subject: 4, Detail: 4}, "No MX host of the domain has an address", "no_address"), nil
}

func (b *addressBook) addresses(ctx context.Context, h host) ([]netip.Addr, error) {
	if h.addr.IsValid() {
		return []netip.Addr{h.addr}, nil
	}
	addrs, err := b.resolver.LookupIP(ctx, h.name)
	if err != nil {
		return nil, err
	}
	return mixed(addrs), nil
}

// mixed alternates the families, IPv6 first, so that one that does not work costs one connect at most before the other.
func mixed(addrs []netip.Addr) []netip.Addr {
	var v4, v6 []netip.Addr
	for _, a := range addrs {
		if a = a.Unmap(); a.Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	out := make([]netip.Addr, 0, len(addrs))
	for i := range max(len(v4), len(v6)) {
		if i < len(v6) {
			out = append(out, v6[i])
		}
		if i < len(v4) {
			out = append(out, v4[i])
		}
	}
	return out
}

// shuffled returns the hosts with those of one preference in a new random order.
func shuffled(hosts []host) []host {
	out := append([]host(nil), hosts...)
	for i := 0; i < len(out); {
		j := i
		for j < len(out) && out[j].pref == out[i].pref {
			j++
		}
		group := out[i:j]
		rand.Shuffle(len(group), func(a, b int) { group[a], group[b] = group[b], group[a] })
		i = j
	}
	return out
}

// isPrivate tells addresses that no MX of the public Internet has (RFC 6890).
func isPrivate(a netip.Addr) bool {
	a = a.Unmap()
	if a.IsLoopback() || a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() || !a.IsGlobalUnicast() {
		return true
	}
	if a.Is4() {
		b := a.As4()
		return b[0] == 0 || b[0] >= 240 || b[0] == 100 && b[1]&0xc0 == 64 || // RFC 6598
			b[0] == 192 && b[1] == 0 && b[2] == 0 || b[0] == 198 && b[1]&0xfe == 18
	}
	b := a.As16()
	if b[0] == 0 && b[1] == 0x64 && b[2] == 0xff && b[3] == 0x9b { // NAT64, RFC 6052: judge what is inside
		return isPrivate(netip.AddrFrom4([4]byte(b[12:16])))
	}
	return b[0] == 0x20 && b[1] == 0x02 && isPrivate(netip.AddrFrom4([4]byte(b[2:6]))) // 6to4
}

// isLoopbackHost is for configuration: a name other than localhost is not resolved.
func isLoopbackHost(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}
