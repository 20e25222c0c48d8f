package smtpd

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"relayd/internal/account"
	"relayd/internal/intake"
	"relayd/internal/mail"
)

// Accepter takes a message over: intake.Intake. A nil error means that the message is on stable storage.
type Accepter interface {
	Accept(ctx context.Context, s *intake.Submission) (mail.QueueID, error)
}

// Authenticator checks a password: account.Store. account.ErrBadCredentials is the only error that counts as a
// failure of the client.
type Authenticator interface {
	Authenticate(ctx context.Context, username, password string) (account.Credential, error)
}

// Senders tells whether a credential may use a domain in its reverse-path: intake.Intake. A refusal is a *mail.Error.
type Senders interface {
	CheckSender(c account.Credential, domain string) error
}

// Deps are what a Server works with.
type Deps struct {
	Accepter      Accepter
	Authenticator Authenticator // nil where no listener is for submission
	Senders       Senders       // nil: the Accepter alone decides
	Inbound       *InboundDeps  // nil: inbound listeners refuse every recipient
	// GetCertificate chooses the certificate of a handshake and so may change it while relayd runs. Nil where no
	// listener has TLS.
	GetCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	Hostname       string                // in the banner and the EHLO reply
	Log            *slog.Logger          // nil: no log
	Metrics        prometheus.Registerer // nil: not registered
	Now            func() time.Time      // nil: time.Now
}

// Server speaks SMTP on its listeners. Its methods may be called from many goroutines.
type Server struct {
	cfg       Config
	deps      Deps
	log       *slog.Logger
	tls       *tls.Config
	metrics   *metrics
	limits    *limits
	oauth     *issuer // nil: OAUTHBEARER is not offered
	buffers   sync.Pool
	parked    chan func()   // goroutines that wait for a session receive
	parking   atomic.Int32  // their number
	draining  chan struct{} // closed when no session begins any more
	inbound   *inboundAccepter
	listeners []*listener

	ctx      context.Context // of all sessions
	abort    context.CancelFunc
	stopping atomic.Bool
	wg       sync.WaitGroup // accept loops and sessions

	mu       sync.Mutex
	sessions map[*session]struct{}
	running  bool
	closed   bool
}

// listener is one bound [[smtp.listener]].
type listener struct {
	net.Listener
	name    string // address, for the log
	label   string // for metrics
	proxies []netip.Prefix
	kind    string
	tls     string
	policy  policy
	accept  Accepter

	maxBytes  int64                    // of one message
	clientCAs *watched[*x509.CertPool] // nil: no client certificates
}

// New checks cfg and binds all listeners, so that a wrong address fails before anything runs.
func New(cfg Config, deps Deps) (*Server, error) {
	s, err := newServer(cfg, deps)
	if err != nil {
		return nil, err
	}
	for _, l := range cfg.Listeners {
		if err := s.listen(l); err != nil {
			return nil, errors.Join(fmt.Errorf("listen for %s: %w", l.Kind, err), s.Close())
		}
	}
	return s, nil
}

func newServer(cfg Config, deps Deps) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Accepter == nil || deps.Hostname == "" {
		return nil, errors.New("smtpd: accepter and hostname are needed")
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	s := &Server{cfg: cfg, deps: deps, log: deps.Log, metrics: newMetrics(deps.Metrics, cfg.Listeners), sessions: map[*session]struct{}{}, parked: make(chan func()), draining: make(chan struct{})}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if cfg.OAuth.Issuer != "" {
		people, ok := deps.Authenticator.(Credentials)
		if !ok {
			return nil, errors.New("smtpd: oauth needs an authenticator that finds credentials by name")
		}
		var err error
		if s.oauth, err = newIssuer(cfg.OAuth, people, s.log); err != nil {
			return nil, err
		}
	}
	s.inbound = &inboundAccepter{srv: s, deps: deps.Inbound, held: holding{source: map[netip.Prefix]int64{}}}
	s.limits = newLimits(&s.cfg, deps.Now)
	s.limits.displaced = s.metrics.rejected.WithLabelValues("displaced").Inc
	s.buffers.New = func() any { b := make([]byte, dataBuffer); return &b }
	s.tls = &tls.Config{
		GetCertificate: deps.GetCertificate,
		MinVersion:     tls.VersionTLS12,
		// Microsoft's servers abort the handshake when they get a ticket that they cannot use (golang/go#70232).
		SessionTicketsDisabled: true,
	}
	s.ctx, s.abort = context.WithCancel(context.Background())
	return s, nil
}

