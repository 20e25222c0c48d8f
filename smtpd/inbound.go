package smtpd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"relayd/internal/intake"
	"relayd/internal/mail"
)

var errNoAuth = refuse(503, 5, 1, "AUTH is not offered here")

// inboundPolicy takes mail for addresses that relayd has issued: return paths, complaint and unsubscribe mailboxes. It
// relays nothing.
type inboundPolicy struct {
	srv  *Server
	deps *InboundDeps // nil: every recipient is refused
}

func (inboundPolicy) mayAuth(*session) *mail.Error { return errNoAuth }

func (inboundPolicy) beforeMail(*session) *mail.Error { return nil }

func (inboundPolicy) mayMail(*session, mailArgs) *mail.Error { return nil }

func (p inboundPolicy) mayRcpt(_ *session, r rcptArgs) *mail.Error {
	_, err := p.deps.mailbox(r.to, p.srv.deps.Hostname, p.srv.deps.Now())
	return err
}

// inboundAccepter is the Accepter of inbound listeners.
type inboundAccepter struct {
	srv  *Server
	deps *InboundDeps
	held holding
}

// How many of the largest messages may be held at once, in all and of one source: nobody alone keeps bounces out.
const (
	inboundShare = 16
	sourceShare  = 4
	leastHeld    = 16 << 10 // octets that a message takes at first
)

// Accept reads the message, judges who sent it, and hands it over.
func (a *inboundAccepter) Accept(ctx context.Context, s *intake.Submission) (mail.QueueID, error) {
	now := a.srv.deps.Now()
	in := &InboundMail{ID: mail.NewQueueID(now), From: s.ReversePath, RequireTLS: s.RequireTLS, Trace: s.Trace}
	for _, to := range s.Recipients {
		r, err := a.deps.mailbox(to.To, a.srv.deps.Hostname, now)
		if err != nil {
			return in.ID, err
		}
		if !slices.ContainsFunc(in.Recipients, r.isOne) { // what follows from a message follows from it once
			in.Recipients = append(in.Recipients, r)
		}
	}
	ip, err := netip.ParseAddr(s.Trace.ClientIP)
	if err != nil {
		return in.ID, fmt.Errorf("accept inbound message: %w", err)
	}
	in.Source = sourceOf(ip)
	held := &memory{accepter: a, source: in.Source}
	defer held.free()
	if _, err := io.Copy(held, s.Body); err != nil {
		return in.ID, err
	}
	in.Size = int64(len(held.b))
	fields, body := splitMessage(held.b)
	if countFields(fields, "Received") > intake.DefaultConfig().MaxHops {
		return in.ID, refuse(554, 4, 6, "Too many hops: this message is in a loop")
	}
	in.Auth = judge(ctx, a.deps.Resolver, sender{ip: ip, helo: s.Trace.Helo, from: s.ReversePath}, held.b, fields)
	message := a.trace(in, fields, body)
	held.b = nil // one copy is enough
	in.Message, in.Size = bytes.NewReader(message), int64(len(message))
	if err := a.deps.Handler.HandleInbound(ctx, in); err != nil {
		if isRefusal(err) {
			return in.ID, err
		}
		return in.ID, fmt.Errorf("handle inbound message %s: %w", in.ID, err)
	}
	return in.ID, nil
}

// trace writes the message with our findings before it. Those that others wrote in our name go (RFC 8601 section 5).
func (a *inboundAccepter) trace(in *InboundMail, fields [][]byte, body []byte) []byte {
	host := a.srv.deps.Hostname
	var b bytes.Buffer
	b.Grow(int(in.Size) + 4096)
	fmt.Fprintf(&b, "Return-Path: <%s>\r\n", in.From)
	fmt.Fprintf(&b, "Authentication-Results: %s\r\n", in.Auth.format(host))
	literal := in.Trace.ClientIP
	if strings.Contains(literal, ":") {
		literal = "IPv6:" + literal
	}
	fmt.Fprintf(&b, "Received: from %s ([%s])\r\n\tby %s (relayd) with %s id %s;\r\n\t%s\r\n",
		in.Trace.Helo, literal, host, in.Trace.With, in.ID, in.Trace.At.UTC().Format("Mon, 02 Jan 2006 15:04:05 -0700"))
	for _, f := range fields {
		if !claimsHost(f, host) {
			b.Write(f)
		}
	}
	b.WriteString("\r\n")
	b.Write(body)
	return b.Bytes()
}

