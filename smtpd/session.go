package smtpd

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"relayd/internal/account"
	"relayd/internal/intake"
	"relayd/internal/mail"
	"relayd/spool"
)

var (
	errHelloFirst = refuse(503, 5, 1, "Say EHLO first")
	errMailFirst  = refuse(503, 5, 1, "Say MAIL first")
	errNoArgument = refuse(501, 5, 4, "This command has no argument")
	errOutOfSync  = refuse(554, 5, 0, "Protocol synchronization: wait for the reply")
	errShutdown   = refuse(421, 3, 2, "Server is shutting down, please come back later")
)

// session is one connection. All of it runs in one goroutine.
type session struct {
	srv    *Server
	lis    *listener
	id     string
	ip     netip.Addr
	source netip.Prefix
	raw    net.Conn
	wire   *wire

	helo  string // "" before EHLO
	esmtp bool
	tls   string              // "TLS1.3 TLS_AES_128_GCM_SHA256", "" for none
	cred  *account.Credential // nil before AUTH
	tx    *transaction        // nil between transactions

	messages, errors, junk, authFailures int

	closing bool
	linger  bool   // the client may still be sending
	reason  string // of the end, for the log
}

// transaction is what MAIL and RCPT gave.
type transaction struct {
	mail  mailArgs
	rcpts []intake.Recipient
}

// run speaks SMTP until the session ends.
func (s *session) run(ctx context.Context) {
	if s.lis.tls == Implicit && !s.handshake(ctx) {
		return
	}
	s.greet()
	for !s.closing {
		if s.tx == nil && s.srv.stopping.Load() {
			s.end(errShutdown, "shutdown")
			return
		}
		stop := &s.srv.stopping
		if s.tx != nil { // a transaction that has begun may end
			stop = nil
		}
		line, err := s.wire.readLine(s.srv.cfg.CommandTimeout, stop)
		switch {
		case err == nil:
			s.command(ctx, line)
		case errors.Is(err, errLineTooLong):
			s.refuse(refuse(500, 5, 2, "Command line is too long"))
		case errors.Is(err, errBareCR):
			s.refuse(refuse(500, 5, 2, "Command has a bare CR"))
		default:
			s.lost(err)
		}
		s.wire.shrink()
	}
}

// greet sends the banner. Who talks before it is no mail client (RFC 5321 section 3.1).
func (s *session) greet() {
	if d := s.srv.cfg.GreetDelay; d > 0 {
		switch err := s.wire.fill(time.Now().Add(d), nil); {
		case err == nil:
			s.end(refuse(554, 5, 0, "Protocol synchronization: wait for the banner"), "early_talker")
			return
		case !errors.Is(err, os.ErrDeadlineExceeded):
			s.lost(err)
			return
		}
	}
	s.wire.write("220 " + s.srv.deps.Hostname + " ESMTP relayd\r\n")
}

// command runs one command.
func (s *session) command(ctx context.Context, line []byte) {
	c, err := parseCommand(line)
	if err != nil {
		s.refuse(err)
		return
	}
	switch c.verb {
	case "EHLO", "HELO":
		s.hello(c)
	case "STARTTLS":
		s.startTLS(ctx, c.arg)
	case "AUTH":
		s.auth(ctx, c.arg)
	case "MAIL":
		s.mail(c.arg)
	case "RCPT":
		s.rcpt(c.arg)
	case "DATA":
		s.data(ctx, c.arg)
	case "RSET":
		if c.arg != "" {
			s.refuse(errNoArgument)
			return
		}
		s.tx = nil
		s.idle(ok(0, 0, "Ok"))
	case "NOOP":
		s.idle(ok(0, 0, "Ok"))
	case "VRFY": // never tells who is here
		s.idle(mail.Reply{Code: 252, Status: mail.Status{Class: 2, Subject: 5}, Text: "Send the message, it may arrive"})
	case "HELP":
		s.idle(mail.Reply{Code: 214, Status: mail.Status{Class: 2}, Text: "See RFC 5321"})
	case "QUIT":
		s.wire.reply(mail.Reply{Code: 221, Status: mail.Status{Class: 2}, Text: "Bye"})
		s.closing, s.reason = true, "quit"
	case "BDAT": // octets of a message follow at once: none of them may be taken for a command
		s.end(refuse(502, 5, 1, "CHUNKING is not offered"), "protocol")
	case "EXPN", "ETRN", "TURN", "SEND", "SOML", "SAML":
		s.refuse(refuse(502, 5, 1, "Command is not implemented"))
	default:
		if c.isHTTP() {
			s.end(refuse(554, 5, 0, "This is an SMTP server"), "http")
			return
		}
		s.refuse(refuse(500, 5, 1, "Command is not known"))
	}
}

