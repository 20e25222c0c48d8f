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
	"sync/atomic"

	"relayd/internal/mail"
	"relayd/internal/resolver"
	"relayd/internal/tlspolicy"
	"relayd/spool"
)

// route is where the mail of a queue goes.
type route struct {
	key      string     // identity of the site
	name     string     // of the site, for people
	hosts    []host     // by preference
	smart    *Smarthost // nil: direct
	port     uint16
	fallback string          // route to take while the site is suspended, "" for none
	source   *source         // nil: the system chooses
	tls      tlspolicy.Level // towards MX hosts
	chunking bool            // BDAT where it is offered
	refusal  *refusal        // nothing to connect to
}

// host is one MX host.
type host struct {
	name string
	pref uint16
	addr netip.Addr // set for an address literal
}

// refusal is a verdict that needs no session.
type refusal struct {
	outcome spool.Outcome
	reply   mail.Reply
	reason  string // closed set
}

// Bounds of what a domain may make us do: a domain with thousands of MX records is an attack.
const (
	maxHosts     = 16 // MX hosts considered
	maxAddresses = 8  // addresses tried in one round
)

// router finds the route of a queue. Its table may be replaced at any time.
type router struct {
	resolver Resolver
	hostname string
	table    atomic.Pointer[routeTable]
}

// routeTable is what the configuration says about routes.
type routeTable struct {
	port     uint16
	chunking bool
	standard choice // where no rule says otherwise
	rules    []Rule
	smart    map[string]*Smarthost
	names    []string // of smarthosts, in the order of the configuration
	sources  map[string]*source
	bySender bool // a rule asks for the sender's domain
}

func newRouter(cfg Config, deps Deps) *router {
	r := &router{resolver: deps.Resolver, hostname: strings.ToLower(deps.Hostname)}
	r.table.Store(newRouteTable(cfg))
	return r
}

// newRouteTable reads a configuration that was validated.
func newRouteTable(cfg Config) *routeTable {
	t := &routeTable{
		port: uint16(cfg.MXPort), chunking: cfg.Chunking, //nolint:gosec // validated
		standard: choice{route: cfg.Route, fallback: cfg.Fallback},
		smart:    map[string]*Smarthost{}, sources: map[string]*source{},
	}
	for i := range cfg.Smarthosts {
		h := cfg.Smarthosts[i]
		t.smart[h.Name] = &h
		t.names = append(t.names, h.Name)
	}
	for i := range cfg.Sources {
		t.sources[cfg.Sources[i].Name] = newSource(&cfg.Sources[i])
	}
	for _, r := range cfg.Rules {
		t.bySender = t.bySender || len(r.SenderDomains) > 0
		t.rules = append(t.rules, r.normal())
	}
	return t
}

// choose asks the rules about a queue.
func (t *routeTable) choose(q spool.Queue) choice {
	var c choice
	sender, domain := q.Sender(), q.Recipient()
	for i := range t.rules {
		r := &t.rules[i]
		if !r.matches(q, domain, sender) {
			continue
		}
		if c.route == "" && r.Route != "" {
			c.route, c.fallback = r.Route, r.Fallback
		}
		c.source, c.tls = cmp.Or(c.source, r.Source), cmp.Or(c.tls, r.TLS)
	}
	if c.route == "" {
		c.route, c.fallback = t.standard.route, t.standard.fallback
	}
	return c
}

// asksSender tells whether any rule for the sender's domain holds for an envelope in the queue.
func (t *routeTable) asksSender(q spool.Queue, domain, sender string) bool {
	if !t.bySender {
		return false
	}
	for i := range t.rules {
		if r := &t.rules[i]; len(r.SenderDomains) > 0 && r.matches(q, domain, sender) {
			return true
		}
	}
	return false
}

// QueueDomain names the queue in which an envelope waits (spool.QueueDomain): that of its domain, apart from others where a
// rule for its sender's domain holds.
func (s *Scheduler) QueueDomain(account, stream string, from, to mail.Path) string {
	sender := ""
	if s.router.table.Load().asksSender(spool.Queue{Account: account, Stream: stream}, to.Domain, from.Domain) {
		sender = from.Domain
	}
	return spool.QueueDomain(sender, "", to.Domain)
}

// Routes returns the names of routes that an operator may move envelopes to.
func (s *Scheduler) Routes() []string {
	return append([]string{RouteMX}, s.router.table.Load().names...)
}

