package smtpd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

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
	held := &memory{holding: &a.held, source: in.Source, most: a.srv.cfg.MaxInboundBytes}
	defer held.free()
	if _, err := io.Copy(held, s.Body); err != nil {
		return in.ID, err
	}
	fields, body := splitMessage(held.head)
	if countFields(fields, "Received") > intake.DefaultConfig().MaxHops {
		return in.ID, refuse(554, 4, 6, "Too many hops: this message is in a loop")
	}
	in.Auth = judge(ctx, a.deps.Resolver, sender{ip: ip, helo: s.Trace.Helo, from: s.ReversePath}, held.message(held.head), fields)
	message := held.message(a.trace(in, fields), body)
	in.Message, in.Size = message, message.Size()
	if err := a.deps.Handler.HandleInbound(ctx, in); err != nil {
		if isRefusal(err) {
			return in.ID, err
		}
		return in.ID, fmt.Errorf("handle inbound message %s: %w", in.ID, err)
	}
	return in.ID, nil
}

// trace writes the header with our findings before it, and the empty line that ends it. What others wrote in our name goes
// (RFC 8601 section 5).
func (a *inboundAccepter) trace(in *InboundMail, fields [][]byte) []byte {
	host := a.srv.deps.Hostname
	var b bytes.Buffer
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