// hello answers EHLO and HELO, which also end a transaction (RFC 5321 section 4.1.4).
func (s *session) hello(c command) {
	name, err := parseHello(c.arg)
	if err != nil {
		s.refuse(err)
		return
	}
	if s.outOfSync() {
		return
	}
	s.tx, s.helo, s.esmtp = nil, name, c.verb == "EHLO"
	if !s.countJunk() {
		return
	}
	if !s.esmtp {
		s.wire.write("250 " + s.srv.deps.Hostname + "\r\n")
		return
	}
	s.wire.write("250-" + s.srv.deps.Hostname + "\r\n250-PIPELINING\r\n250-SIZE " +
		strconv.FormatInt(s.srv.cfg.MaxMessageBytes, 10) + "\r\n")
	if s.lis.tls == StartTLS && s.tls == "" {
		s.wire.write("250-STARTTLS\r\n")
	}
	if s.lis.policy.mayAuth(s) == nil {
		s.wire.write("250-AUTH " + mechanisms + "\r\n")
	}
	s.wire.write("250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250 DSN\r\n")
}

// startTLS begins TLS (RFC 3207). All that was said before is forgotten, and what came in plain text behind the command
// is dropped.
func (s *session) startTLS(ctx context.Context, arg string) {
	switch {
	case arg != "":
		s.refuse(errNoArgument)
		return
	case s.tls != "":
		s.refuse(refuse(503, 5, 1, "TLS is active already"))
		return
	case s.lis.tls != StartTLS:
		s.refuse(refuse(502, 5, 1, "TLS is not offered here"))
		return
	}
	s.wire.reply(mail.Reply{Code: 220, Status: mail.Status{Class: 2}, Text: "Ready to start TLS"})
	if err := s.wire.flush(); err != nil {
		s.lost(err)
		return
	}
	s.helo, s.esmtp, s.tx, s.cred = "", false, nil, nil
	s.handshake(ctx)
}

// handshake puts TLS on the wire. When it fails there is nobody to talk to.
func (s *session) handshake(ctx context.Context) bool {
	conn := tls.Server(s.raw, s.srv.tls)
	if dropped := s.wire.upgrade(conn); dropped > 0 {
		s.srv.log.Warn("session.injection", "session", s.id, "ip", s.ip, "size", dropped)
	}
	err := s.raw.SetDeadline(time.Now().Add(s.srv.cfg.HandshakeTimeout))
	if err == nil {
		err = conn.HandshakeContext(ctx)
	}
	if err != nil {
		s.closing, s.reason = true, "tls"
		return false
	}
	state := conn.ConnectionState()
	s.tls = tls.VersionName(state.Version) + " " + tls.CipherSuiteName(state.CipherSuite)
	if len(s.tls) > 4 && s.tls[:4] == "TLS " {
		s.tls = "TLS" + s.tls[4:]
	}
	return true
}

