package delivery

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"relayd/dkim"
	"relayd/internal/account"
	"relayd/internal/event"
	"relayd/internal/intake"
	"relayd/internal/kv"
	"relayd/internal/kv/kvtest"
	"relayd/internal/mail"
	"relayd/internal/resolver"
	"relayd/internal/resolver/resolvertest"
	"relayd/internal/suppression"
	"relayd/internal/testutil"
	"relayd/spool"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a scheduler between a real spool, a real resolver and a real DNS server.
type rig struct {
	t       testing.TB
	skew    *atomic.Int64 // of the clock, in nanoseconds
	cfg     Config
	deps    Deps
	db      *kv.Bolt
	store   *spool.Store
	dns     *resolvertest.Server
	sched   *Scheduler
	logs    *logBook
	reg     *prometheus.Registry
	stop    context.CancelFunc
	stopped chan struct{}
	final   map[mail.EnvelopeID]spool.Settled
	mu      sync.Mutex
	instant bool
	network network // nil: the real one
}

// newRig builds a rig whose MX hosts are expected at port; change it before start.
func newRig(t testing.TB, port int, zones map[string][]string) *rig {
	t.Helper()
	server, err := resolvertest.NewServer(zones)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	res, err := resolver.New(resolver.Config{Servers: []string{server.Addr}}, resolver.Deps{})
	require.NoError(t, err)
	r := newRigOn(t, res)
	r.dns = server
	r.cfg.MXPort, r.cfg.AllowPrivateMX = port, true
	r.cfg.SuspendFirst, r.cfg.SuspendMax = 50*time.Millisecond, 200*time.Millisecond
	r.cfg.ConnectTries = 1
	r.cfg.Grace = 5 * time.Second
	return r
}

// newRigOn builds a rig on a resolver, with the defaults.
func newRigOn(t testing.TB, res Resolver) *rig {
	t.Helper()
	_, bench := t.(*testing.B)
	bolt, err := kv.OpenBolt(filepath.Join(t.TempDir(), "spool.db"), kv.BoltOptions{NoSync: !bench})
	require.NoError(t, err)
	db := kv.DB(bolt)
	if !bench {
		db = kvtest.Twice(bolt)
	}
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	events, err := event.Open(db, nil)
	require.NoError(t, err)
	skew := new(atomic.Int64)
	now := func() time.Time { return time.Now().Add(time.Duration(skew.Load())) }
	store, err := spool.Open(t.Context(), db, events, spool.Config{Now: now})
	require.NoError(t, err)
	keys, err := dkim.Open(filepath.Join(t.TempDir(), "dkim"))
	require.NoError(t, err)
	door, err := intake.New(intake.DefaultConfig(), intake.Deps{
		Spool: store, Keys: keys, Domains: noDomains{},
		Suppression: suppression.New(db, nil), Hostname: "relay.test",
	})
	require.NoError(t, err)

	r := &rig{t: t, skew: skew, db: bolt, store: store, logs: newLogBook(t), reg: prometheus.NewRegistry(), final: map[mail.EnvelopeID]spool.Settled{}}
	store.OnSettle(func(_ kv.Tx, settled []spool.Settled) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, s := range settled {
			r.final[s.Envelope.ID] = s
		}
		return nil
	})
	r.cfg = DefaultConfig()
	r.deps = Deps{
		Spool: store, DB: db, Events: events, Resolver: res, Door: door, Hostname: "relay.test", Log: slog.New(r.logs), Metrics: r.reg,
		Now: now,
	}
	return r
}

type noDomains struct{}

func (noDomains) Domain(string) (account.Domain, bool) { return account.Domain{}, false }

func (r *rig) start() *rig {
	r.t.Helper()
	var err error
	r.sched, err = New(r.cfg, r.deps)
	require.NoError(r.t, err)
	if r.instant {
		r.sched.engine.wait = func(ctx context.Context, _ time.Duration) error { return ctx.Err() }
	}
	if r.network != nil {
		r.sched.engine.opener.network = r.network
	}
	r.stopped = make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	go func() {
		defer close(r.stopped)
		_ = r.sched.Run(ctx)
	}()
	r.t.Cleanup(r.shutdown)
	return r
}

func (r *rig) shutdown() {
	r.stop()
	<-r.stopped
}

// envelope options of submit.
type submission struct {
	from     string
	account  string
	to       []string
	size     int
	class    spool.Class
	stream   string
	retry    spool.RetryPolicy
	expires  time.Duration
	header   string
	eightBit bool
	notify   string
	campaign string
	mark     func(*spool.Message)
}

