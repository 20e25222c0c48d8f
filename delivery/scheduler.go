package delivery

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"relayd/internal/intake"
	"relayd/internal/resolver"
	"relayd/spool"
)

// Resolver answers where mail goes: resolver.Resolver.
type Resolver interface {
	LookupMX(ctx context.Context, domain string) ([]resolver.MX, error)
	LookupIP(ctx context.Context, host string) ([]netip.Addr, error)
}

// Composer renders the message of a campaign's envelope: the complete message, header first, CRLF line ends, signed,
// 7-bit clean, the same bytes each time. A *mail.Error with 5yz ends the envelope as failed (render_failed); any other
// error defers it without spending an attempt. Called from many goroutines.
type Composer interface {
	Compose(ctx context.Context, m *spool.Message, e *spool.Envelope) ([]byte, error)
}

// Gate is asked right before MAIL FROM whether the envelope is still wanted. A reason ends it as suppressed
// ("cancelled" as cancelled); an error defers it without spending an attempt. Called from many goroutines.
type Gate interface {
	Blocked(ctx context.Context, m *spool.Message, e *spool.Envelope) (reason string, err error)
}

// Door takes our own notices in: intake.Intake.
type Door interface {
	Prepare(ctx context.Context, s *intake.Submission) (*intake.Prepared, error)
}

// Deps are what a Scheduler works with.
type Deps struct {
	Spool    *spool.Store
	Resolver Resolver
	Composer Composer              // nil: no campaigns
	Gate     Gate                  // nil: everything is wanted
	Door     Door                  // nil: no notices to senders
	Hostname string                // EHLO name, Reporting-MTA
	Log      *slog.Logger          // nil: silent
	Metrics  prometheus.Registerer // nil: not registered
	Now      func() time.Time      // the clock; nil: Config.Now, then time.Now
	Roots    *x509.CertPool        // of smarthost certificates; nil: the system's
}

// Scheduler drains the spool.
type Scheduler struct{}

// New checks cfg and returns a scheduler that does nothing before Run.
func New(cfg Config, deps Deps) (*Scheduler, error) { panic("CONTRACT STUB") }

// Run delivers until ctx ends; then it takes no more work, lets attempts finish for Config.Grace, abandons what is
// left, gives back every unfinished lease and returns nil.
func (s *Scheduler) Run(ctx context.Context) error { panic("CONTRACT STUB") }

// Close abandons what runs. It is idempotent.
func (s *Scheduler) Close() error { return nil }
