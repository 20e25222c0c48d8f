package delivery

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/emersion/go-sasl"

	"relayd/internal/mail"
	"relayd/internal/tlspolicy"
)

// target is one address of one host.
type target struct {
	host     string
	site     string // key of the site that it is a host of
	addr     netip.AddrPort
	smart    *Smarthost      // nil: an MX host
	source   *source         // nil: the system chooses
	tls      tlspolicy.Level // level of an MX host, "" for opportunistic
	chunking bool
}

// network makes connections: net.Dialer.
type network interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// opener makes sessions: connection, greeting, EHLO, TLS, AUTH.
type opener struct {
	hostname  string
	timeouts  Timeouts
	network   network
	roots     *x509.CertPool
	brokenTLS *hostSet // handshakes failed of late: not asked again for a while
	knownTLS  *hostSet // spoke TLS of late
	blamed    *hostSet // addresses of ours, by site: blamed of late
	log       *slog.Logger
	metrics   *metrics
	now       func() time.Time
}

// open returns a session that is ready for its first transaction. The error is a *fault.
func (o *opener) open(ctx context.Context, t target) (*Session, error) {
	s, err := o.openAny(ctx, t)
	if err == nil {
		s.chunked = t.chunking && s.ext.chunking
		o.metrics.opened(s.TLS)
	}
	return s, err
}

func (o *opener) openAny(ctx context.Context, t target) (*Session, error) {
	if t.smart != nil {
		return o.openSmarthost(ctx, t)
	}
	s, err := o.openPlain(ctx, t)
	if err != nil || t.tls == tlspolicy.None {
		return s, err
	}
	strict := t.tls.Strict()
	switch {
	case strict && !s.ext.startTLS:
		s.abort()
		return nil, &fault{kind: faultTLS, err: errors.New("host does not offer STARTTLS, which a rule requires")}
	case !s.ext.startTLS:
		if o.knownTLS.has(t.host, o.now()) { // taken out on the way, or switched off
			o.downgraded(s, "not_offered", nil)
		}
		return s, nil
	case !strict && o.brokenTLS.has(t.host, o.now()):
		return s, nil
	}
	// Opportunistic (RFC 7435): encrypted to whoever answers is better than open to everybody.
	err = s.startTLS(t.tls.Client(t.host, o.roots))
	if err == nil {
		err = o.ehlo(s)
	}
	f, _ := errors.AsType[*fault](err)
	switch {
	case err == nil:
		o.knownTLS.add(t.host, o.now().Add(knownTLSFor))
		return s, nil
	case f.kind == faultReply && s.TLS == "" && f.reply.Code != 421 && !strict: // refused, and the session stands as before
		o.downgraded(s, "refused", f)
		return s, nil
	case f.kind == faultReply && s.TLS == "" && strict:
		s.abort()
		return nil, &fault{kind: faultTLS, reply: f.reply, err: fmt.Errorf("host refuses STARTTLS, which a rule requires: %s", f.reply)}
	case f.kind != faultTLS || strict:
		s.abort()
		return nil, err
	}
	o.downgraded(s, "handshake", f)
	s.abort()
	keep := brokenTLSFor
	if isBroken(f) { // of the network as likely as of the host
		keep = brokenConnFor
	}
	o.brokenTLS.add(t.host, o.now().Add(keep))
	return o.openPlain(ctx, t)
}

// openPlain connects and greets.
func (o *opener) openPlain(ctx context.Context, t target) (*Session, error) {
	s, err := o.dial(ctx, t)
	if err != nil {
		return nil, err
	}
	if err := o.greet(s); err != nil {
		s.abort()
		return nil, err
	}
	return s, nil
}

// downgraded tells that mail leaves in clear although the host had TLS to offer.
func (o *opener) downgraded(s *Session, reason string, f *fault) {
	attrs := []any{"mx", s.Name(), "reason", reason}
	if f != nil {
		o.metrics.brokenTLS.Inc()
		attrs = append(attrs, "err", f)
	}
	o.log.Warn("session.downgraded", attrs...)
}

// openSmarthost never says more than EHLO and STARTTLS before the certificate is verified.
func (o *opener) openSmarthost(ctx context.Context, t target) (*Session, error) {
	if t.smart.TLS == TLSNone && !t.addr.Addr().Unmap().IsLoopback() {
		return nil, &fault{kind: faultTLS, err: fmt.Errorf("%s is not a loopback address, and TLS is off", t.addr.Addr())}
	}
	s, err := o.dial(ctx, t)
	if err != nil {
		return nil, err
	}
	if err := o.secure(s, t); err != nil {
		s.abort()
		return nil, err
	}
	if t.smart.Username != "" {
		if err := s.auth(t.smart.Username, t.smart.Password); err != nil {
			s.abort()
			return nil, err
		}
	}
	return s, nil
}

