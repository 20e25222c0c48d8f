package resolver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	udpSize    = 1232     // what we take by UDP, so that answers are not fragmented (DNS flag day 2020)
	tcpSize    = 16 << 10 // and by TCP, hundreds of records: many answers of 64 KiB at a time would take much memory
	maxIgnored = 100      // datagrams that are not our answer; then the server counts as silent
	rounds     = 2        // how often each server is asked
	suspension = 30 * time.Second
)

// server is one resolver to ask.
type server struct {
	addr     netip.AddrPort
	resumes  atomic.Int64 // Unix nanoseconds until which it is asked last, after it did not answer
	answered atomic.Int64 // Unix nanoseconds of its last answer to any question
}

// exchange asks the servers in turn until one gives an answer that says something about the name: NOERROR or NXDOMAIN.
func (r *Resolver) exchange(ctx context.Context, q question) (*dns.Msg, error) {
	var errs []error
	var failed []*server // said that they do not know
	for range rounds {
		for _, s := range r.order() {
			asked := r.now().UnixNano()
			m, err := r.askServer(ctx, s, q)
			_, said := errors.AsType[*saidError](err)
			until := r.now().Add(suspension).UnixNano()
			switch {
			case err == nil:
				s.answered.Store(r.now().UnixNano())
				s.resumes.Store(0)
				for _, f := range failed { // it was not the name's fault
					f.resumes.Store(until)
				}
				return m, nil
			case ctx.Err() != nil:
				return nil, ctx.Err()
			case said:
				s.answered.Store(r.now().UnixNano())
				failed = append(failed, s)
			case s.answered.Load() < asked: // else the name is at fault, and its owner must not say whom we ask first
				s.resumes.Store(until)
			}
			if len(errs) < len(r.servers) { // the second round says the same
				errs = append(errs, fmt.Errorf("server %s: %w", s.addr, err))
			}
		}
	}
	return nil, errors.Join(errs...)
}

// order returns the servers as configured, those that did not answer lately last.
func (r *Resolver) order() []*server {
	now := r.now().UnixNano()
	good, bad := make([]*server, 0, len(r.servers)), []*server(nil)
	for _, s := range r.servers {
		if s.resumes.Load() > now {
			bad = append(bad, s)
		} else {
			good = append(good, s)
		}
	}
	return append(good, bad...)
}

// askServer asks by UDP and, when the answer does not fit, by TCP.
func (r *Resolver) askServer(ctx context.Context, s *server, q question) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	m, err := r.ask(ctx, "udp", s, q, true)
	if err == nil && m.Truncated {
		m, err = r.ask(ctx, "tcp", s, q, true)
	}
	if err == nil && (m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented) {
		// A server that knows no EDNS0 (RFC 6891 section 7).
		if m, err = r.ask(ctx, "udp", s, q, false); err == nil && m.Truncated {
			m, err = r.ask(ctx, "tcp", s, q, false)
		}
	}
	if err != nil {
		return nil, err
	}
	switch {
	case m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError:
		return nil, &saidError{rcodeName(m.Rcode)}
	case m.Truncated:
		return nil, &saidError{"answer cut off"}
	case m.Rcode == dns.RcodeSuccess && len(m.Answer) == 0 && !m.Authoritative && !m.RecursionAvailable:
		return nil, &saidError{"server refers to others and does not look up itself"} // not "no such record"
	}
	return m, nil
}

// saidError is an answer of a server that helps nobody.
type saidError struct{ text string }

func (e *saidError) Error() string { return e.text }

func rcodeName(rcode int) string {
	if s, ok := dns.RcodeToString[rcode]; ok {
		return s
	}
	return fmt.Sprintf("response code %d", rcode)
}

// ask sends one question with an identifier and from a port of its own, both random (RFC 5452 section 9.2), and waits for
// its answer.
func (r *Resolver) ask(ctx context.Context, network string, s *server, q question, edns bool) (*dns.Msg, error) {
	m := new(dns.Msg)
	m.SetQuestion(q.name, q.typ) // draws the identifier from crypto/rand
	if edns {
		m.SetEdns0(udpSize, false)
	}
	packed, err := m.Pack()
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, s.addr.String()) // a connected socket takes datagrams of that server only
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// An ended context ends a read or write under way.
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // the socket is closing then
	defer stop()
	if network == "tcp" {
		packed = append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...)
	}
	if _, err := conn.Write(packed); err != nil {
		return nil, orContext(ctx, err)
	}
	buf := r.buffers.Get().(*[]byte)
	defer r.buffers.Put(buf)
	for range maxIgnored {
		b, err := read(conn, network, *buf)
		if err != nil {
			return nil, orContext(ctx, err)
		}
		answer, err := r.unpack(network, b)
		if err == nil && answers(answer, m) {
			return answer, nil
		} else if err != nil && network == "udp" && len(b) >= 12 && binary.BigEndian.Uint16(b) == m.Id && b[2]&0x80 != 0 &&
			(b[2]&0x02 != 0 || len(b) == len(*buf)) {
			return &dns.Msg{MsgHdr: dns.MsgHdr{Truncated: true}}, nil // cut in the middle of a record, by the server or by our buffer
		}
		r.metrics.mismatch.Inc()
		if network == "tcp" {
			return nil, errors.New("answer to another question")
		}
	}
	return nil, errors.New("too many answers to other questions")
}

// read returns the next answer, by UDP in buf.
func read(conn net.Conn, network string, buf []byte) ([]byte, error) {
	if network != "tcp" {
		n, err := conn.Read(buf)
		return buf[:n], err
	}
	if _, err := io.ReadFull(conn, buf[:2]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(buf))
	if n > tcpSize {
		return nil, &saidError{fmt.Sprintf("answer of %d octets is too large", n)}
	}
	b := make([]byte, n)
	_, err := io.ReadFull(conn, b)
	return b, err
}

// unpack parses an answer, few at a time of those by TCP: parsed it takes many times its size.
func (r *Resolver) unpack(network string, b []byte) (*dns.Msg, error) {
	if network == "tcp" {
		r.parsing <- struct{}{}
		defer func() { <-r.parsing }()
	}
	m := new(dns.Msg)
	return m, m.Unpack(b)
}

// answers tells whether a is the answer to q: RFC 5452 section 9.1.
func answers(a, q *dns.Msg) bool {
	return a.Response && a.Id == q.Id && a.Opcode == dns.OpcodeQuery && len(a.Question) == 1 &&
		a.Question[0].Qtype == q.Question[0].Qtype && a.Question[0].Qclass == q.Question[0].Qclass &&
		strings.EqualFold(a.Question[0].Name, q.Question[0].Name)
}

func orContext(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return errors.New("no answer in time")
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
