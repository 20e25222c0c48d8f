package delivery

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"relayd/internal/event"
	"relayd/internal/intake"
	"relayd/internal/kv"
	"relayd/internal/mail"
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
// error defers it without spending an attempt. It may be made in room, of which nothing else is used meanwhile. Called from
// many goroutines.
type Composer interface {
	Compose(ctx context.Context, m *spool.Message, e *spool.Envelope, room []byte) ([]byte, error)
}

// Gate is asked right before MAIL FROM whether the envelopes of a transaction are still wanted; those of a campaign come
// one at a time. There is a reason for each: "" lets it pass, "cancelled" ends it as cancelled, "paused" puts it back, any
// other ends it as suppressed. An error defers all of them without spending an attempt, a *NotYet until its time. Called
// from many goroutines.
type Gate interface {
	Blocked(ctx context.Context, m *spool.Message, envs []*spool.Envelope) (reasons []string, err error)
}

// Door takes our own notices in: intake.Intake.
type Door interface {
	Prepare(ctx context.Context, s *intake.Submission) (*intake.Prepared, error)
}

// Deps are what a Scheduler works with.
type Deps struct {
	Spool    *spool.Store
	DB       kv.DB      // keeps what is known of sites; nil: it is forgotten at the end
	Events   *event.Log // learns what operators do to sites; nil: nobody does
	Resolver Resolver
	Composer Composer // nil: no campaigns
	Gate     Gate     // nil: everything is wanted
	Door     Door     // nil: no notices to senders
	// ReturnPath gives the reverse-path under which a campaign's envelope leaves; nil: the message's own.
	ReturnPath func(m *spool.Message, e *spool.Envelope) mail.Path
	// Parallel is how many transactions of a campaign, or of another stream, may run at a time, 0 for any number. It is
	// asked under the scheduler's lock and must not call back; nil: any number.
	Parallel func(stream string) int
	Hostname string                // EHLO name, Reporting-MTA
	Log      *slog.Logger          // nil: silent
	Metrics  prometheus.Registerer // nil: not registered
	Now      func() time.Time      // the clock; nil: Config.Now, then time.Now
	Roots    *x509.CertPool        // of smarthost certificates, and of MX hosts under REQUIRETLS; nil: the system's
}

// Scheduler drains the spool: see the journey in the package's comment.
type Scheduler struct {
	cfg      Config // under mu where Reload changes it
	parallel func(stream string) int
	store    *spool.Store
	router   *router
	engine   *engine
	pool     *pool
	rollup   atomic.Pointer[providerRules]
	memory   *memory
	settler  *settler
	retrier  *retrier
	rules    atomic.Pointer[Classifier]
	log      *slog.Logger
	metrics  *metrics
	now      func() time.Time

	taking  context.Context // ends when no more work is taken
	working context.Context // ends when work is abandoned
	abandon context.CancelFunc
	giveUp  context.CancelFunc // of the settler
	wake    chan struct{}
	wg      sync.WaitGroup // look-ups, leases, workers
	running sync.Mutex     // one Run at a time

	mu        sync.Mutex
	stopping  bool
	sites     map[string]*site
	providers map[string]*limiter // of those that a site belongs to
	accounts  map[string]*limiter
	campaigns map[string]*limiter
	sources   map[string]*limiter
	alarms    alarmHeap
	batches   map[*batch]struct{}
	starved   [standings][]*site
	first     standing       // whose list is called first next time
	bare      [standings]int // of them that have no connection
	called    int            // sites that lease for a connection that is kept for them
	crowded   []*site        // have bulk ready while all that bulk may have is in use
	bareBulk  int            // of them that send none

	yielding, yieldingBulk int // workers that end to give way to bare sites, for a connection or for bulk

	asked     map[mail.EnvelopeID]struct{} // got a wish for a pause as their last answer
	streams   map[flowKey]int              // lane of the last lease
	domains   map[string]int               // failed look-ups in a row
	known     map[string]knownSite         // site of each queue domain
	lookups   int
	slow      int // look-ups that gave up their place
	leased    int // envelopes under lease at sites
	workers   int
	bulk      int                  // of them
	fresh     map[*worker]struct{} // that connect to a site where no session was opened since it failed
	unproven  int                  // their number
	suspects  int                  // workers at sites that failed last time
	suspended int
	swept     time.Time
	purged    time.Time // when the memory was last
}

