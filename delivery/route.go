package delivery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"relayd/internal/mail"
	"relayd/internal/resolver"
	"relayd/spool"
)

// route is where the mail of a domain goes.
type route struct {
	key     string     // identity of the site
	name    string     // of the site, for people
	hosts   []host     // by preference
	smart   *Smarthost // nil: direct
	port    uint16
	refusal *refusal // the domain takes no mail: nothing to connect to
}

// host is one MX host.
type host struct {
	name string
	pref uint16
	addr netip.Addr // set for an address literal
}

// refusal is a verdict that needs no session.
type refusal struct {
	reply  mail.Reply
	reason string // closed set
}

// Bounds of what a domain may make us do : a domain with thousands of MX records is an attack.
const (
	maxHosts     = 16 // MX hosts considered
	maxAddresses = 8  // addresses tried in one round
)

// router finds the route of a domain.
type router struct {
	resolver Resolver
	hostname string
	port     uint16
	smart    *Smarthost // nil: by MX
	others   []Smarthost
}

func newRouter(cfg Config, deps Deps) (*router, error) {
	r := &router{resolver: deps.Resolver, hostname: strings.ToLower(deps.Hostname), port: uint16(cfg.MXPort), others: cfg.Smarthosts} //nolint:gosec // validated
	if cfg.Route == RouteMX {
		return r, nil
	}
	i := slices.IndexFunc(cfg.Smarthosts, func(h Smarthost) bool { return h.Name == cfg.Route })
	if i < 0 {
		return nil, fmt.Errorf("find route %q: no such smarthost", cfg.Route)
	}
	r.smart = &cfg.Smarthosts[i]
	return r, nil
}

// named finds the route that an operator has moved envelopes to. One that is gone from the configuration may come back.
func (r *router) named(name string) (*route, error) {
	for i := range r.others {
		if r.others[i].Name == name {
			return smarthostRoute(&r.others[i])
		}
	}
	return nil, fmt.Errorf("find route %q: no such smarthost; relayctl queue move sends its envelopes elsewhere", name)
}

// Routes returns the names that an operator may move envelopes to.
func (s *Scheduler) Routes() []string {
	names := make([]string, len(s.router.others))
	for i := range s.router.others {
		names[i] = s.router.others[i].Name
	}
	return names
}

// resolve returns the route of a queue's domain. An error is temporary.
func (r *router) resolve(ctx context.Context, domain string) (*route, error) {
	via := (spool.Queue{Domain: domain}).Via()
	switch {
	case via != "":
		return r.named(via)
	case r.smart != nil:
		return smarthostRoute(r.smart)
	case strings.HasPrefix(domain, "["):
		return r.literal(domain), nil
	}
	mxs, err := r.resolver.LookupMX(ctx, domain)
	switch {
	case errors.Is(err, resolver.ErrNullMX): // RFC 7505 section 4.2
		return refused(556, mail.Status{Class: 5, Subject: 1, Detail: 10}, "Domain does not accept mail (null MX)", "null_mx"), nil
	case errors.Is(err, resolver.ErrNXDomain):
		return refused(550, mail.Status{Class: 5, Subject: 1, Detail: 2}, "Domain does not exist", "no_such_domain"), nil
	case errors.Is(err, resolver.ErrNoMX), errors.Is(err, resolver.ErrNoData):
		return refused(550, mail.Status{Class: 5, Subject: 1, Detail: 2}, "Domain has neither MX nor address records", "no_mx"), nil
	case err != nil:
		return nil, fmt.Errorf("look up MX of %s: %w", domain, err)
	}
	return r.direct(mxs), nil
}

// direct builds the route over MX hosts. When we are one of them only those before us may be tried, or the mail would
// come back (RFC 5321 section 5.1).
func (r *router) direct(mxs []resolver.MX) *route {
	hosts := make([]host, 0, min(len(mxs), maxHosts))
	for _, mx := range mxs[:min(len(mxs), maxHosts)] {
		hosts = append(hosts, host{name: strings.TrimSuffix(strings.ToLower(mx.Host), "."), pref: mx.Pref})
	}
	slices.SortStableFunc(hosts, func(a, b host) int { return cmp.Compare(a.pref, b.pref) })
	if i := slices.IndexFunc(hosts, func(h host) bool { return h.name == r.hostname }); i >= 0 {
		own := hosts[i].pref
		hosts = slices.DeleteFunc(hosts, func(h host) bool { return h.pref >= own })
	}
	if len(hosts) == 0 {
		return loops()
	}
	key := siteKey(hosts)
	return &route{key: key, name: siteName(key), hosts: hosts, port: r.port}
}

func (r *router) literal(domain string) *route {
	text := strings.TrimSuffix(strings.TrimPrefix(domain, "["), "]")
	addr, err := netip.ParseAddr(strings.TrimPrefix(text, "IPv6:"))
	if err != nil {
		return refused(550, mail.Status{Class: 5, Subject: 1, Detail: 3}, "Bad address literal", "bad_address")
	}
	return &route{key: domain, name: domain, hosts: []host{{name: domain, addr: addr}}, port: r.port}
}

func smarthostRoute(h *Smarthost) (*route, error) {
	name, port, err := net.SplitHostPort(h.Address)
	if err != nil {
		return nil, fmt.Errorf("read address of smarthost %s: %w", h.Name, err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("read port of smarthost %s: %w", h.Name, err)
	}
	to := host{name: name}
	if addr, err := netip.ParseAddr(name); err == nil {
		to.addr = addr
	} else if name == "localhost" { // RFC 6761 section 6.3
		to.addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return &route{key: "smarthost " + h.Name, name: h.Name, hosts: []host{to}, smart: h, port: uint16(n)}, nil
}

func refused(code int, status mail.Status, text, reason string) *route {
	return &route{refusal: &refusal{mail.Reply{Code: code, Status: status, Text: text}, reason}}
}

func loops() *route {
	return refused(550, mail.Status{Class: 5, Subject: 4, Detail: 6}, "MX of the domain points back to this host", "mail_loop")
}

// result is what the refusal makes of an envelope.
func (r *refusal) result(e *spool.Envelope) spool.Result {
	return spool.Result{ID: e.ID, Outcome: spool.Bounced, Reply: r.reply, Reason: r.reason}
}

// siteKey is the identity of a set of hosts: lower case, grouped by preference, sorted inside a group. Domains whose
// records differ only in the order of equals, or in the preference figures, share a site.
func siteKey(hosts []host) string {
	var b strings.Builder
	for i := 0; i < len(hosts); {
		j := i
		var names []string
		for ; j < len(hosts) && hosts[j].pref == hosts[i].pref; j++ {
			names = append(names, hosts[j].name)
		}
		slices.Sort(names)
		if i > 0 {
			b.WriteByte(';')
		}
		b.WriteString(strings.Join(slices.Compact(names), ","))
		i = j
	}
	return b.String()
}

// siteName is the first host of the site, for logs.
func siteName(key string) string {
	if i := strings.IndexAny(key, ",;"); i >= 0 {
		return key[:i]
	}
	return key
}