// claimsHost tells an Authentication-Results field that says it is ours, or of which nobody can tell whose it is.
func claimsHost(field []byte, host string) bool {
	name, value, _ := bytes.Cut(field, []byte{':'})
	if !strings.EqualFold(string(bytes.TrimSpace(name)), "Authentication-Results") {
		return false
	}
	id, _, _ := strings.Cut(unfolded(value), ";")
	words := strings.Fields(id)
	return len(words) == 0 || strings.EqualFold(strings.Trim(words[0], `"`), host) || strings.ContainsAny(id, `("\`)
}

// splitMessage returns the header's fields, each with its folding and line end, and the body.
func splitMessage(b []byte) (fields [][]byte, body []byte) {
	start := 0
	for at := 0; at < len(b); {
		n := bytes.Index(b[at:], []byte("\r\n"))
		if n < 0 {
			n = len(b) - at - 2
		}
		if n == 0 {
			if at > start {
				fields = append(fields, b[start:at])
			}
			return fields, b[at+2:]
		}
		if at > start && b[at] != ' ' && b[at] != '\t' {
			fields = append(fields, b[start:at])
			start = at
		}
		at += n + 2
	}
	if start < len(b) {
		fields = append(fields, b[start:])
	}
	return fields, nil
}

func fieldValues(fields [][]byte, name string) (values []string) {
	for _, f := range fields {
		n, v, found := bytes.Cut(f, []byte{':'})
		if found && strings.EqualFold(string(bytes.TrimSpace(n)), name) {
			values = append(values, unfolded(v))
		}
	}
	return values
}

func countFields(fields [][]byte, name string) int { return len(fieldValues(fields, name)) }

func unfolded(b []byte) string {
	return strings.TrimSpace(strings.NewReplacer("\r", "", "\n", "").Replace(string(b)))
}

// maxInboundHeader bounds the header section of one inbound message, in octets: it is taken apart into its fields, which
// costs many times its length.
const maxInboundHeader = 256 << 10

var errInboundHeader = mail.Refuse(552, mail.Status{Class: 5, Subject: 3, Detail: 4}, "The message's header has more than 256 KiB", nil)

// headerFits tells whether the header section ends within its bound, as far as the message has been read.
func headerFits(b []byte) bool {
	return len(b) <= maxInboundHeader || bytes.HasPrefix(b, []byte("\r\n")) || bytes.Contains(b[:maxInboundHeader], []byte("\r\n\r\n"))
}

// memory holds one message, within the bounds of one, of its source and of all together.
type memory struct {
	accepter *inboundAccepter
	source   netip.Prefix
	b        []byte
	reserved int64
}

// Write implements io.Writer. A header section that is too large is refused as soon as it can be told.
func (m *memory) Write(p []byte) (int, error) {
	had := len(m.b)
	if need := int64(had + len(p)); need > m.reserved {
		most := m.accepter.srv.cfg.MaxInboundBytes
		more := max(need-m.reserved, min(m.reserved, most-m.reserved), leastHeld)
		if !m.accepter.held.take(m.source, more, most) {
			return 0, errInboundFull
		}
		m.reserved += more
		m.b = append(make([]byte, 0, m.reserved), m.b...)
	}
	if m.b = append(m.b, p...); had <= maxInboundHeader && !headerFits(m.b) {
		return 0, errInboundHeader
	}
	return len(p), nil
}

func (m *memory) free() { m.accepter.held.free(m.source, m.reserved) }

// holding counts the octets of the messages that are held, in all and by source.
type holding struct {
	mu     sync.Mutex
	all    int64
	source map[netip.Prefix]int64
}

// take counts n more where the largest message has most octets; false when they are too many.
func (h *holding) take(p netip.Prefix, n, most int64) bool {
	most = max(most, leastHeld)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all+n > inboundShare*most || h.source[p]+n > sourceShare*most {
		return false
	}
	h.all += n
	h.source[p] += n
	return true
}

func (h *holding) free(p netip.Prefix, n int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all -= n
	if h.source[p] -= n; h.source[p] <= 0 {
		delete(h.source, p)
	}
}