// resolve returns the route of a queue. An error is temporary.
func (r *router) resolve(ctx context.Context, q spool.Queue) (*route, error) {
	t := r.table.Load()
	domain := q.Recipient()
	c := t.choose(q)
	if via := q.Via(); via != "" {
		c.route, c.fallback = via, ""
	}
	to, err := r.follow(ctx, t, c.route, domain)
	if err != nil || to.refusal != nil {
		return to, err
	}
	to.fallback = c.fallback
	return to.with(t, c), nil
}

// standIn returns the route to take while that of the queue is suspended.
func (r *router) standIn(ctx context.Context, q spool.Queue, of *route) (*route, error) {
	t := r.table.Load()
	to, err := r.follow(ctx, t, of.fallback, q.Recipient())
	if err != nil || to.refusal != nil {
		return to, err
	}
	return to.with(t, t.choose(q)), nil
}

// with adds what else the rules say. Sites that differ in it are apart: so are their sessions.
func (r *route) with(t *routeTable, c choice) *route {
	r.chunking = t.chunking
	if r.source = t.sources[c.source]; r.source != nil {
		r.key += " from " + r.source.name
	}
	if r.smart == nil && c.tls != "" && c.tls != tlspolicy.Opportunistic {
		r.tls = c.tls
		r.key += " tls " + string(c.tls)
	}
	return r
}

// follow finds where a route leads for a domain.
func (r *router) follow(ctx context.Context, t *routeTable, name, domain string) (*route, error) {
	switch {
	case name == RouteDiscard:
		return &route{refusal: &refusal{
			spool.Delivered, mail.Reply{Code: 250, Status: mail.Status{Class: 2}, Text: "Discarded by a rule of this relay"}, "discarded",
		}}, nil
	case name != RouteMX:
		if h := t.smart[name]; h != nil {
			return smarthostRoute(h)
		}
		return nil, fmt.Errorf("find route %q: no such smarthost; relayctl queue move sends its envelopes elsewhere", name)
	case strings.HasPrefix(domain, "["):
		return t.literal(domain), nil
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
	return t.direct(mxs, r.hostname), nil
}

// direct builds the route over MX hosts. When we are one of them only those before us may be tried, or the mail would
// come back (RFC 5321 section 5.1).
func (t *routeTable) direct(mxs []resolver.MX, hostname string) *route {
	hosts := make([]host, 0, len(mxs))
	for _, mx := range mxs {
		hosts = append(hosts, host{name: strings.TrimSuffix(strings.ToLower(mx.Host), "."), pref: mx.Pref})
	}
	// Equals come in another order each time: of more hosts than are considered the same ones must be, or each look-up would
	// find another site, which nothing is known of.
	slices.SortFunc(hosts, func(a, b host) int { return cmp.Or(cmp.Compare(a.pref, b.pref), cmp.Compare(a.name, b.name)) })
	if i := slices.IndexFunc(hosts, func(h host) bool { return h.name == hostname }); i >= 0 {
		own := hosts[i].pref
		hosts = slices.DeleteFunc(hosts, func(h host) bool { return h.pref >= own })
	}
	if len(hosts) == 0 {
		return loops()
	}
	hosts = hosts[:min(len(hosts), maxHosts)]
	key := siteKey(hosts)
	return &route{key: key, name: siteName(key), hosts: hosts, port: t.port}
}

func (t *routeTable) literal(domain string) *route {
	text := strings.TrimSuffix(strings.TrimPrefix(domain, "["), "]")
	addr, err := netip.ParseAddr(strings.TrimPrefix(text, "IPv6:"))
	if err != nil {
		return refused(550, mail.Status{Class: 5, Subject: 1, Detail: 3}, "Bad address literal", "bad_address")
	}
	return &route{key: domain, name: domain, hosts: []host{{name: domain, addr: addr}}, port: t.port}
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
	return &route{refusal: &refusal{spool.Bounced, mail.Reply{Code: code, Status: status, Text: text}, reason}}
}

func loops() *route {
	return refused(550, mail.Status{Class: 5, Subject: 4, Detail: 6}, "MX of the domain points back to this host", "mail_loop")
}

// result is what the refusal makes of an envelope.
func (r *refusal) result(e *spool.Envelope) spool.Result {
	return spool.Result{ID: e.ID, Outcome: r.outcome, Reply: r.reply, Reason: r.reason}
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
