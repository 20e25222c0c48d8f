package delivery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"relayd/internal/mail"
	"relayd/internal/resolver"
	"relayd/spool"
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

// order says where an attempt begins: seed is the message's, so that each of its attempts goes through hosts and
// addresses in the same order, and turn is the number of the attempt, which decides the family that comes first. The
// second try of a family so begins at the address of the first, where a greylist knows us.
type order struct {
	seed uint64
	turn int
}

func orderOf(m *spool.Message, attempts int) order {
	h := fnv.New64a()
	_, _ = h.Write([]byte(m.ID.String()))
	return order{h.Sum64(), attempts}
}

// targets returns the addresses of r in the order in which to try them: by preference, equals in an order that differs
// between messages (RFC 5321 section 5.1), families mixed inside a host, dead ones last. With none it returns the refusal
// that says why, or an error that is temporary.
func (b *addressBook) targets(ctx context.Context, r *route, o order) ([]target, *route, error) {
	var alive, dead []target
	var temporary error
	private, unreached := false, false
	random := rand.New(rand.NewPCG(o.seed, 0)) //nolint:gosec // spreads load
	for _, h := range shuffled(r.hosts, random) {
		addrs, err := b.addresses(ctx, h)
		switch {
		case errors.Is(err, resolver.ErrNXDomain), errors.Is(err, resolver.ErrNoData), errors.Is(err, resolver.ErrNoMX):
			continue
		case err != nil:
			temporary = fmt.Errorf("look up addresses of %s: %w", h.name, err)
			continue
		}
		for _, a := range mixed(addrs, o.turn, random) {
			switch {
			case r.smart == nil && !b.private && isPrivate(a):
				private = true
				continue
			case !r.source.reaches(a):
				unreached = true
				continue
			}
			t := target{
				host: h.name, site: r.key, addr: netip.AddrPortFrom(a, r.port), smart: r.smart, source: r.source, tls: r.tls, chunking: r.chunking,
			}
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
	case unreached:
		return nil, nil, fmt.Errorf("source %s has no address of the family of any host of %s", r.source.name, r.name)
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
	return b.resolver.LookupIP(ctx, h.name)
}

// mixed alternates the families, so that one that does not work costs one connect at most before the other: IPv6 first
// in even turns, IPv4 in odd ones. The addresses of a family are shuffled.
func mixed(addrs []netip.Addr, turn int, random *rand.Rand) []netip.Addr {
	var families [2][]netip.Addr
	for _, a := range addrs {
		if a = a.Unmap(); a.Is6() {
			families[0] = append(families[0], a)
		} else {
			families[1] = append(families[1], a)
		}
	}
	for _, f := range families { // the resolver's order is none to rely on
		slices.SortFunc(f, netip.Addr.Compare)
		random.Shuffle(len(f), func(i, j int) { f[i], f[j] = f[j], f[i] })
	}
	first, second := families[turn%2], families[1-turn%2]
	out := make([]netip.Addr, 0, len(addrs))
	for i := range max(len(first), len(second)) {
		if i < len(first) {
			out = append(out, first[i])
		}
		if i < len(second) {
			out = append(out, second[i])
		}
	}
	return out
}

// shuffled returns the hosts by preference, those of one preference shuffled.
func shuffled(hosts []host, random *rand.Rand) []host {
	out := slices.Clone(hosts)
	slices.SortStableFunc(out, func(a, b host) int { return cmp.Or(cmp.Compare(a.pref, b.pref), cmp.Compare(a.name, b.name)) })
	for i := 0; i < len(out); {
		j := i
		for j < len(out) && out[j].pref == out[i].pref {
			j++
		}
		group := out[i:j]
		random.Shuffle(len(group), func(a, b int) { group[a], group[b] = group[b], group[a] })
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
	switch {
	case b[0] == 0xfe && b[1]&0xc0 == 0xc0: // site-local, RFC 3879
		return true
	case [12]byte(b[:12]) == [12]byte{}: // IPv4-compatible, RFC 4291 section 2.5.5.1
		return true
	case [6]byte(b[:6]) == [6]byte{0, 0x64, 0xff, 0x9b, 0, 1}: // NAT64 of a network's own, RFC 8215
		return true
	case [4]byte(b[:4]) == [4]byte{0, 0x64, 0xff, 0x9b}: // NAT64, RFC 6052: judge what is inside
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
