package smtpd

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"relayd/internal/account"
	"relayd/internal/intake"
	"relayd/internal/mail"
)

var (
	errHelloFirst    = refuse(503, 5, 1, "Say EHLO first")
	errMailFirst     = refuse(503, 5, 1, "Say MAIL first")
	errNoArgument    = refuse(501, 5, 4, "This command has no argument")
	errOutOfSync     = refuse(554, 5, 0, "Protocol synchronization: wait for the reply")
	errTooManyErrors = refuse(421, 7, 0, "Too many errors")
	errShutdown      = refuse(421, 3, 2, "Server is shutting down, please come back later")
)

// session is one connection. All of it runs in one goroutine.
type session struct {
	srv    *Server
	lis    *listener
	id     string
	ip     netip.Addr
	client string // ip, for what is written of each message
	source netip.Prefix
	place  *place
	raw    net.Conn
	wire   *wire

	helo      string // "" before EHLO
	esmtp     bool
	tls       string               // "TLS1.3 TLS_AES_128_GCM_SHA256", "" for none
	state     *tls.ConnectionState // nil without TLS
	cert      *tls.Certificate     // that we showed
	certNames []string             // of the client's certificate, where it is right
	cred      *account.Credential  // nil before AUTH
	tx        *transaction         // nil between transactions

	messages, errors, junk, authFailures int

	closing bool
	linger  bool   // the client may still be sending
	reason  string // of the end, for the log
}

// transaction is what MAIL and RCPT gave.
type transaction struct {
	mail   mailArgs
	rcpts  []intake.Recipient
	beyond int // recipients over the limit
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
		if line, ok := s.readCommand(s.srv.cfg.CommandTimeout, stop); ok {
			s.command(ctx, line)
		}
		s.wire.shrink()
	}
}

// readCommand returns the next command line. Without one it has answered, and ended the session where nothing can follow.
func (s *session) readCommand(timeout time.Duration, stop *atomic.Bool) (line []byte, ok bool) {
	line, err := s.wire.readLine(timeout, stop)
	switch {
	case err == nil:
		return line, true
	case errors.Is(err, errLineTooLong):
		s.refuse(refuse(500, 5, 2, "Command line is too long"))
	case errors.Is(err, errBareCR):
		s.refuse(refuse(500, 5, 2, "Command has a bare CR"))
	default:
		s.lost(err)
	}
	return nil, false
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
	s.trace(c)
	s.dispatch(ctx, c)
}

func (s *session) dispatch(ctx context.Context, c command) {
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
	case "BDAT":
		s.bdat(ctx, c.arg)
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
		strconv.FormatInt(s.lis.maxBytes, 10) + "\r\n")
	if s.lis.tls == StartTLS && s.tls == "" {
		s.wire.write("250-STARTTLS\r\n")
	}
	if s.lis.policy.mayAuth(s) == nil {
		s.wire.write("250-AUTH " + strings.Join(s.mechanisms(), " ") + "\r\n")
	}
	if s.mayRequireTLS() {
		s.wire.write("250-REQUIRETLS\r\n")
	}
	if s.lis.kind == Submission { // RFC 4865 section 3: seconds, and the latest time
		s.wire.write("250-BINARYMIME\r\n250-FUTURERELEASE " + strconv.Itoa(int(MaxHold/time.Second)) + " " +
			s.srv.deps.Now().Add(MaxHold).UTC().Format(time.RFC3339) + "\r\n")
	}
	s.wire.write(s.srv.cfg.limits() + "250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-CHUNKING\r\n250 DSN\r\n")
}

// limits is the line of EHLO about the limits of a session (RFC 9422), "" where there is none to tell. RCPTDOMAINMAX, how
// many domains the recipients of a session may have, is not among them: every recipient has its own delivery here.
func (c *Config) limits() string {
	var told []string
	for _, limit := range []struct {
		name string
		most int
	}{{"MAILMAX", c.MaxMessagesPerSession}, {"RCPTMAX", c.MaxRecipients}} {
		if limit.most < 1_000_000 { // a value has six digits at most; nobody comes to those that have more
			told = append(told, limit.name+"="+strconv.Itoa(limit.most))
		}
	}
	if told == nil {
		return ""
	}
	return "250-LIMITS " + strings.Join(told, " ") + "\r\n"
}

