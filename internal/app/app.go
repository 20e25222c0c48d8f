// Package app builds every part of relayd, connects neighbours that must not know each other, starts them in order and
// stops them in reverse.
package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"relayd/admin"
	"relayd/campaign"
	"relayd/delivery"
	"relayd/dkim"
	"relayd/internal/account"
	"relayd/internal/config"
	"relayd/internal/contact"
	"relayd/internal/event"
	"relayd/internal/intake"
	"relayd/internal/kv"
	"relayd/internal/resolver"
	"relayd/internal/source"
	"relayd/internal/suppression"
	"relayd/smtpd"
	"relayd/spool"
)

// Version is set by the linker.
var Version = "dev"

// spoolFile is the store, in the data directory.
const spoolFile = "relayd.db"

// drainTime is how long SMTP sessions may finish their transaction when relayd stops.
const drainTime = 10 * time.Second

// App is a whole relayd.
type App struct {
	cfg     *config.Config
	adopt   bool
	log     *slog.Logger
	metrics *prometheus.Registry

	db        *kv.Bolt
	events    *event.Log
	spool     *spool.Store
	accounts  *account.Store
	quota     *account.Quota
	keys      *dkim.Keyring
	list      *suppression.List
	contacts  *contact.Store
	resolver  *resolver.Resolver
	intake    *intake.Intake
	campaigns *campaign.Service
	sources   *source.Service
	delivery  *delivery.Scheduler
	certs     *certificate
	smtp      *smtpd.Server
	admin     *admin.Server

	cleanup stack
}

