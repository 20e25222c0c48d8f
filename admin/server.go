package admin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/netutil"

	"relayd/campaign"
	"relayd/delivery"
	"relayd/dkim"
	"relayd/internal/account"
	"relayd/internal/api"
	"relayd/internal/contact"
	"relayd/internal/event"
	"relayd/internal/intake"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/internal/mailauth"
	"relayd/internal/suppression"
	"relayd/spool"
)

// Accepter is the one door for messages: intake.Intake.
type Accepter interface {
	Accept(ctx context.Context, s *intake.Submission) (mail.QueueID, error)
	Prepare(ctx context.Context, s *intake.Submission) (*intake.Prepared, error)
}

// Resolver answers the DNS questions of domain verification: resolver.Resolver.
type Resolver interface {
	mailauth.Resolver
	LookupIP(ctx context.Context, host string) ([]netip.Addr, error)
}

// Unsubscriber honours unsubscribe tokens: campaign.Service.
type Unsubscriber interface {
	ParseToken(token string) (campaign.Unsubscribed, error)
	Unsubscribe(ctx context.Context, token string) (campaign.Unsubscribed, error)
}

// Queue is what operators see of the spool: spool.Store.
type Queue interface {
	List(ctx context.Context, sel spool.Selector, cursor string, limit int) ([]spool.Info, string, error)
	Get(ctx context.Context, id mail.QueueID) (*spool.Message, []spool.Info, error)
	GetEnvelope(ctx context.Context, id mail.EnvelopeID) (*spool.Message, []spool.Info, error)
	Act(ctx context.Context, a spool.Action, sel spool.Selector, who, why string, dryRun bool) (spool.ActResult, error)
	Move(ctx context.Context, route string, sel spool.Selector, who, why string, dryRun bool) (spool.ActResult, error)
	Fail(ctx context.Context, sel spool.Selector, notices spool.Notices, who, why string, dryRun bool) (spool.ActResult, error)
	Stats(ctx context.Context) (spool.Stats, error)
	QueueStats() []spool.QueueStat
	InDoubt() int
	Admit() error
	Notes(ctx context.Context, id mail.EnvelopeID, most int) ([]spool.Note, error)
	QueueWait(q spool.Queue) spool.QueueWait
	LeasedSince(id mail.EnvelopeID) time.Time
	History(ctx context.Context, q spool.HistoryQuery, cursor string, limit int) ([]spool.OutcomeRecord, string, error)
}

// Waits tells what delivery makes a queue wait for: delivery.Scheduler.
type Waits interface {
	Waiting(ctx context.Context, q spool.Queue) delivery.Wait
	Routes() []string
}

// Deps are what a Server works with. All are needed unless said otherwise.
type Deps struct {
	DB          kv.DB // for idempotency keys and the secret of cursors
	Accounts    *account.Store
	Events      *event.Log
	Queue       Queue
	Backup      Backup        // nil: no backups
	Waits       Waits         // nil: what delivery knows is left out
	Sites       Sites         // nil: sites are not known
	Notices     spool.Notices // to senders whose mail is failed; nil: none
	Keys        *dkim.Keyring
	Suppression *suppression.List
	Contacts    *contact.Store
	Intake      Accepter
	Campaigns   Campaigns
	Templates   Templates
	Assets      Assets
	Unsubscribe Unsubscriber
	Sources     Sources
	Resolver    Resolver
	SendingIPs  []netip.Addr                           // from which mail leaves; empty: the addresses of Hostname
	Checks      map[string]func(context.Context) error // further conditions of /readyz, by name
	Certificate func() *tls.Config                     // nil: the TCP address speaks plain HTTP, for a proxy in front
	Hostname    string
	Version     api.Version
	Log         *slog.Logger
	Metrics     prometheus.Registerer
	Gatherer    prometheus.Gatherer // what /metrics shows
	Now         func() time.Time    // nil: time.Now
}

// Server serves HTTP on the configured address and on the admin socket.
type Server struct {
	cfg      Config
	deps     Deps
	log      *slog.Logger
	now      func() time.Time
	metrics  *metrics
	mux      *http.ServeMux
	routes   []route
	openapi  []byte
	pages    *pages
	cursors  cursorSealer
	inFlight idempotencyLocks
	bodies   chan struct{} // one per large body that is in memory
	probe    storeProbe
	stopping atomic.Bool

	tcp    net.Listener // nil without an address
	unix   net.Listener // nil without a socket
	server []*http.Server
	close  sync.Once
}