// mail begins a transaction.
func (s *session) mail(arg string) {
	switch {
	case s.helo == "":
		s.refuse(errHelloFirst)
		return
	case s.tx != nil:
		s.refuse(refuse(503, 5, 1, "A transaction is open: DATA or RSET ends it"))
		return
	case s.messages >= s.srv.cfg.MaxMessagesPerSession:
		s.end(refuse(421, 7, 0, "Too many messages in one session"), "messages")
		return
	}
	if err := s.lis.policy.beforeMail(s); err != nil { // no parsing for strangers
		s.refuse(err)
		return
	}
	m, err := parseMail(arg)
	if err == nil && m.size > s.srv.cfg.MaxMessageBytes {
		err = errDataTooLong
	}
	if err == nil {
		err = s.lis.policy.mayMail(s, m)
	}
	if err != nil {
		s.refuse(err)
		return
	}
	s.tx = &transaction{mail: m}
	s.wire.reply(ok(1, 0, "Ok"))
}

// rcpt adds a recipient to the transaction.
func (s *session) rcpt(arg string) {
	if s.tx == nil {
		s.refuse(errMailFirst)
		return
	}
	r, err := parseRcpt(arg)
	if err == nil {
		err = s.lis.policy.mayRcpt(s, r)
	}
	if err != nil {
		s.refuse(err)
		return
	}
	if len(s.tx.rcpts) >= s.srv.cfg.MaxRecipients { // RFC 5321 section 4.5.3.1.10; no error of the client's
		s.wire.reply(mail.Reply{Code: 452, Status: mail.Status{Class: 4, Subject: 5, Detail: 3}, Text: "Too many recipients"})
		return
	}
	s.tx.rcpts = append(s.tx.rcpts, intake.Recipient{To: r.to, Notify: r.notify, ORCPT: r.orcpt})
	s.wire.reply(ok(1, 5, "Ok"))
}

// data takes one message. Whatever becomes of it, its end is found before the next command is read.
func (s *session) data(ctx context.Context, arg string) {
	switch {
	case arg != "":
		s.refuse(errNoArgument)
		return
	case s.tx == nil:
		s.refuse(errMailFirst)
		return
	case len(s.tx.rcpts) == 0:
		s.refuse(refuse(554, 5, 1, "No valid recipients"))
		return
	}
	if s.outOfSync() {
		return
	}
	s.wire.write("354 End data with <CR><LF>.<CR><LF>\r\n")
	tx := s.tx
	s.tx = nil
	s.messages++
	d := newDataReader(s.wire, &s.srv.cfg)
	sub := s.submission(tx, d)
	began := time.Now()
	id, err := s.accept(ctx, sub, d)
	lost := d.drain()
	if refusal := d.refusal(); refusal != nil {
		err = refusal
	}
	s.srv.metrics.accept.Observe(time.Since(began).Seconds())
	if lost != nil {
		s.logMessage(sub, d.size, mail.QueueID{}, lost)
		s.lost(lost)
		return
	}
	s.logMessage(sub, d.size, id, err)
	if err != nil {
		s.wire.reply(replyOf(err))
		return
	}
	s.errors, s.junk = 0, 0
	s.wire.reply(ok(0, 0, "Ok: queued as "+id.String()))
}

// submission describes the message to the door.
func (s *session) submission(tx *transaction, body io.Reader) *intake.Submission {
	sub := &intake.Submission{
		Class:       spool.Transactional,
		ReversePath: tx.mail.from,
		Recipients:  tx.rcpts,
		EnvelopeID:  tx.mail.envID,
		RetHeaders:  tx.mail.retHeaders,
		Trace:       intake.Trace{Helo: s.helo, ClientIP: s.ip.String(), With: "SMTP", TLS: s.tls, At: s.srv.deps.Now()},
		Body:        body,
	}
	if s.esmtp { // RFC 3848
		sub.Trace.With = "ESMTP"
		if s.tls != "" {
			sub.Trace.With += "S"
		}
		if s.cred != nil {
			sub.Trace.With += "A"
		}
	}
	if s.cred != nil {
		sub.Account, sub.Credential = s.cred.Account, s.cred.Username
		if len(s.cred.Domains) > 0 {
			sub.Domains = s.cred.Domains
		}
	}
	return sub
}