// secure greets a smarthost and brings up TLS as configured.
func (o *opener) secure(s *Session, t target) error {
	verified := &tls.Config{ServerName: t.host, RootCAs: o.roots, MinVersion: tls.VersionTLS12}
	if t.smart.TLS == TLSImplicit {
		if err := s.handshake(verified); err != nil {
			return err
		}
		return o.greet(s)
	}
	if err := o.greet(s); err != nil || t.smart.TLS == TLSNone {
		return err
	}
	if !s.ext.startTLS {
		return &fault{kind: faultTLS, err: errors.New("smarthost does not offer STARTTLS")}
	}
	if err := s.startTLS(verified); err != nil {
		return err
	}
	return o.ehlo(s)
}

func (o *opener) dial(ctx context.Context, t target) (*Session, error) {
	of := o.origin(t)
	conn, err := o.network.DialContext(withBind(ctx, of.from), "tcp", t.addr.String())
	if err != nil {
		kind := faultConn
		if ctx.Err() != nil {
			kind = faultLocal
		}
		return nil, &fault{kind: kind, err: fmt.Errorf("connect: %w", err)}
	}
	s := newSession(ctx, conn, t.host, t.addr, o.timeouts)
	s.origin, s.greeting = of, t.source.greeting(o.hostname)
	return s, nil
}

// greet reads the greeting and says EHLO.
func (o *opener) greet(s *Session) error {
	reply, err := s.read(s.timeouts.Greeting)
	if err != nil {
		return err
	}
	if reply.Code != 220 {
		return &fault{kind: faultReply, reply: reply}
	}
	return o.ehlo(s)
}

// ehlo says EHLO, or HELO to a host that does not know it (RFC 5321 section 3.2).
func (o *opener) ehlo(s *Session) error {
	s.ext = extensions{}
	s.command("EHLO " + s.greeting)
	if err := s.flush(); err != nil {
		return err
	}
	var lines []string
	reply, err := s.readLines(s.timeouts.Command, &lines)
	if err == nil && reply.Permanent() {
		s.command("HELO " + s.greeting)
		lines = lines[:0]
		if err = s.flush(); err == nil {
			reply, err = s.readLines(s.timeouts.Command, &lines)
			lines = lines[:min(len(lines), 1)]
		}
	}
	if err != nil {
		return err
	}
	if reply.Code != 250 {
		return &fault{kind: faultReply, reply: reply}
	}
	if name, _, _ := strings.Cut(lines[0], " "); strings.EqualFold(name, o.hostname) || strings.EqualFold(name, s.greeting) {
		return &fault{kind: faultSelf, err: errors.New("the host answers with our own name")}
	}
	s.ext = parseExtensions(lines[1:])
	return nil
}

func parseExtensions(lines []string) extensions {
	var e extensions
	for _, line := range lines {
		word, rest, _ := strings.Cut(line, " ")
		switch strings.ToUpper(word) {
		case "PIPELINING":
			e.pipelining = true
		case "8BITMIME":
			e.eightBit = true
		case "SMTPUTF8":
			e.smtpUTF8 = true
		case "DSN":
			e.dsn = true
		case "STARTTLS":
			e.startTLS = true
		case "CHUNKING":
			e.chunking = true
		case "REQUIRETLS":
			e.requireTLS = true
		case "SIZE":
			e.size = true
			if n, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64); err == nil && n > 0 {
				e.maxSize = n
			}
		case "AUTH":
			e.auth = strings.Fields(strings.ToUpper(rest))
		}
	}
	return e
}

// startTLS asks for TLS and shakes hands. What came after the 220 in clear is not read as replies: the buffer that
// may hold it is left behind with the plain session (RFC 3207 section 4.2).
func (s *Session) startTLS(cfg *tls.Config) error {
	s.command("STARTTLS")
	reply, err := s.roundTrip(s.timeouts.Command)
	if err != nil {
		return err
	}
	if reply.Code != 220 {
		return &fault{kind: faultReply, reply: reply}
	}
	return s.handshake(cfg)
}