// New opens the data directory and builds every part; listeners are bound when it returns. A second relayd on the same
// data directory gets kv.ErrInUse at once, one that was used elsewhere is refused with ErrOtherInstance. What New opened
// before an error is closed again.
func New(ctx context.Context, cfg *config.Config, log *slog.Logger, options ...Option) (_ *App, err error) {
	a := &App{cfg: cfg, log: log, metrics: prometheus.NewRegistry()}
	for _, o := range options {
		o(a)
	}
	defer func() {
		if err != nil {
			_ = a.Close()
		}
	}()
	a.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, step := range []func(context.Context) error{a.openStores, a.buildDoors, a.buildSources, a.buildActors, a.buildFace} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// openStores opens what is on disk.
func (a *App) openStores(ctx context.Context) (err error) {
	if err := os.MkdirAll(a.cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	a.db, err = kv.OpenBolt(filepath.Join(a.cfg.DataDir, spoolFile), kv.BoltOptions{
		Metrics: kv.NewMetrics(a.metrics),
		Failed:  func(err error) { a.log.Error("storage.failed", "err", err) },
	})
	if errors.Is(err, kv.ErrInUse) {
		return fmt.Errorf("another relayd runs on %s: stop it or choose another data_dir: %w", a.cfg.DataDir, err)
	}
	if err != nil {
		return fmt.Errorf("open spool: %w", err)
	}
	a.cleanup.push("store", a.db.Close)
	if err := a.claimStore(ctx); err != nil {
		return err
	}
	if a.events, err = event.Open(a.db, nil); err != nil {
		return fmt.Errorf("open event log: %w", err)
	}
	cfg := a.cfg.Spool
	cfg.Metrics, cfg.Log = a.metrics, a.log
	if a.spool, err = spool.Open(ctx, a.db, a.events, cfg); err != nil {
		return fmt.Errorf("open spool: %w", err)
	}
	if a.accounts, err = account.Open(ctx, a.db, nil); err != nil {
		return fmt.Errorf("open accounts: %w", err)
	}
	a.list = suppression.New(a.db, nil)
	a.contacts, err = contact.New(ctx, contact.Deps{
		DB: a.db, Suppressions: refusals{a.list}, Events: a.events, Log: a.log, TempDir: a.cfg.DataDir,
	})
	if err != nil {
		return err
	}
	if a.keys, err = dkim.Open(filepath.Join(a.cfg.DataDir, "dkim")); err != nil {
		return fmt.Errorf("open DKIM keys: %w", err)
	}
	return a.configureDomains()
}

// configureDomains brings the [[domain]] tables into the books.
func (a *App) configureDomains() error {
	domains := make([]account.Domain, 0, len(a.cfg.Domains))
	var keys []*dkim.Key
	for _, d := range a.cfg.Domains {
		entry := account.Domain{Name: d.Name, Account: "default", Sign: d.Sign, Configured: true}
		for _, k := range d.DKIM {
			file := k.KeyFile
			if !filepath.IsAbs(file) {
				file = filepath.Join(a.cfg.DataDir, file)
			}
			key, err := dkim.ReadFile(d.Name, k.Selector, file)
			if err != nil {
				return fmt.Errorf("load DKIM key of %s: %w", d.Name, err)
			}
			keys = append(keys, key)
			entry.Selectors = append(entry.Selectors, k.Selector)
		}
		domains = append(domains, entry)
	}
	a.keys.SetLoaded(keys)
	a.accounts.SetConfigured(domains)
	return nil
}

func (a *App) buildDoors(ctx context.Context) (err error) {
	if a.resolver, err = resolver.New(a.cfg.DNS, resolver.Deps{Metrics: a.metrics}); err != nil {
		return fmt.Errorf("set up DNS: %w", err)
	}
	cfg := intake.DefaultConfig()
	cfg.MaxAge = a.cfg.Delivery.Retry.MaxAge
	cfg.HideClient = a.cfg.SMTP.HideClientAddress
	if a.quota, err = account.OpenQuota(ctx, a.db, a.cfg.Quota, nil); err != nil {
		return err
	}
	a.intake, err = intake.New(cfg, intake.Deps{
		DB: a.db, Spool: a.spool, Keys: a.keys, Domains: a.accounts, Suppression: a.list, Erasures: a.contacts, Quota: quota{a.quota},
		Broadcaster: broadcaster{a}, Routes: routes{a}, Hostname: a.cfg.Hostname, Log: a.log,
	})
	return err
}

func (a *App) buildActors(context.Context) (err error) {
	if host := a.returnPathHost(); a.cfg.SMTP.HasInbound() {
		a.cfg.Campaign.UnsubscribeMailbox = smtpd.UnsubscribeMailbox(host).String()
	}
	a.campaigns, err = campaign.New(a.cfg.Campaign, campaign.Deps{
		DB: a.db, Spool: a.spool, Intake: a.intake, Keys: a.keys, Domains: a.accounts, Suppression: a.list,
		Events: a.events, Contacts: a.contacts, Sites: sites{a}, Quota: quota{a.quota}, Log: a.log, Metrics: a.metrics,
	})
	if err != nil {
		return fmt.Errorf("open campaigns: %w", err)
	}
	a.cleanup.push("campaigns", a.campaigns.Close)
	a.spool.OnSettle(suppressBounced(a.list))
	a.spool.OnSettle(a.campaigns.SettleHook)
	in, err := a.buildInbound()
	if err != nil {
		return err
	}
	a.delivery, err = delivery.New(a.cfg.Delivery, delivery.Deps{
		Spool: a.spool, Resolver: a.resolver, Composer: a.campaigns, Gate: gate{a.list, a.campaigns}, Door: a.intake,
		DB: a.db, Events: a.events, ReturnPath: in.returnPath, Parallel: a.campaigns.Parallel, Hostname: a.cfg.Hostname, Log: a.log, Metrics: a.metrics,
	})
	if err != nil {
		return fmt.Errorf("set up delivery: %w", err)
	}
	a.cleanup.push("delivery", a.delivery.Close)
	if a.cfg.TLS.CertFile != "" {
		if a.certs, err = loadCertificate(a.cfg.TLS.CertFile, a.cfg.TLS.KeyFile); err != nil {
			return err
		}
	}
	deps := smtpd.Deps{
		Accepter: a.intake, Authenticator: a.accounts, Senders: a.intake, Inbound: in.deps(a), Hostname: a.cfg.Hostname,
		Log: a.log, Metrics: a.metrics,
	}
	if a.certs != nil {
		deps.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return a.certs.get(), nil }
	}
	if a.smtp, err = smtpd.New(a.cfg.SMTP, deps); err != nil {
		return fmt.Errorf("open SMTP listeners: %w", err)
	}
	a.cleanup.push("smtp", a.smtp.Close)
	return nil
}

// Run starts every part and blocks until ctx ends, then stops: no new connections, no new leases, sessions and attempts
// finish within their grace, unfinished leases go back without an attempt counted. The first part that fails by itself
// stops the others and gives the error.
func (a *App) Run(ctx context.Context) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var wg sync.WaitGroup
	start := func(name string, run func(context.Context) error) {
		wg.Go(func() {
			if err := run(ctx); err != nil && !errors.Is(err, context.Canceled) {
				fail(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	start("delivery", a.delivery.Run)
	start("campaigns", a.campaigns.Run)
	start("sources", a.sources.Run)
	start("retention", a.keepRetention)
	start("admin", a.admin.Run)
	start("certificate", a.watchCertificate)
	start("smtp", a.runSMTP)
	a.log.Info("daemon.started", "version", Version, "hostname", a.cfg.Hostname)
	<-ctx.Done()
	a.log.Info("daemon.stopping")
	wg.Wait()
	a.log.Info("daemon.stopped")
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// runSMTP serves until ctx ends and then lets transactions finish.
func (a *App) runSMTP(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- a.smtp.Run(context.WithoutCancel(ctx)) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	err := a.smtp.Shutdown(drain)
	return errors.Join(err, <-done)
}

// Reload reads the certificate and the configuration again. Of the configuration it puts into force what says so
// ([delivery] and [retry]); a faulty one changes nothing. load is config.Load of the file that relayd was started with.
func (a *App) Reload(load func() (*config.Config, error)) {
	a.reloadCertificate()
	cfg, err := load()
	if err != nil {
		a.log.Error("configuration.kept", "err", err)
		return
	}
	kept, err := a.delivery.Reload(cfg.Delivery)
	if err != nil {
		a.log.Error("configuration.kept", "err", err)
		return
	}
	if kept {
		a.log.Warn("configuration.loaded", "reason", "some changes of [delivery] wait for a restart")
		return
	}
	a.log.Info("configuration.loaded")
}

func (a *App) reloadCertificate() {
	if a.certs == nil {
		return
	}
	if err := a.certs.reload(); err != nil {
		a.log.Error("certificate.kept", "err", err)
		return
	}
	a.log.Info("certificate.loaded")
}

// Close closes what New opened, last first. It is idempotent.
func (a *App) Close() error { return a.cleanup.run() }

// SMTPAddr is the bound address of SMTP listener i.
func (a *App) SMTPAddr(i int) net.Addr { return a.smtp.Addr(i) }

// SocketPath is the admin socket.
func (a *App) SocketPath() string { return a.cfg.Admin.Socket }
