package delivery

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"time"

	"relayd/internal/mail"
)

// Source is one [[delivery.source]]: addresses that connections leave from, and the name that is said there.
type Source struct {
	// Name is what rules call it.
	Name string `toml:"name"`
	// Addresses are bound before a connection is made, one of the family of the host's address. Towards one MX host it is
	// always the same one, so that greylisting and reputation see one sender; but for an hour another one where a reply
	// blames the address itself (a blocklist, a missing PTR). A family without an address is not used.
	Addresses []string `toml:"addresses"`
	// EHLO is said in EHLO instead of hostname. The addresses should resolve to it. Default: hostname.
	EHLO string `toml:"ehlo"`
}

// maxSourceAddresses bounds the addresses of one source.
const maxSourceAddresses = 256

func (s Source) validate(key string) error {
	var errs []error
	add := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s."+format, append([]any{key}, args...)...))
	}
	if !isRouteName(s.Name) {
		add("name: %q is not 1 to 64 letters, digits, '-' and '_'", mail.CleanText(s.Name, 80))
	}
	if n := len(s.Addresses); n == 0 && s.EHLO == "" {
		add("addresses: none, and no ehlo either: the source would change nothing")
	} else if n > maxSourceAddresses {
		add("addresses: %d, and at most %d are taken", n, maxSourceAddresses)
	}
	for i, a := range s.Addresses {
		addr, err := netip.ParseAddr(a)
		if err != nil || addr.Zone() != "" || addr.IsUnspecified() || addr.IsMulticast() {
			add("addresses[%d]: %q is not an IP address to send from", i, mail.CleanText(a, 80))
		}
	}
	if s.EHLO != "" {
		if _, err := mail.ParseDomain(s.EHLO, true); err != nil {
			add("ehlo: %q is not a host name", mail.CleanText(s.EHLO, 80))
		}
	}
	return errors.Join(errs...)
}

// source is a Source that was read.
type source struct {
	name, ehlo string
	v4, v6     []netip.Addr
}

func newSource(s *Source) *source {
	out := &source{name: s.Name, ehlo: s.EHLO}
	for _, text := range s.Addresses {
		a, err := netip.ParseAddr(text)
		switch {
		case err != nil: // validated
		case a.Unmap().Is4():
			out.v4 = append(out.v4, a.Unmap())
		default:
			out.v6 = append(out.v6, a)
		}
	}
	return out
}

// reaches tells whether the source has an address of the family of to. A nil source, or one without addresses, leaves
// the choice to the system.
func (s *source) reaches(to netip.Addr) bool {
	return s == nil || len(s.v4)+len(s.v6) == 0 || len(s.family(to)) > 0
}

func (s *source) family(to netip.Addr) []netip.Addr {
	if to.Unmap().Is4() {
		return s.v4
	}
	return s.v6
}

// bind returns the address to leave from towards a host, the same each time as long as it is not avoided; the zero Addr for
// any. Where all are to be avoided it is the usual one.
func (s *source) bind(host string, to netip.Addr, avoid func(netip.Addr) bool) netip.Addr {
	if s == nil {
		return netip.Addr{}
	}
	own := s.family(to)
	if len(own) == 0 {
		return netip.Addr{}
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(host))
	first := int(h.Sum32() % uint32(len(own))) //nolint:gosec // bounded
	for i := range own {
		if a := own[(first+i)%len(own)]; len(own) == 1 || !avoid(a) {
			return a
		}
	}
	return own[first]
}

// greeting is the name to say in EHLO.
func (s *source) greeting(hostname string) string {
	if s == nil || s.ehlo == "" {
		return hostname
	}
	return s.ehlo
}

// checkBind tells whether every address belongs to this machine.
func (s *source) checkBind() error {
	var errs []error
	for _, list := range [][]netip.Addr{s.v4, s.v6} {
		for _, a := range list {
			l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
			if err != nil {
				errs = append(errs, fmt.Errorf("source %s: cannot send from %s: %w", s.name, a, errors.Unwrap(err)))
				continue
			}
			_ = l.Close()
		}
	}
	return errors.Join(errs...)
}

// dialer makes connections from the address that its context carries.
type dialer struct{ timeout time.Duration }

type bindKey struct{}

// withBind has the next connection leave from an address, if that is valid.
func withBind(ctx context.Context, from netip.Addr) context.Context {
	if !from.IsValid() {
		return ctx
	}
	return context.WithValue(ctx, bindKey{}, from)
}

// DialContext is network.
func (d dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	nd := net.Dialer{Timeout: d.timeout, KeepAlive: -1} // every wait has a deadline
	if from, ok := ctx.Value(bindKey{}).(netip.Addr); ok {
		nd.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	return nd.DialContext(ctx, network, address)
}

// isRouteName tells what smarthosts and sources may be called.
func isRouteName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return s != "" && len(s) <= 64
}
