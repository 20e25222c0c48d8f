package resolver

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// MX is one mail exchanger of a domain.
type MX struct {
	Host string // lower case, without the final dot
	Pref uint16 // lower is preferred
}

// Resolver asks recursive resolvers and keeps what they say. It is safe for concurrent use. It starts no goroutine that
// outlives a call, so there is nothing to close.
type Resolver struct {
	servers []*server
	timeout time.Duration
	now     func() time.Time
	metrics *metrics
	buffers sync.Pool     // of *[]byte that hold an answer by UDP
	window  chan struct{} // bounds the questions under way
	parsing chan struct{} // bounds the answers by TCP that are parsed

	mu    sync.Mutex
	cache *cache
	calls map[question]*call
}

// call is a question under way, for all who ask it at the same time.
type call struct {
	done   chan struct{}
	answer *answer // nil when the asker gave up: somebody else must ask
}

const (
	maxUnderWay = 768 // each has a socket; most of them wait for name servers that never answer, and nobody else should
	maxParsing  = 2
	maxRecords  = 100 // of one answer that are kept
	maxChain    = 10  // CNAME records followed
)

// New returns a resolver. It opens nothing.
func New(cfg Config, deps Deps) (*Resolver, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	addrs, err := cfg.addresses()
	if err != nil {
		return nil, err
	}
	if len(addrs) == 0 {
		addrs = systemServers("/etc/resolv.conf")
	}
	r := &Resolver{
		timeout: cfg.Timeout,
		now:     deps.Now,
		metrics: newMetrics(deps.Metrics),
		buffers: sync.Pool{New: func() any { b := make([]byte, udpSize); return &b }},
		window:  make(chan struct{}, maxUnderWay),
		parsing: make(chan struct{}, maxParsing),
		cache:   newCache(maxCacheBytes),
		calls:   map[question]*call{},
	}
	for _, a := range addrs {
		r.servers = append(r.servers, &server{addr: a})
	}
	if r.timeout == 0 {
		r.timeout = DefaultConfig().Timeout
	}
	if r.now == nil {
		r.now = time.Now
	}
	return r, nil
}

// LookupMX returns the mail exchangers of a domain by preference, equals in a new random order at each call (RFC 5321
// section 5.1), at most 100. A domain without MX record and with an address is its own exchanger of preference 0. Errors:
// ErrNXDomain, ErrNullMX, ErrNoMX, ErrTemporary. The domain is in A-labels.
func (r *Resolver) LookupMX(ctx context.Context, domain string) ([]MX, error) {
	records, err := r.LookupMXRecords(ctx, domain)
	// Only "there is no MX record" leads to the address; after a failure it would send mail to the wrong host.
	if errors.Is(err, ErrNoData) {
		return r.implicitMX(ctx, domain)
	}
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(records, func(m MX) bool { return m.Host != "" }) {
		return nil, &Error{Name: clean(domain), Type: "MX", Err: ErrNullMX}
	}
	mx := make([]MX, 0, len(records))
	for _, rec := range records {
		if isHost(rec.Host) && !slices.ContainsFunc(mx, func(m MX) bool { return m.Host == rec.Host }) {
			mx = append(mx, rec)
		}
	}
	if len(mx) == 0 {
		return nil, &Error{Name: clean(domain), Type: "MX", Err: ErrNoMX, Detail: errors.New("its MX records name no host")}
	}
	rand.Shuffle(len(mx), func(i, j int) { mx[i], mx[j] = mx[j], mx[i] })
	slices.SortStableFunc(mx, func(a, b MX) int { return int(a.Pref) - int(b.Pref) })
	return mx, nil
}

// LookupMXRecords returns the MX records of a domain as they are published, at most 100, for those who judge and do not
// send: no implicit exchanger, the host of a null MX is "". Errors: ErrNXDomain, ErrNoData, ErrTemporary.
func (r *Resolver) LookupMXRecords(ctx context.Context, domain string) ([]MX, error) {
	records, err := r.lookup(ctx, domain, dns.TypeMX)
	if err != nil {
		return nil, err
	}
	mx := make([]MX, 0, len(records))
	for _, rec := range records {
		mx = append(mx, MX{rec.text, rec.pref})
	}
	return mx, nil
}

func (r *Resolver) implicitMX(ctx context.Context, domain string) ([]MX, error) {
	_, err := r.LookupIP(ctx, domain)
	if errors.Is(err, ErrNoData) {
		return nil, &Error{Name: clean(domain), Type: "MX", Err: ErrNoMX}
	}
	if err != nil {
		return nil, err
	}
	return []MX{{Host: clean(domain)}}, nil
}