// Bounds of what is remembered and of what runs.
const (
	maxLookups = 256
	maxSlow    = 256                    // of those that take longer than
	slowLookup = 250 * time.Millisecond // leave their places to others: many domains of a list may have dead name servers
	maxStreams = 10_000
	maxAsked   = 10_000
	maxDomains = 10_000
)

// New checks cfg and returns a scheduler that does nothing before Run.
func New(cfg Config, deps Deps) (*Scheduler, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	rules, err := NewClassifier(cfg.ReplyRules)
	if err != nil {
		return nil, err
	}
	if deps.Spool == nil || deps.Resolver == nil || deps.Hostname == "" {
		return nil, errors.New("make scheduler: spool, resolver and hostname must be given")
	}
	now := deps.Now
	if now == nil {
		now = cfg.Now
	}
	if now == nil {
		now = time.Now
	}
	log := deps.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := newRouteTable(cfg).checkSources(); err != nil {
		return nil, err
	}
	r := newRouter(cfg, deps)
	rollup, err := cfg.providers()
	if err != nil {
		return nil, err
	}
	m := newMetrics(deps.Metrics)
	s := &Scheduler{
		cfg: cfg, parallel: deps.Parallel, store: deps.Spool, router: r, retrier: newRetrier(cfg), log: log, metrics: m, now: now,
		pool: newPool(cfg, now), wake: make(chan struct{}, 1), sites: map[string]*site{}, batches: map[*batch]struct{}{},
		asked: map[mail.EnvelopeID]struct{}{}, streams: map[flowKey]int{}, domains: map[string]int{}, known: map[string]knownSite{}, fresh: map[*worker]struct{}{},
		providers: map[string]*limiter{}, accounts: map[string]*limiter{}, campaigns: map[string]*limiter{}, sources: map[string]*limiter{},
	}
	if s.memory, err = newMemory(deps.DB, deps.Events, log, now); err != nil {
		return nil, err
	}
	s.rules.Store(rules)
	s.rollup.Store(rollup)
	s.working, s.abandon = context.WithCancel(context.Background())
	settling, giveUp := context.WithCancel(context.Background())
	s.giveUp = giveUp
	s.settler = &settler{
		ctx: settling, store: deps.Spool, log: log, metrics: m, now: now, settled: s.settled,
		notifier: &notifier{door: deps.Door, hostname: deps.Hostname, log: log, metrics: m, now: now, expires: s.retrier.expires, body: deps.Spool.WriteBody},
	}
	s.settler.notifier.delay.Store(int64(cfg.DelayNotice))
	s.settler.start()
	s.engine = &engine{
		store: deps.Spool, composer: deps.Composer, gate: deps.Gate, retrier: s.retrier, metrics: m, now: now,
		returnPath: deps.ReturnPath, classifier: s.rules.Load,
		tries: cfg.ConnectTries, wait: sleep,
		opener: &opener{
			hostname: deps.Hostname, timeouts: cfg.Timeouts.withDefaults(), network: dialer{cfg.ConnectTimeout}, roots: deps.Roots,
			brokenTLS: newHostSet(), knownTLS: newHostSet(), blamed: newHostSet(), log: log, metrics: m, now: now,
		},
		book: &addressBook{resolver: deps.Resolver, private: cfg.AllowPrivateMX, dead: newHostSet(), now: now},
	}
	return s, nil
}

// settleTime is how long results may take to become durable after everything else has stopped.
const settleTime = 10 * time.Second