func (s *Session) handshake(cfg *tls.Config) error {
	conn := tls.Client(s.conn, cfg)
	if err := s.conn.SetDeadline(time.Now().Add(s.timeouts.Handshake)); err != nil {
		return &fault{kind: s.connKind(), err: err}
	}
	if err := conn.HandshakeContext(s.ctx); err != nil {
		kind := faultTLS
		if s.ctx.Err() != nil {
			kind = faultLocal
		}
		return &fault{kind: kind, err: fmt.Errorf("shake hands: %w", err)}
	}
	s.attach(conn)
	s.verify = func() error { return verifyChain(conn.ConnectionState().PeerCertificates, cfg) }
	s.TLS = strings.ReplaceAll(tls.VersionName(conn.ConnectionState().Version), " ", "")
	return nil
}

// verifyChain is what a handshake that skipped it left undone.
func verifyChain(chain []*x509.Certificate, cfg *tls.Config) error {
	if len(chain) == 0 {
		return errors.New("no certificate")
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{DNSName: cfg.ServerName, Roots: cfg.RootCAs, Intermediates: between})
	return err
}

// auth logs in. A refusal for good is faultAuth: nothing that waits is to blame for it.
func (s *Session) auth(username, password string) error {
	client := saslClient(s.ext.auth, username, password)
	if client == nil {
		return &fault{kind: faultAuth, err: fmt.Errorf("offers %q: none of PLAIN, LOGIN, CRAM-MD5", strings.Join(s.ext.auth, " "))}
	}
	name, first, err := client.Start()
	if err != nil {
		return &fault{kind: faultAuth, err: err}
	}
	line := "AUTH " + name
	if first != nil {
		line += " " + base64.StdEncoding.EncodeToString(first)
	}
	for range 4 { // no mechanism of ours needs more
		s.command(line)
		reply, err := s.roundTrip(s.timeouts.Command)
		switch {
		case err != nil:
			return err
		case reply.Code == 235:
			return nil
		case reply.Permanent():
			return &fault{kind: faultAuth, reply: reply}
		case reply.Code != 334:
			return &fault{kind: faultReply, reply: reply}
		}
		challenge, err := base64.StdEncoding.DecodeString(reply.Text)
		if err != nil {
			return &fault{kind: faultProtocol, err: fmt.Errorf("%w: challenge of AUTH: %w", errReply, err)}
		}
		answer, err := client.Next(challenge)
		if err != nil {
			return &fault{kind: faultProtocol, err: fmt.Errorf("%w: challenge of AUTH: %w", errReply, err)}
		}
		line = base64.StdEncoding.EncodeToString(answer)
	}
	return &fault{kind: faultProtocol, err: fmt.Errorf("%w: AUTH does not end", errReply)}
}

// saslClient picks the first mechanism of ours that is offered; the connection is encrypted, so PLAIN is as good as any.
func saslClient(offered []string, username, password string) sasl.Client {
	switch {
	case slices.Contains(offered, sasl.Plain):
		return sasl.NewPlainClient("", username, password)
	case slices.Contains(offered, sasl.Login):
		return &loginClient{username: username, password: password}
	case slices.Contains(offered, cramMD5):
		return &cramClient{username, password}
	}
	return nil
}

// abort closes the connection without a word.
func (s *Session) abort() {
	s.broken = true
	s.Close()
}

// keepsTLS tells whether a message with REQUIRETLS may go to the host, with the reply that says why not (RFC 8689
// section 4.2.1).
// Deviation: the MX name itself comes from DNS without DNSSEC or MTA-STS.
func (s *Session) keepsTLS() (mail.Reply, bool) {
	r := mail.Reply{Code: 550, Status: mail.Status{Class: 5, Subject: 7, Detail: 10}}
	switch {
	case s.TLS == "" || s.verify == nil:
		r.Text = "Message requires TLS, and the host does not speak it"
	case s.verify() != nil:
		r.Text = "Message requires TLS, and the host's certificate cannot be verified"
	case !s.ext.requireTLS:
		r.Status.Detail, r.Text = 30, "Message requires TLS, and the host does not offer REQUIRETLS"
	default:
		return mail.Reply{}, true
	}
	return r, false
}

// fits tells whether the host takes the message at all, with the reply that says why not.
func (s *Session) fits(t *Transaction) (mail.Reply, bool) {
	switch {
	case s.ext.maxSize > 0 && t.Size > s.ext.maxSize:
		return mail.Reply{Code: 552, Status: mail.Status{Class: 5, Subject: 3, Detail: 4}, Text: fmt.Sprintf(
			"Message of %d octets is larger than the %d that the host takes", t.Size, s.ext.maxSize)}, false
	case t.EightBit && !s.ext.eightBit:
		return mail.Reply{
			Code: 554, Status: mail.Status{Class: 5, Subject: 6, Detail: 3},
			Text: "Message has 8-bit octets, and the host does not offer 8BITMIME",
		}, false
	}
	return mail.Reply{}, true
}