// LookupIP returns the IPv4 addresses of a host and then the IPv6 ones, each family in random order, at most 100 each.
// When one family cannot be found out and the other one has addresses, it returns these. Errors: ErrNXDomain, ErrNoData,
// ErrTemporary.
func (r *Resolver) LookupIP(ctx context.Context, host string) ([]netip.Addr, error) {
	var v6 []record
	var err6 error
	var wg sync.WaitGroup
	wg.Go(func() { v6, err6 = r.lookup(ctx, host, dns.TypeAAAA) })
	v4, err4 := r.lookup(ctx, host, dns.TypeA)
	wg.Wait()
	addrs := make([]netip.Addr, 0, len(v4)+len(v6))
	for _, family := range [][]record{v4, v6} {
		start := len(addrs)
		for _, rec := range family {
			if a, err := netip.ParseAddr(rec.text); err == nil {
				addrs = append(addrs, a)
			}
		}
		part := addrs[start:]
		rand.Shuffle(len(part), func(i, j int) { part[i], part[j] = part[j], part[i] })
	}
	switch {
	case len(addrs) > 0:
		return addrs, nil
	case errors.Is(err6, ErrTemporary):
		return nil, err6
	}
	return nil, err4
}

// LookupTXT returns the TXT records of a name, each with its strings joined, at most 100. Errors: ErrNXDomain, ErrNoData,
// ErrTemporary.
func (r *Resolver) LookupTXT(ctx context.Context, name string) ([]string, error) {
	return r.texts(ctx, name, dns.TypeTXT)
}

// LookupPTR returns the names of an address, lower case and without the final dot, at most 100. Errors: ErrNXDomain,
// ErrNoData, ErrTemporary.
func (r *Resolver) LookupPTR(ctx context.Context, ip netip.Addr) ([]string, error) {
	name, err := dns.ReverseAddr(ip.Unmap().WithZone("").String())
	if err != nil {
		return nil, &Error{Name: ip.String(), Type: "PTR", Err: ErrNXDomain, Detail: err}
	}
	return r.texts(ctx, name, dns.TypePTR)
}

func (r *Resolver) texts(ctx context.Context, name string, typ uint16) ([]string, error) {
	records, err := r.lookup(ctx, name, typ)
	if err != nil {
		return nil, err
	}
	out := make([]string, 0, len(records))
	for _, rec := range records {
		out = append(out, rec.text)
	}
	return out, nil
}

// lookup returns what the cache knows, joins a question under way or asks.
func (r *Resolver) lookup(ctx context.Context, name string, typ uint16) ([]record, error) {
	q := question{dns.Fqdn(clean(name)), typ}
	if !validName(q.name) {
		return nil, q.error(ErrNXDomain, errors.New("not a domain name"))
	}
	for {
		if err := ctx.Err(); err != nil {
			return nil, q.error(ErrTemporary, err)
		}
		r.mu.Lock()
		if a := r.cache.get(q, r.now()); a != nil {
			r.mu.Unlock()
			r.metrics.cache.WithLabelValues("cache").Inc()
			return a.records, a.err
		}
		c, joined := r.calls[q]
		if !joined {
			c = &call{done: make(chan struct{})}
			r.calls[q] = c
		}
		r.mu.Unlock()
		if joined {
			select {
			case <-c.done:
			case <-ctx.Done():
				return nil, q.error(ErrTemporary, ctx.Err())
			}
			if c.answer == nil {
				continue
			}
			r.metrics.cache.WithLabelValues("shared").Inc()
			return c.answer.records, c.answer.err
		}
		r.metrics.cache.WithLabelValues("server").Inc()
		a := r.call(ctx, q, c)
		return a.records, a.err
	}
}

// call asks for all who wait for c.
func (r *Resolver) call(ctx context.Context, q question, c *call) (a *answer) {
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.calls, q)
		// That this asker's context ended says nothing about the name.
		if a != nil && (a.err == nil || ctx.Err() == nil || !errors.Is(a.err, ErrTemporary)) {
			r.cache.put(q, a)
			c.answer = a
		}
		close(c.done)
	}()
	select {
	case r.window <- struct{}{}:
		defer func() { <-r.window }()
	case <-ctx.Done():
		return &answer{err: q.error(ErrTemporary, ctx.Err())}
	}
	start := r.now()
	a = r.resolve(ctx, q)
	r.metrics.seconds.Observe(r.now().Sub(start).Seconds())
	r.metrics.queries.WithLabelValues(typeNames[q.typ], resultLabel(a.err)).Inc()
	return a
}

var typeNames = map[uint16]string{
	dns.TypeA: "a", dns.TypeAAAA: "aaaa", dns.TypeMX: "mx", dns.TypeTXT: "txt", dns.TypePTR: "ptr",
}

func (q question) error(err, detail error) error {
	return &Error{Name: strings.TrimSuffix(q.name, "."), Type: strings.ToUpper(typeNames[q.typ]), Err: err, Detail: detail}
}

func clean(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// validName takes what can be asked: ASCII without blanks and escapes, labels of 63 octets, 254 in all.
func validName(fqdn string) bool {
	_, ok := dns.IsDomainName(fqdn)
	return ok && len(fqdn) <= 254 && strings.IndexFunc(fqdn, func(c rune) bool { return c <= ' ' || c > '~' || c == '\\' }) < 0 &&
		fqdn != "." && !strings.HasPrefix(fqdn, ".")
}

// isHost takes what may be an exchanger: a name, not an address (RFC 5321 section 5.1).
func isHost(name string) bool {
	if !validName(dns.Fqdn(name)) {
		return false
	}
	_, err := netip.ParseAddr(name)
	return err != nil
}
