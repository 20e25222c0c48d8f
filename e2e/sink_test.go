package e2e

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"github.com/stretchr/testify/require"
)

// delivery is one recipient of one message as the sink took it.
type delivery struct {
	From, To string
	Data     []byte
	TLS      bool
	User     string // of AUTH
	At       time.Time
}

// sink is an MX host on go-smtp's server. Its hooks answer per recipient and per message; nil accepts.
type sink struct {
	port   int
	server *smtp.Server

	onRcpt func(from, to string) error
	onData func(from string, to []string, data []byte) error
	users  map[string]string // AUTH is asked for when there are any
	light  bool              // keeps no bodies

	mu   sync.Mutex
	got  []delivery
	seen int // RCPT commands
}

// newSink starts the server; hooks must be set before the first mail.
func newSink(t *testing.T, cert string, users map[string]string) *sink {
	t.Helper()
	s := &sink{users: users}
	s.server = smtp.NewServer(s)
	s.server.Domain = "mx.sink.example"
	s.server.AllowInsecureAuth = false
	s.server.MaxMessageBytes = 64 << 20
	s.server.MaxRecipients = 1000
	s.server.ReadTimeout, s.server.WriteTimeout = time.Minute, time.Minute
	s.server.ErrorLog = quiet{}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, cert)
		require.NoError(t, err)
		s.server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}, SessionTicketsDisabled: true}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s.port = l.Addr().(*net.TCPAddr).Port
	done := make(chan struct{})
	go func() { _ = s.server.Serve(l); close(done) }()
	t.Cleanup(func() { _ = s.server.Close(); <-done })
	return s
}

type quiet struct{}

func (quiet) Printf(string, ...any) {}
func (quiet) Println(...any)        {}

// NewSession is smtp.Backend.
func (s *sink) NewSession(c *smtp.Conn) (smtp.Session, error) {
	_, secure := c.TLSConnectionState()
	return &sinkSession{sink: s, tls: secure}, nil
}

// all returns what has arrived so far.
func (s *sink) all() []delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]delivery(nil), s.got...)
}

func (s *sink) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.got)
}

// rcpts tells how often a RCPT was tried.
func (s *sink) rcpts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

type sinkSession struct {
	sink *sink
	tls  bool
	user string
	from string
	to   []string
}

func (s *sinkSession) AuthMechanisms() []string {
	if len(s.sink.users) == 0 {
		return nil
	}
	return []string{sasl.Plain}
}

func (s *sinkSession) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		if want, ok := s.sink.users[user]; !ok || want != password {
			return reply(535, 5, 7, 8, "Bad credentials")
		}
		s.user = user
		return nil
	}), nil
}

func (s *sinkSession) Mail(from string, _ *smtp.MailOptions) error {
	if len(s.sink.users) > 0 && s.user == "" {
		return &smtp.SMTPError{Code: 530, EnhancedCode: smtp.EnhancedCode{5, 7, 0}, Message: "Authentication required"}
	}
	s.from = from
	return nil
}

func (s *sinkSession) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.sink.mu.Lock()
	s.sink.seen++
	s.sink.mu.Unlock()
	if s.sink.onRcpt != nil {
		if err := s.sink.onRcpt(s.from, to); err != nil {
			return err
		}
	}
	s.to = append(s.to, to)
	return nil
}

func (s *sinkSession) Data(r io.Reader) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if s.sink.onData != nil {
		if err := s.sink.onData(s.from, s.to, data); err != nil {
			return err
		}
	}
	if s.sink.light {
		data = nil
	}
	s.sink.mu.Lock()
	defer s.sink.mu.Unlock()
	for _, to := range s.to {
		s.sink.got = append(s.sink.got, delivery{s.from, to, bytes.Clone(data), s.tls, s.user, time.Now()})
	}
	return nil
}

func (s *sinkSession) Reset()        { s.from, s.to = "", nil }
func (s *sinkSession) Logout() error { return nil }

// reply is an answer of the sink.
func reply(code int, class, subject, detail int, text string) error {
	return &smtp.SMTPError{Code: code, EnhancedCode: smtp.EnhancedCode{class, subject, detail}, Message: text}
}