// Limits and deadlines that need no configuration.
const (
	headerTimeout  = 10 * time.Second
	bodyTimeout    = 30 * time.Second // of a body that nobody reads as a stream: see upload.go
	answerTimeout  = 60 * time.Second
	idleTimeout    = 60 * time.Second
	maxHeaderBytes = 64 << 10
	largeBodies    = 8
)

// New listens on the address and on the socket; nothing is answered before Run. ErrSocketInUse when another process
// answers on the socket.
func New(cfg Config, deps Deps) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	s := &Server{
		cfg: cfg, deps: deps, log: deps.Log, now: deps.Now,
		bodies: make(chan struct{}, largeBodies),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if s.cursors, err = newCursorSealer(context.Background(), deps.DB); err != nil {
		return nil, err
	}
	if s.pages, err = newPages(); err != nil {
		return nil, err
	}
	s.routes = s.table()
	s.metrics = newMetrics(deps.Metrics, s.routes, s.public())
	if s.openapi, err = openAPI(s.routes, deps.Version.Version); err != nil {
		return nil, err
	}
	s.mux = s.newMux()
	if err := s.listen(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) listen() error {
	if s.cfg.Socket != "" {
		l, err := listenUnix(s.cfg.Socket)
		if err != nil {
			return err
		}
		s.unix = netutil.LimitListener(l, s.cfg.MaxConnections)
		s.server = append(s.server, s.newServer(true))
	} else {
		s.server = append(s.server, nil)
	}
	if s.cfg.Address != "" {
		l, err := net.Listen("tcp", s.cfg.Address)
		if err != nil {
			return fmt.Errorf("listen on admin address: %w", err)
		}
		s.tcp = netutil.LimitListener(l, s.cfg.MaxConnections)
		if s.deps.Certificate != nil {
			s.tcp = tls.NewListener(s.tcp, s.deps.Certificate())
		}
		s.server = append(s.server, s.newServer(false))
	}
	return nil
}

func (s *Server) newServer(trusted bool) *http.Server {
	return &http.Server{
		Handler:           s.handler(trusted),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       bodyTimeout,
		WriteTimeout:      answerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          log.New(errorLog{s.log}, "", 0),
	}
}

// errorLog takes what net/http has to say about broken connections.
type errorLog struct{ log *slog.Logger }

func (l errorLog) Write(p []byte) (int, error) {
	l.log.Debug("connection.failed", "err", strings.TrimSpace(string(p)))
	return len(p), nil
}

// Addr is the TCP address that is listened on, nil without one.
func (s *Server) Addr() net.Addr {
	if s.tcp == nil {
		return nil
	}
	return s.tcp.Addr()
}

// Run serves until ctx ends, then lets requests go on for the grace period. It returns nil after an orderly end.
func (s *Server) Run(ctx context.Context) error {
	errs := make(chan error, 2)
	var wg sync.WaitGroup
	for i, l := range []net.Listener{s.unix, s.tcp} {
		if l == nil {
			continue
		}
		wg.Go(func() {
			name := "admin"
			if i == 0 {
				name = "admin socket"
			}
			s.log.Info("listener.opened", "listener", name, "reason", l.Addr().String())
			if err := s.server[i].Serve(l); !errors.Is(err, http.ErrServerClosed) {
				errs <- fmt.Errorf("serve %s: %w", name, err)
			}
		})
	}
	forgetting, stop := context.WithCancel(ctx)
	defer stop()
	wg.Go(func() { s.forget(forgetting) })
	var err error
	select {
	case <-ctx.Done():
	case err = <-errs:
	}
	stop()
	s.stopping.Store(true)
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.ShutdownGrace)
	defer cancel()
	for _, srv := range s.server {
		if srv != nil {
			wg.Go(func() {
				if srv.Shutdown(grace) != nil {
					_ = srv.Close()
				}
			})
		}
	}
	wg.Wait()
	return errors.Join(err, s.Close())
}

// forgetEvery is how often idempotency keys whose time is over are removed.
const forgetEvery = time.Hour

// forget removes old idempotency keys until ctx ends.
func (s *Server) forget(ctx context.Context) {
	tick := time.NewTicker(forgetEvery)
	defer tick.Stop()
	for {
		if err := s.forgetKeys(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("idempotency.failed", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Close ends listening and cuts connections. It may be called often.
func (s *Server) Close() error {
	s.close.Do(func() {
		s.stopping.Store(true)
		for _, srv := range s.server {
			if srv != nil {
				_ = srv.Close()
			}
		}
		for _, l := range []net.Listener{s.unix, s.tcp} {
			if l != nil {
				_ = l.Close()
			}
		}
	})
	return nil
}
