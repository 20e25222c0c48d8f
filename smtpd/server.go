package smtpd

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
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
	Authenticator Authenticator
	Senders       Senders // nil: the Accepter alone decides
	// GetCertificate chooses the certificate of a handshake and so may change it while relayd runs. Nil where no
	// listener has TLS.
	GetCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	Hostname       string                // in the banner and the EHLO reply
	Log            *slog.Logger          // nil: no log
	Metrics        prometheus.Registerer // nil: not registered
	Now            func() time.Time      // nil: time.Now
}

// Server speaks SMTP on its listeners.
type Server struct{}

// New checks cfg and binds all listeners, so that a wrong address fails before anything runs.
func New(cfg Config, deps Deps) (*Server, error) { panic("stub") }

// Run accepts connections until Shutdown or Close, or until ctx ends, which is a Close.
func (s *Server) Run(ctx context.Context) error { panic("stub") }

// Shutdown stops accepting, ends every session between two transactions with 421, and waits for the others until ctx
// ends; then it closes them.
func (s *Server) Shutdown(ctx context.Context) error { panic("stub") }

// Close ends all listeners and sessions at once and waits for them. It is idempotent.
func (s *Server) Close() error { panic("stub") }

// Addr is the bound address of listener i of the configuration.
func (s *Server) Addr(i int) net.Addr { panic("stub") }