func (r *rig) submit(s submission) mail.QueueID {
	r.t.Helper()
	now := r.deps.Now()
	if s.from == "" {
		s.from = "sender@sender.example"
	}
	if s.class == 0 {
		s.class = spool.Transactional
	}
	if s.account == "" {
		s.account = "default"
	}
	if s.stream == "" {
		s.stream = "transactional"
	}
	if s.expires == 0 {
		s.expires = 24 * time.Hour
	}
	id := mail.NewQueueID(now)
	raw := testutil.Message("sender@sender.example", s.to[0], "test "+id.String(), max(s.size, 500))
	header, body, _ := strings.Cut(raw, "\r\n\r\n")
	m := &spool.Message{
		ID: id, Account: s.account, Stream: s.stream, Class: s.class, Campaign: s.campaign,
		Header: []byte(header + "\r\n" + s.header), Size: int64(len(raw) + len(s.header)), EightBit: s.eightBit,
		MessageID: "<x@test.example>", Subject: "test", AcceptedAt: now, ExpiresAt: now.Add(s.expires), Retry: s.retry,
	}
	if s.mark != nil {
		s.mark(m)
	}
	if s.from != "<>" {
		m.ReversePath = mail.MustParsePath(s.from)
	}
	var envs []*spool.Envelope
	for i, to := range s.to {
		p := mail.MustParsePath(to)
		domain := p.Domain
		if len(r.cfg.Rules) > 0 { // as the door does
			domain = (&Scheduler{router: newRouter(r.cfg, r.deps)}).QueueDomain(s.account, s.stream, m.ReversePath, p)
		}
		envs = append(envs, &spool.Envelope{
			ID: mail.EnvelopeID{Message: id, N: uint64(i)}, Queue: spool.Queue{Account: s.account, Stream: s.stream, Domain: domain},
			Class: s.class, To: p, NextAttempt: now, Notify: s.notify,
		})
	}
	w := r.store.NewBody(r.t.Context(), id)
	if s.campaign == "" {
		_, err := w.Write([]byte(body))
		require.NoError(r.t, err)
	} else {
		m.Header, m.Size, w = nil, 0, nil
	}
	require.NoError(r.t, r.store.Commit(r.t.Context(), m, w, envs, nil))
	return id
}

// send submits a message to recipients.
func (r *rig) send(to ...string) mail.QueueID { return r.submit(submission{to: to}) }

// outcome waits for the final result of the nth recipient.
func (r *rig) outcome(id mail.QueueID, n uint64) spool.Settled {
	r.t.Helper()
	eid := mail.EnvelopeID{Message: id, N: n}
	r.logs.until(r.t, "the end of "+eid.String(), func(lines []logLine) bool { // told after it is durable
		for _, l := range lines {
			if l.attrs["envelope"] == eid.String() && strings.HasPrefix(l.msg, "attempt.") && l.msg != "attempt.deferred" {
				return true
			}
		}
		return false
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.final[eid]
}

// deferred waits until envelope n of the message was deferred and returns it as it waits.
func (r *rig) deferred(id mail.QueueID, n uint64) *spool.Envelope {
	r.t.Helper()
	eid := mail.EnvelopeID{Message: id, N: n}
	r.logs.wait(r.t, "attempt.deferred", func(l logLine) bool { return l.attrs["envelope"] == eid.String() })
	list, err := r.store.ListEnvelopes(r.t.Context(), id, ^uint64(0), 1000)
	require.NoError(r.t, err)
	for _, e := range list {
		if e.Envelope.ID == eid {
			return &e.Envelope
		}
	}
	require.Fail(r.t, "envelope is gone", eid.String())
	return nil
}

// metric returns the value of a counter or gauge.
func (r *rig) metric(name string, label ...string) float64 {
	r.t.Helper()
	all, err := r.reg.Gather()
	require.NoError(r.t, err)
	for _, f := range all {
		if f.GetName() != "relayd_delivery_"+name {
			continue
		}
		for _, m := range f.GetMetric() {
			if len(label) == 0 || len(m.GetLabel()) == 1 && m.GetLabel()[0].GetValue() == label[0] {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	require.Fail(r.t, "no such metric", name)
	return 0
}

// logBook keeps log lines and lets tests wait for them: they are written after what they tell of is durable.
type logBook struct {
	t       testing.TB
	mu      sync.Mutex
	lines   []logLine
	changed chan struct{}
}

type logLine struct {
	level slog.Level
	msg   string
	attrs map[string]string
}

func newLogBook(t testing.TB) *logBook { return &logBook{t: t, changed: make(chan struct{})} }

func (b *logBook) Enabled(context.Context, slog.Level) bool { return true }
func (b *logBook) WithAttrs([]slog.Attr) slog.Handler       { return b }
func (b *logBook) WithGroup(string) slog.Handler            { return b }

func (b *logBook) Handle(_ context.Context, rec slog.Record) error {
	l := logLine{rec.Level, rec.Message, map[string]string{}}
	rec.Attrs(func(a slog.Attr) bool {
		l.attrs[a.Key] = fmt.Sprint(a.Value.Any())
		return true
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, l)
	close(b.changed)
	b.changed = make(chan struct{})
	return nil
}

// wait returns the first line with that message that ok likes.
func (b *logBook) wait(t testing.TB, msg string, ok func(logLine) bool) (found logLine) {
	t.Helper()
	b.until(t, msg, func(lines []logLine) bool {
		for _, l := range lines {
			if l.msg == msg && (ok == nil || ok(l)) {
				found = l
				return true
			}
		}
		return false
	})
	return found
}

func (b *logBook) until(t testing.TB, what string, ok func([]logLine) bool) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		b.mu.Lock()
		changed, lines := b.changed, b.lines
		b.mu.Unlock()
		if ok(lines) {
			return
		}
		select {
		case <-changed:
		case <-limit:
			for _, l := range lines[max(0, len(lines)-12):] {
				t.Log(l.level, l.msg, l.attrs)
			}
			t.Fatal("waited too long for ", what)
		}
	}
}

// count tells how many lines have that message.
func (b *logBook) count(msg string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, l := range b.lines {
		if l.msg == msg {
			n++
		}
	}
	return n
}

// sleepless makes the waits inside an attempt short.
func (r *rig) sleepless() *rig {
	r.instant = true
	return r
}