// mayRequireTLS tells whether REQUIRETLS is offered: to clients that have TLS themselves (RFC 8689 section 2).
func (s *session) mayRequireTLS() bool { return s.tls != "" }

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
	cfg := s.srv.tls.Clone()
	cfg.GetCertificate = func(h *tls.ClientHelloInfo) (_ *tls.Certificate, err error) {
		s.cert, err = s.srv.deps.GetCertificate(h)
		return s.cert, err
	}
	if s.lis.clientCAs != nil {
		var err error
		if cfg.ClientCAs, err = s.lis.clientCAs.get(); err != nil {
			s.srv.log.Warn("certificate.unread", "listener", s.lis.name, "err", err)
		}
		cfg.ClientAuth = tls.RequestClientCert
	}
	conn := tls.Server(s.raw, cfg)
	if dropped := s.wire.upgrade(conn); dropped > 0 {
		s.srv.log.Warn("session.injection", "session", s.id, "ip", s.ip, "size", dropped)
	}
	err := s.raw.SetDeadline(time.Now().Add(s.srv.handshakeTimeout()))
	if err == nil {
		err = conn.HandshakeContext(ctx)
	}
	if err != nil {
		s.closing, s.reason = true, "tls"
		return false
	}
	state := conn.ConnectionState()
	s.state = &state
	s.checkCertificate(cfg.ClientCAs)
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
	case s.errors > s.maxErrors(): // messages were refused
		s.end(errTooManyErrors, "errors")
		return
	}
	if err := s.lis.policy.beforeMail(s); err != nil { // no parsing for strangers
		s.refuse(err)
		return
	}
	m, err := parseMail(arg)
	if err == nil {
		err = s.mayAsk(m)
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

// mayAsk holds the parameters of MAIL to what was offered.
func (s *session) mayAsk(m mailArgs) *mail.Error {
	hold := m.holdFor > 0 || !m.holdUntil.IsZero()
	switch {
	case m.size > s.lis.maxBytes:
		return errDataTooLong
	case m.requireTLS && !s.mayRequireTLS():
		return refuse(555, 5, 4, "REQUIRETLS is not offered here")
	case m.binary && s.lis.kind != Submission:
		return refuse(555, 5, 4, "BINARYMIME is not offered here")
	case hold && s.lis.kind != Submission:
		return refuse(555, 5, 4, "FUTURERELEASE is not offered here")
	case m.holdUntil.After(s.srv.deps.Now().Add(MaxHold)):
		return refuse(501, 5, 4, "HOLDUNTIL is too far ahead")
	}
	return nil
}

// rcpt adds a recipient to the transaction.
func (s *session) rcpt(arg string) {
	if s.tx == nil {
		s.refuse(errMailFirst)
		return
	}
	host := ""
	if s.lis.kind == Inbound {
		host = s.srv.deps.Hostname
	}
	r, err := parseRcpt(arg, host)
	if err == nil && !s.tx.mail.utf8 && !isASCII(arg) {
		err = refuse(553, 6, 7, "Addresses outside ASCII need SMTPUTF8")
	}
	if err == nil {
		err = s.lis.policy.mayRcpt(s, r)
	}
	if err != nil {
		s.refuse(err)
		return
	}
	if most := s.srv.cfg.MaxRecipients; len(s.tx.rcpts) >= most { // RFC 5321 section 4.5.3.1.10
		too := mail.Refuse(452, mail.Status{Class: 4, Subject: 5, Detail: 3}, "Too many recipients", nil)
		if s.tx.beyond++; s.tx.beyond > most { // a client that does not listen
			s.refuse(too)
			return
		}
		s.wire.reply(too.Reply)
		return
	}
	s.tx.rcpts = append(s.tx.rcpts, intake.Recipient{To: r.to, Notify: r.notify, ORCPT: r.orcpt})
	s.wire.reply(ok(1, 5, "Ok"))
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
		s.end(errTooManyErrors, "errors")
		return
	}
	s.wire.reply(r)
}

func (s *session) maxErrors() int {
	most := s.srv.cfg.MaxErrors
	switch {
	case s.cred != nil:
		return 10 * most
	case s.stressed():
		return min(most, stressErrors)
	}
	return most
}

// stressed tells that this client must not be waited for long.
func (s *session) stressed() bool { return s.srv.limits.stressed(s.cred != nil) }

// stressErrors is how many refused commands a stranger may send to an overloaded server.
const stressErrors = 2

// end answers and closes.
func (s *session) end(err error, reason string) {
	s.wire.reply(replyOf(err))
	s.closing, s.linger, s.reason = true, true, reason
}

// lost ends the session after the wire failed.
func (s *session) lost(err error) {
	switch {
	case errors.Is(err, errEnded): // answered
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
		if s.closing, s.reason = true, "disconnect"; s.srv.limits.gaveWay(s.place) {
			s.reason = "displaced"
		}
	}
}
