// Package resolvertest has a DNS server for tests and demonstrations, and a resolver that is a struct of maps.
package resolvertest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Server is an authoritative DNS server for some zones on a loopback address, by UDP and TCP on the same port. What it
// does not know is NXDOMAIN, so that nothing leaks into the real DNS. Wildcards ("*.example") work, aliases are followed
// within what it knows. It is safe for concurrent use.
type Server struct {
	Addr string // 127.0.0.1:port

	udp, tcp *dns.Server
	closed   chan struct{}
	closing  sync.Once
	serving  sync.WaitGroup

	mu      sync.Mutex
	records map[string][]dns.RR // by name, lower case with final dot
	apexes  []string
	rcodes  map[string]int
	delays  map[string]time.Duration
	counts  map[dns.Question]int
}

const defaultTTL = 60

// NewServer starts a server. Zones are keyed by their apex; records are RFC 1035 lines whose relative names are relative
// to it, "@" being the apex itself: {"shop.example": {"@ MX 10 mx", "mx A 127.0.0.1", `@ TXT "v=spf1 -all"`}}. TTLs are
// 60 s unless a line says otherwise. Close it.
func NewServer(zones map[string][]string) (*Server, error) {
	s := &Server{
		closed: make(chan struct{}), records: map[string][]dns.RR{}, rcodes: map[string]int{},
		delays: map[string]time.Duration{}, counts: map[dns.Question]int{},
	}
	for apex, lines := range zones {
		if err := s.addZone(apex, lines); err != nil {
			return nil, err
		}
	}
	tcp, udp, err := listen()
	if err != nil {
		return nil, fmt.Errorf("start DNS server: %w", err)
	}
	s.Addr = tcp.Addr().String()
	s.tcp = &dns.Server{Listener: tcp, Handler: dns.HandlerFunc(s.serve), MsgAcceptFunc: dns.DefaultMsgAcceptFunc}
	s.udp = &dns.Server{PacketConn: udp, Handler: dns.HandlerFunc(s.serve), MsgAcceptFunc: dns.DefaultMsgAcceptFunc}
	for _, srv := range []*dns.Server{s.tcp, s.udp} {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		ended := make(chan error, 1)
		s.serving.Go(func() { ended <- srv.ActivateAndServe() })
		select {
		case <-started:
		case err := <-ended:
			return nil, errors.Join(fmt.Errorf("start DNS server: %w", err), s.Close())
		}
	}
	return s, nil
}

// listen finds a port that is free for both.
func listen() (net.Listener, net.PacketConn, error) {
	var last error
	for range 20 {
		tcp, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return nil, nil, err
		}
		udp, err := net.ListenPacket("udp4", tcp.Addr().String())
		if err == nil {
			return tcp, udp, nil
		}
		last = errors.Join(err, tcp.Close())
	}
	return nil, nil, last
}

func (s *Server) addZone(apex string, lines []string) error {
	apex = dns.CanonicalName(apex)
	text := fmt.Sprintf("$ORIGIN %s\n$TTL %d\n%s\n", apex, defaultTTL, strings.Join(lines, "\n"))
	p := dns.NewZoneParser(strings.NewReader(text), apex, "")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.apexes = append(s.apexes, apex)
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		s.add(rr)
	}
	if err := p.Err(); err != nil {
		return fmt.Errorf("parse zone %s: %w", apex, err)
	}
	return nil
}

func (s *Server) add(rr dns.RR) {
	name := dns.CanonicalName(rr.Header().Name)
	s.records[name] = append(s.records[name], rr)
}

// Add adds a record, an RFC 1035 line with a full name such as "mx.shop.example A 127.0.0.1".
func (s *Server) Add(line string) error {
	p := dns.NewZoneParser(strings.NewReader(fmt.Sprintf("$TTL %d\n%s\n", defaultTTL, line)), ".", "")
	rr, ok := p.Next()
	if err := p.Err(); err != nil {
		return fmt.Errorf("add record: %w", err)
	}
	if !ok {
		return errors.New("add record: none in the line")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(rr)
	return nil
}

// Remove takes all records of a name away.
func (s *Server) Remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.records, dns.CanonicalName(name))
}

// SetRcode makes every query for a name, or for a name and a type as in "shop.example MX", end in that response code (2 is
// SERVFAIL, 3 NXDOMAIN, 5 REFUSED); 0 ends it.
func (s *Server) SetRcode(name string, rcode int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name, typ, _ := strings.Cut(name, " ")
	s.rcodes[dns.CanonicalName(name)+typ] = rcode
}

// SetDelay answers queries for a name late; a negative delay never answers. 0 ends it.
func (s *Server) SetDelay(name string, d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delays[dns.CanonicalName(name)] = d
}