func (s *Server) listen(cfg Listener) error {
	l, err := s.newListener(cfg)
	if err != nil {
		return err
	}
	quiet := net.ListenConfig{KeepAlive: -1} // every wait has a deadline: probes would tell nothing more
	if l.Listener, err = quiet.Listen(context.Background(), "tcp", cfg.Address); err != nil {
		return err
	}
	s.listeners = append(s.listeners, l)
	s.log.Info("listener.opened", "listener", l.Addr().String(), "reason", l.kind+" "+l.tls)
	return nil
}

func (s *Server) newListener(cfg Listener) (*listener, error) {
	proxies, err := cfg.proxies()
	if err != nil {
		return nil, err
	}
	l := &listener{name: cfg.Address, label: cfg.label(), proxies: proxies, kind: cfg.Kind, tls: cfg.TLS, policy: inboundPolicy{s, s.deps.Inbound}, accept: s.inbound, maxBytes: min(s.cfg.MaxMessageBytes, s.cfg.MaxInboundBytes)}
	if l.tls == "" {
		l.tls = StartTLS
	}
	if l.tls != NoTLS && s.deps.GetCertificate == nil {
		if l.kind == Submission || l.tls == Implicit {
			return nil, fmt.Errorf("%s: tls %s needs a certificate", cfg.Address, l.tls)
		}
		l.tls = NoTLS // inbound mail may come in plain text
	}
	if l.kind == Submission {
		if s.deps.Authenticator == nil {
			return nil, fmt.Errorf("%s: submission needs an authenticator", cfg.Address)
		}
		l.policy, l.accept, l.maxBytes = submissionPolicy{s.deps.Senders}, s.deps.Accepter, s.cfg.MaxMessageBytes
	}
	if cfg.ClientCAFile != "" {
		if _, ok := s.deps.Authenticator.(Credentials); !ok {
			return nil, fmt.Errorf("%s: client_ca_file needs an authenticator that finds credentials by name", cfg.Address)
		}
		if l.clientCAs, err = newWatched("client certificate authorities", cfg.ClientCAFile, parseCAs); err != nil {
			return nil, fmt.Errorf("%s: %w", cfg.Address, err)
		}
	}
	return l, nil
}

// Addr is the bound address of listener i of the configuration.
func (s *Server) Addr(i int) net.Addr { return s.listeners[i].Addr() }

// Run accepts connections until Shutdown or Close, or until ctx ends, which is a Close. It returns when all sessions
// have ended.
func (s *Server) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.running || s.closed {
		s.mu.Unlock()
		return net.ErrClosed
	}
	s.running = true
	for _, l := range s.listeners {
		s.wg.Go(func() { s.acceptLoop(l) })
	}
	s.mu.Unlock()
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = s.Close()
	})
	s.wg.Wait()
	if !stop() {
		<-done
	}
	return nil
}

// acceptLoop never spins: what Accept cannot give it waits for, longer each time.
func (s *Server) acceptLoop(l *listener) {
	for delay := time.Duration(0); ; {
		conn, err := l.Accept()
		if err == nil {
			delay = 0
			s.admit(conn, l)
			continue
		}
		if s.stopping.Load() || errors.Is(err, net.ErrClosed) {
			return
		}
		delay = min(max(2*delay, 5*time.Millisecond), time.Second)
		s.log.Error("listener.failed", "listener", l.name, "delay", delay, "err", err)
		wait(s.ctx, delay)
	}
}

// admit starts a session, or turns the connection away when there are too many.
func (s *Server) admit(conn net.Conn, l *listener) {
	ip := remoteIP(conn)
	source := sourceOf(ip)
	proxied := l.isProxy(ip)
	if proxied {
		source = netip.Prefix{} // until it says who the client is
	}
	at, reason := s.limits.admit(conn, source, l.kind)
	if reason != "" {
		s.turnAway(conn, l, ip, reason)
		return
	}
	s.start(func() {
		defer s.limits.release(at)
		if proxied {
			client, err := s.introduce(conn, l, ip)
			if err != nil {
				return
			}
			ip = client
			if reason := s.limits.move(at, sourceOf(ip)); reason != "" {
				s.turnAway(conn, l, ip, reason)
				return
			}
		}
		s.serve(conn, l, ip, at)
	})
}

