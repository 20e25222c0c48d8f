package delivery

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"relayd/internal/mail"
	"relayd/internal/resolver"
	"relayd/spool"
)

// connect gives the attempt a session, or says in the report why there is none.
func (a *Attempt) connect(ctx context.Context, rep *Report, envs []*spool.Envelope) bool {
	var refused *route
	var err error
	a.session, refused, err = a.open(ctx)
	switch {
	case err == nil && refused == nil:
		a.opened()
		return true
	case refused != nil:
		for _, e := range envs {
			a.finish(rep, e, refused.refusal.result(e), "")
		}
		return false
	}
	f := faultOf(err)
	if f.kind == faultLocal {
		rep.again = envs
		return false
	}
	host := a.route.name
	if h, ok := errors.AsType[*hostError](err); ok {
		host = h.host
	}
	if f.kind == faultPromise {
		for _, e := range envs {
			a.finish(rep, e, spool.Result{ID: e.ID, Outcome: spool.Failed, Reply: f.reply, Reason: reasonTLS}, host)
		}
		return false
	}
	if f.kind == faultSelf && a.route.smart == nil {
		for _, e := range envs {
			a.finish(rep, e, loops().refusal.result(e), host)
		}
		return false
	}
	p := &pause{cause: causeUnreachable, reply: f.reply, host: host, phase: PhaseConnect, err: err}
	switch {
	case f.kind == faultAuth:
		p.cause = causeAuth
	case f.kind == faultReply && a.route.smart == nil && a.classifier().Classify(f.reply, PhaseConnect).Action == ActionBounce:
		for _, e := range envs {
			a.finish(rep, e, spool.Result{ID: e.ID, Outcome: spool.Bounced, Presented: true, Reply: f.reply}, host)
		}
		return false
	case f.kind == faultReply:
		p.cause = causeThrottled
	}
	if p.reply.IsZero() {
		p.reply = mail.Reply{Code: 451, Status: mail.Status{Class: 4, Subject: 4, Detail: 1}, Text: "No host answered: " + publicError(err)}
		switch {
		case f.kind == faultSelf: // a wrong configuration, or a filter beside us that says our name: no mail is to blame
			p.reply.Status, p.reply.Text = mail.Status{Class: 4, Subject: 4, Detail: 6}, "The smarthost answers with our own name"
		case f.kind == faultTLS: // RFC 3463 section 3.8: X.7.5 is about the cryptography
			p.reply.Status, p.reply.Text = mail.Status{Class: 4, Subject: 7, Detail: 5}, "No host offered the TLS that is required"
		case errors.Is(err, resolver.ErrTemporary): // section 3.5: X.4.3 is about name servers
			p.reply.Status.Detail, p.reply.Text = 3, "Name servers of the hosts could not be asked"
		}
	}
	rep.again, rep.suspend = envs, p
	return false
}

// hostError says which host a fault is about.
type hostError struct {
	host string
	err  error
}

func (h *hostError) Error() string { return h.host + ": " + h.err.Error() }
func (h *hostError) Unwrap() error { return h.err }

// open goes through the addresses of the route, in rounds. Among the faults of a round the one that leaves most hope
// is returned: one temporary host is enough to keep the mail.
func (a *Attempt) open(ctx context.Context) (*Session, *route, error) {
	var worst error
	for try := range a.tries {
		if try > 0 {
			if err := a.wait(ctx, time.Second<<(try-1)); err != nil {
				return nil, nil, &fault{kind: faultLocal, err: err}
			}
		}
		targets, refused, err := a.book.targets(ctx, a.route, orderOf(a.bundle.message, a.bundle.envs[0].Attempts))
		switch {
		case refused != nil:
			return nil, refused, nil
		case err != nil:
			if ctx.Err() != nil {
				return nil, nil, &fault{kind: faultLocal, err: err}
			}
			return nil, nil, &fault{kind: faultConn, err: err}
		}
		again := false
		worst = nil
		for _, t := range targets {
			s, err := a.opener.open(ctx, t)
			if err == nil {
				if err = a.promises(s); err == nil {
					return s, nil, nil
				}
				s.Close()
			}
			f := faultOf(err)
			if f.kind == faultLocal {
				return nil, nil, err
			}
			a.metrics.connects.WithLabelValues(connectResult(f)).Inc()
			of := a.opener.origin(t)
			if f.kind == faultReply && a.blames(of, t.host+"["+t.addr.Addr().String()+"]", f.reply, a.classifier().Classify(f.reply, PhaseConnect)) {
				again = true
			}
			if f.kind == faultConn {
				a.book.dead.add(t.addr.Addr().String(), a.now().Add(deadFor))
			}
			again = again || f.kind == faultConn && !isTimeout(err)
			if worst == nil || hope(f) > hope(faultOf(worst)) {
				worst = &hostError{t.host + "[" + t.addr.Addr().String() + "]", err}
			}
		}
		if !again {
			break
		}
	}
	return nil, nil, worst
}

// promises tells whether the host keeps what REQUIRETLS asks for, where the message has it: each host of the domain is asked
// (RFC 8689 section 4.2.1).
func (a *Attempt) promises(s *Session) error {
	if !a.bundle.message.RequireTLS {
		return nil
	}
	if reply, ok := s.keepsTLS(); !ok {
		return &fault{kind: faultPromise, reply: reply}
	}
	return nil
}

// hope orders faults by the chance that another try helps.
func hope(f *fault) int {
	switch {
	case f.kind == faultPromise: // no host is left that may keep it (RFC 8689 section 4.2.1)
		return 5
	case f.kind == faultReply && f.reply.Temporary():
		return 4
	case f.kind == faultAuth: // must be heard of
		return 3
	case f.kind == faultSelf:
		return 0
	case f.kind == faultReply:
		return 1
	}
	return 2
}

func connectResult(f *fault) string {
	switch f.kind {
	case faultTLS:
		return "tls"
	case faultReply:
		return "reply"
	case faultAuth:
		return "auth"
	case faultProtocol, faultSelf, faultPromise:
		return "protocol"
	}
	if isTimeout(f.err) {
		return "timeout"
	}
	return "refused"
}

func isTimeout(err error) bool {
	n, ok := errors.AsType[net.Error](err)
	return ok && n.Timeout()
}

// isBroken tells a connection that broke, or went silent, from one whose other side said why it ends.
func isBroken(err error) bool {
	return isTimeout(err) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func faultOf(err error) *fault {
	if f, ok := errors.AsType[*fault](err); ok {
		return f
	}
	return &fault{kind: faultConn, err: err}
}

// publicError is what a reply of ours may tell of a fault: no addresses of ours, no system texts beyond the cause.
func publicError(err error) string {
	f := faultOf(err)
	switch {
	case f.kind == faultTLS:
		return "TLS failed"
	case f.kind == faultProtocol:
		return "bad reply"
	case isTimeout(err):
		return "timed out"
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return "closed by the host"
	case f.kind == faultReply:
		return f.reply.Text
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return mail.CleanText(op.Err.Error(), 100)
	}
	return "connection trouble"
}