// Queries counts the queries so far for a name ("" for all) and a type such as "MX" ("" for all).
func (s *Server) Queries(name, typ string) int {
	if name != "" {
		name = dns.CanonicalName(name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for q, count := range s.counts {
		if (name == "" || q.Name == name) && (typ == "" || dns.TypeToString[q.Qtype] == strings.ToUpper(typ)) {
			n += count
		}
	}
	return n
}

// Close stops the server and waits for its goroutines. It may be called again.
func (s *Server) Close() error {
	var errs []error
	s.closing.Do(func() {
		close(s.closed)
		for _, srv := range []*dns.Server{s.tcp, s.udp} {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			if err := srv.ShutdownContext(ctx); err != nil && !strings.Contains(err.Error(), "not started") {
				errs = append(errs, fmt.Errorf("stop DNS server: %w", err))
			}
			cancel()
		}
		errs = append(errs, s.tcp.Listener.Close(), s.udp.PacketConn.Close())
		errs = slices.DeleteFunc(errs, func(err error) bool { return errors.Is(err, net.ErrClosed) })
		s.serving.Wait()
	})
	return errors.Join(errs...)
}

func (s *Server) serve(w dns.ResponseWriter, query *dns.Msg) {
	q := query.Question[0]
	q.Name = dns.CanonicalName(q.Name)
	s.mu.Lock()
	s.counts[q]++
	delay := s.delays[q.Name]
	reply := s.reply(query, q)
	s.mu.Unlock()
	if delay < 0 {
		return
	}
	if delay > 0 {
		t := time.NewTimer(delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-s.closed:
			return
		}
	}
	size := dns.MaxMsgSize
	if w.RemoteAddr().Network() == "udp" {
		size = dns.MinMsgSize
		if opt := query.IsEdns0(); opt != nil {
			size = max(size, int(opt.UDPSize()))
		}
	}
	if opt := query.IsEdns0(); opt != nil {
		reply.SetEdns0(1232, false)
	}
	reply.Truncate(size)
	_ = w.WriteMsg(reply) // a querier that is gone is no fault of ours
}

// reply answers from the records.
func (s *Server) reply(query *dns.Msg, q dns.Question) *dns.Msg {
	reply := new(dns.Msg).SetReply(query)
	reply.Authoritative, reply.RecursionAvailable = true, true
	if rcode := cmp.Or(s.rcodes[q.Name], s.rcodes[q.Name+dns.TypeToString[q.Qtype]]); rcode != 0 {
		reply.Rcode = rcode
		return reply
	}
	name := q.Name
	for range 16 {
		records, exists := s.at(name)
		alias := ""
		matched := false
		for _, rr := range records {
			if t := rr.Header().Rrtype; t == q.Qtype || q.Qtype == dns.TypeANY {
				reply.Answer = append(reply.Answer, rr)
				matched = true
			} else if c, ok := rr.(*dns.CNAME); ok {
				reply.Answer = append(reply.Answer, rr)
				alias = dns.CanonicalName(c.Target)
			}
		}
		if matched {
			return reply
		}
		if alias == "" {
			if !exists {
				reply.Rcode = dns.RcodeNameError
			}
			reply.Ns = []dns.RR{s.soa(name)}
			return reply
		}
		name = alias
	}
	return reply
}

// at returns the records of a name, those of a wildcard in its place if need be, and whether the name exists: a name above
// an existing one does as well (RFC 4592 section 2.2.2).
func (s *Server) at(name string) (records []dns.RR, exists bool) {
	if r, ok := s.records[name]; ok {
		return r, true
	}
	for other := range s.records {
		if strings.HasSuffix(other, "."+name) {
			return nil, true
		}
	}
	if slices.Contains(s.apexes, name) {
		return nil, true
	}
	for parent := name; ; {
		_, rest, ok := strings.Cut(parent, ".")
		if !ok || rest == "" {
			return nil, false
		}
		if wild, ok := s.records["*."+rest]; ok {
			for _, rr := range wild {
				rr = dns.Copy(rr)
				rr.Header().Name = name
				records = append(records, rr)
			}
			return records, true
		}
		parent = rest
	}
}

// soa returns the SOA record of the zone that a name is in.
func (s *Server) soa(name string) dns.RR {
	apex := "."
	for _, a := range s.apexes {
		if dns.IsSubDomain(a, name) && len(a) > len(apex) {
			apex = a
		}
	}
	for _, rr := range s.records[apex] {
		if rr.Header().Rrtype == dns.TypeSOA {
			return rr
		}
	}
	return &dns.SOA{
		Hdr: dns.RR_Header{Name: apex, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: defaultTTL},
		Ns:  "ns.invalid.", Mbox: "hostmaster.invalid.", Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: defaultTTL,
	}
}