// maxParked is how many goroutines wait for the next session after theirs has ended: one that has grown its stack
// already serves a short session at a fraction of the cost.
const maxParked = 64

// start runs fn in a goroutine that waits for work, or in a new one.
func (s *Server) start(fn func()) {
	select {
	case s.parked <- fn:
		return
	default:
	}
	s.wg.Go(func() {
		for fn != nil {
			fn()
			fn = s.park()
		}
	})
}

// park waits for the next session, unless enough others do; nil ends the goroutine.
func (s *Server) park() func() {
	if s.parking.Add(1) <= maxParked {
		select {
		case fn := <-s.parked:
			s.parking.Add(-1)
			return fn
		case <-s.draining:
		}
	}
	s.parking.Add(-1)
	return nil
}

// turnAway closes a connection that is one too many.
func (s *Server) turnAway(conn net.Conn, l *listener, ip netip.Addr, reason string) {
	s.metrics.rejected.WithLabelValues(reason).Inc()
	s.log.Debug("session.rejected", "listener", l.name, "ip", ip, "reason", reason)
	if l.tls != Implicit { // fits the socket's empty buffer: it does not wait
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = conn.Write(appendReply(nil, refuse(421, 7, 0, "Too many connections").Reply))
	}
	_ = conn.Close()
}

// handshakeTimeout is how long relayd waits for a handshake or a PROXY header that begins now.
func (s *Server) handshakeTimeout() time.Duration {
	if s.limits.stressed(false) {
		return min(s.cfg.HandshakeTimeout, s.cfg.StressTimeout)
	}
	return s.cfg.HandshakeTimeout
}

func remoteIP(conn net.Conn) netip.Addr {
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// serve runs one session. A panic ends this session and nothing else.
func (s *Server) serve(conn net.Conn, l *listener, ip netip.Addr, at *place) {
	sess := &session{
		srv: s, lis: l, place: at, id: rand.Text()[:12], ip: ip, client: ip.String(), source: sourceOf(ip), raw: conn,
		wire: newWire(conn, &s.buffers, s.cfg.WriteTimeout),
	}
	sess.wire.hurry, sess.wire.hurryTimeout = sess.stressed, s.cfg.StressTimeout
	sess.transcribe()
	if !s.add(sess) {
		_ = conn.Close()
		return
	}
	s.metrics.sessions.WithLabelValues(l.kind, l.label).Inc()
	s.metrics.open.WithLabelValues(l.kind, l.label).Inc()
	defer func() {
		if p := recover(); p != nil {
			s.metrics.panics.Inc()
			s.log.Error("session.panicked", "session", sess.id, "ip", ip, "err", fmt.Sprintf("%v\n%s", p, debug.Stack()))
			sess.end(refuse(421, 3, 0, "Internal error"), "panic")
		}
		sess.wire.close(sess.linger)
		s.remove(sess)
		s.metrics.open.WithLabelValues(l.kind, l.label).Dec()
		s.log.Info("session.closed", "session", sess.id, "listener", l.name, "ip", ip, "tls", sess.tls,
			"count", sess.messages, "reason", sess.reason)
	}()
	sess.run(s.ctx)
}

// watch closes conn when the server is closed, until stop is called.
func (s *Server) watch(conn net.Conn) (stop func()) {
	end := context.AfterFunc(s.ctx, func() { _ = conn.Close() })
	return func() { end() }
}

func (s *Server) add(sess *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.sessions[sess] = struct{}{}
	return true
}

func (s *Server) remove(sess *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, sess)
}

// Shutdown stops accepting, ends every session between two transactions with 421, and waits for the others until ctx
// ends; then it closes them and returns the error of ctx.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.wg.Wait()
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	closeErr := s.Close()
	<-done
	return errors.Join(err, closeErr)
}

// stop closes the listeners and wakes the idle sessions.
func (s *Server) stop() {
	if !s.stopping.Swap(true) {
		close(s.draining)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.listeners {
		_ = l.Close()
	}
	for sess := range s.sessions {
		_ = sess.raw.SetReadDeadline(time.Unix(1, 0))
	}
}

// Close ends all listeners and sessions at once and waits for them. It is idempotent.
func (s *Server) Close() error {
	s.stop()
	s.abort()
	s.mu.Lock()
	s.closed = true
	for sess := range s.sessions {
		_ = sess.raw.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}