// accept hands the message over. Reading it has the wire's deadlines; what comes behind its end has AcceptTimeout.
func (s *session) accept(ctx context.Context, sub *intake.Submission, d *dataReader) (mail.QueueID, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var timer *time.Timer
	d.atEnd = func() { timer = time.AfterFunc(s.srv.cfg.AcceptTimeout, cancel) }
	id, err := s.lis.accept.Accept(ctx, sub)
	d.atEnd = nil
	if timer != nil {
		timer.Stop()
	}
	return id, err
}

func (s *session) logMessage(sub *intake.Submission, size int64, id mail.QueueID, err error) {
	attrs := []any{
		"session", s.id, "from", sub.ReversePath.String(), "count", len(sub.Recipients), "size", size,
		"account", sub.Account, "ip", s.ip,
	}
	if err == nil {
		s.srv.metrics.bytes.Add(float64(size))
		s.srv.metrics.messages.WithLabelValues(s.lis.kind, "accepted").Inc()
		s.srv.log.Info("message.accepted", append(attrs, "queue_id", id.String())...)
		return
	}
	r := replyOf(err)
	attrs = append(attrs, "code", r.Code, "status", r.Status.String(), "err", err)
	if r.Temporary() {
		s.srv.metrics.messages.WithLabelValues(s.lis.kind, "deferred").Inc()
		s.srv.log.Info("message.deferred", attrs...)
		return
	}
	s.srv.metrics.messages.WithLabelValues(s.lis.kind, "refused").Inc()
	s.srv.log.Info("message.refused", attrs...)
}

// outOfSync ends the session of a client that pipelined behind a command whose reply it must wait for (RFC 2920
// section 3.1).
func (s *session) outOfSync() bool {
	if len(s.wire.unread()) == 0 {
		return false
	}
	s.end(errOutOfSync, "synchronization")
	return true
}

// idle answers a command that does nothing.
func (s *session) idle(r mail.Reply) {
	if s.countJunk() {
		s.wire.reply(r)
	}
}

func (s *session) countJunk() bool {
	if s.junk++; s.junk > s.srv.cfg.MaxJunkCommands {
		s.end(refuse(421, 7, 0, "Too many commands without a message"), "junk")
		return false
	}
	return true
}

// refuse answers a command with an error, and with 421 when it was one too many.
func (s *session) refuse(err error) {
	r := replyOf(err)
	if s.errors++; s.errors > s.maxErrors() {
		s.end(refuse(421, 7, 0, "Too many errors"), "errors")
		return
	}
	s.wire.reply(r)
}

func (s *session) maxErrors() int {
	if s.cred != nil {
		return 10 * s.srv.cfg.MaxErrors
	}
	return s.srv.cfg.MaxErrors
}

// end answers and closes.
func (s *session) end(err error, reason string) {
	s.wire.reply(replyOf(err))
	s.closing, s.linger, s.reason = true, true, reason
}

// lost ends the session after the wire failed.
func (s *session) lost(err error) {
	switch {
	case errors.Is(err, errStopping):
		s.end(errShutdown, "shutdown")
	case errors.Is(err, errTooSlow), errors.Is(err, os.ErrDeadlineExceeded):
		s.end(refuse(421, 4, 2, "Timeout"), "timeout")
	case errors.Is(err, errBareLF):
		s.end(refuse(500, 5, 2, "Command has a bare LF"), "bare_lf")
	case errors.Is(err, errLineEndless):
		s.end(refuse(500, 5, 2, "Command line is too long"), "line")
	case errors.Is(err, errDataEndless):
		s.end(errDataTooLong, "size")
	default:
		s.closing, s.reason = true, "disconnect"
	}
}