// Run delivers until ctx ends; then it takes no more work, lets attempts finish for Config.Grace, abandons what is
// left, gives every unfinished lease back without counting an attempt, and returns nil. It can run once.
func (s *Scheduler) Run(ctx context.Context) error {
	if !s.running.TryLock() {
		return errors.New("run scheduler: it runs, or has run, already")
	}
	s.mu.Lock()
	s.taking = ctx
	s.mu.Unlock()
	s.loop(ctx)
	s.drain()
	return nil
}

// Close abandons what runs: Run returns as soon as leases are given back. It is idempotent.
func (s *Scheduler) Close() error {
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	s.abandon()
	s.poke()
	return nil
}

func (s *Scheduler) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// loop takes due queues from the spool and sends each on its way. It never waits for anything but news.
func (s *Scheduler) loop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := s.now()
		next := s.take(now)
		if t := s.pool.reap(); !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
		s.sweepSites(now)
		s.mu.Lock()
		if t := s.ring(now); !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
		s.mu.Unlock()
		wait := time.Minute
		if s.hurry(now) {
			wait = slowConnect / 4
		}
		if !next.IsZero() {
			wait = min(max(next.Sub(now), 0), wait)
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-s.working.Done():
			return
		case <-s.store.Changed():
		case <-s.wake:
		case <-timer.C:
		}
	}
}

func (s *Scheduler) isStopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopping
}

// track notes a lease, so that it is given back at the end whatever happens.
func (s *Scheduler) track(l *spool.Lease, of *site) *batch {
	b := &batch{lease: l, site: of, left: len(l.Envelopes), bulk: l.Envelopes[0].Class == spool.Bulk}
	s.mu.Lock()
	s.batches[b] = struct{}{}
	s.mu.Unlock()
	return b
}

// abandonRest gives back what of a lease is not settled.
func (s *Scheduler) abandonRest(b *batch, next time.Time) {
	s.mu.Lock()
	_, open := s.batches[b]
	left := b.left
	delete(s.batches, b)
	s.mu.Unlock()
	if !open {
		return
	}
	if err := s.store.Release(s.settler.ctx, b.lease, next); err != nil {
		s.log.Error("release.failed", "count", left, "err", err)
	}
}

// settled is told by the settler when results are durable: their site may lease more.
func (s *Scheduler) settled(b *batch, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b.left -= n
	if b.left == 0 {
		delete(s.batches, b)
	}
	if st := b.site; st != nil {
		st.leased -= n
		b.flow.leased -= n
		s.leased -= n
		st.feed(b.flow)
		s.kick(st)
		s.tidy(st, b.flow)
	}
}

// drain ends Run: ready work is given back, attempts finish or are abandoned, results become durable.
func (s *Scheduler) drain() {
	s.mu.Lock()
	s.stopping = true
	for _, st := range s.sites {
		for _, f := range st.flows {
			st.takeReady(f)
		}
	}
	for w := range s.fresh { // nothing is presented before there is a session
		if w.cancel != nil {
			w.cancel()
		}
	}
	s.mu.Unlock()
	finished := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(finished)
	}()
	grace := time.NewTimer(s.cfg.Grace)
	defer grace.Stop()
	select {
	case <-finished:
	case <-grace.C:
		s.mu.Lock()
		n := s.workers
		s.mu.Unlock()
		s.log.Warn("delivery.abandoned", "count", n)
	case <-s.working.Done():
	}
	s.abandon()
	<-finished
	s.pool.close()
	limit := time.AfterFunc(settleTime, s.giveUp)
	defer limit.Stop()
	s.settler.wg.Wait()
	s.mu.Lock()
	open := make([]*batch, 0, len(s.batches))
	for b := range s.batches {
		open = append(open, b)
	}
	s.mu.Unlock()
	for _, b := range open {
		s.abandonRest(b, s.now())
	}
	s.keepAll()
	s.giveUp()
	s.log.Info("delivery.stopped", "count", len(open))
}
