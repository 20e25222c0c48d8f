package source

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"relayd/internal/contact"
	"relayd/internal/event"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// Contacts is where rows go: contact.Store. Everything happens in the transaction of the page.
type Contacts interface {
	ListTx(tx kv.Tx, account, ref string) (*contact.List, error)
	ApplyTx(tx kv.Tx, list contact.ListID, rows []contact.Row, o contact.ApplyOptions) (contact.Applied, error)
	RemoveTx(tx kv.Tx, list contact.ListID, to []mail.Path) (int, error)
	UnsubscribeTx(tx kv.Tx, list contact.ListID, topic string, to []mail.Path, source string) (int, error)
}

// Events is the durable log: event.Log.
type Events interface {
	Append(tx kv.Tx, e event.Event) error
}

// Deps are what a Service works with. DB, Contacts and Events are needed.
type Deps struct {
	DB       kv.DB
	Contacts Contacts
	Events   Events
	Log      *slog.Logger
	Metrics  prometheus.Registerer
	Now      func() time.Time    // nil: time.Now
	Env      func(string) string // nil: os.Getenv
}

// Service keeps sources and runs them. Its methods may be called from many goroutines. Run must be running in one
// process only of those that share a store.
type Service struct {
	cfg     Config
	deps    Deps
	log     *slog.Logger
	metrics *metrics
	wake    chan struct{}
	tests   chan struct{} // one per test under way

	mu      sync.Mutex
	active  map[id]*task
	failing map[id]bool
}

// task is a run under way.
type task struct {
	cancel context.CancelFunc
	done   chan struct{}
}

const maxTests = 4

// New returns a service; nothing runs before Run.
func New(cfg Config, deps Deps) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Service{
		cfg: cfg, deps: deps, log: deps.Log, metrics: newMetrics(deps.Metrics), wake: make(chan struct{}, 1),
		tests: make(chan struct{}, maxTests), active: map[id]*task{}, failing: map[id]bool{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.deps.Now == nil {
		s.deps.Now = time.Now
	}
	if s.deps.Env == nil {
		s.deps.Env = os.Getenv
	}
	return s, nil
}

func (s *Service) now() time.Time { return s.deps.Now().UTC().Truncate(time.Millisecond) }

// nudge makes Run look for work.
func (s *Service) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run syncs sources when they are due, at most Config.MaxRunning at a time and each only once, until ctx ends. Then it
// stops the runs under way, which go on from their watermark after the next start, and waits for them.
func (s *Service) Run(ctx context.Context) error {
	if err := s.recover(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for {
		next, err := s.startDue(ctx, &wg)
		if err == nil {
			err = s.purge(ctx)
		}
		if err != nil && ctx.Err() == nil {
			s.log.Error("source.stalled", "err", err)
			next = time.Minute
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-s.wake:
			timer.Stop()
		}
	}
}

const idleWait = 10 * time.Minute

// startDue starts what is due, as far as there is room, and returns how long nothing else is.
func (s *Service) startDue(ctx context.Context, wg *sync.WaitGroup) (time.Duration, error) {
	now := s.now()
	wait := idleWait
	var due []id
	err := s.deps.DB.View(ctx, func(tx kv.Tx) error {
		due, wait = nil, idleWait
		return tx.Scan(tableState, nil, nil, func(k, v []byte) (bool, error) {
			st, err := decodeState(v)
			if err != nil {
				return false, err
			}
			switch {
			case st.due(now):
				due = append(due, id(k))
			case st.Running.IsZero() && !st.NextAt.IsZero():
				wait = min(wait, st.NextAt.Sub(now))
			}
			return true, nil
		})
	})
	if err != nil {
		return 0, fmt.Errorf("look for sources that are due: %w", err)
	}
	for _, source := range due {
		if !s.start(ctx, source, wg) {
			break // whoever ends makes room and nudges
		}
	}
	return max(wait, time.Millisecond), nil
}

// due tells whether a run may begin: it was asked for, or its time has come.
func (st *state) due(now time.Time) bool {
	return st.Running.IsZero() && (!st.Queued.IsZero() || !st.NextAt.IsZero() && !now.Before(st.NextAt))
}

// errNotDue says that the run for which a source was due has ended since.
var errNotDue = errors.New("source is no longer due")

// start runs one source unless it runs already; false when there is no room.
func (s *Service) start(ctx context.Context, source id, wg *sync.WaitGroup) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active[source] != nil {
		return true
	}
	if len(s.active) >= s.cfg.MaxRunning {
		return false
	}
	ctx, cancel := context.WithCancel(ctx)
	t := &task{cancel, make(chan struct{})}
	s.active[source] = t
	s.metrics.running.Set(float64(len(s.active)))
	wg.Go(func() {
		defer func() {
			cancel()
			s.mu.Lock()
			delete(s.active, source)
			s.metrics.running.Set(float64(len(s.active)))
			s.mu.Unlock()
			close(t.done)
			s.nudge()
		}()
		r, err := s.begin(ctx, source)
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, errNotDue) {
				s.log.Error("source.stalled", "source", formatSource(source), "err", err)
			}
			return
		}
		r.end(ctx, s.attempt(ctx, r))
	})
	return true
}

// attempt is run.do, and a defect of ours ends only this run.
func (s *Service) attempt(ctx context.Context, r *run) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("source.panicked", "source", formatSource(r.rec.ID), "err", fmt.Sprint(p))
			err = errors.New("internal error")
		}
	}()
	return r.do(ctx)
}

// finished tells log and metrics how a run ended.
func (s *Service) finished(r *run, failure error, interrupted bool) {
	attrs := []any{
		"source", formatSource(r.rec.ID), "account", r.rec.Account, "count", r.report.Read,
		"created", r.report.Created, "updated", r.report.Updated, "rejected", r.report.Rejected,
	}
	result := "completed"
	switch {
	case interrupted:
		result = "interrupted"
		s.log.Info("source.interrupted", append(attrs, "reason", r.report.Error)...)
	case failure != nil:
		result = "failed"
		s.log.Warn("source.failed", append(attrs, "err", r.report.Error)...)
	default:
		s.log.Info("source.synced", attrs...)
	}
	s.metrics.runs.WithLabelValues(result).Inc()
	s.metrics.seconds.Observe(r.report.Seconds)
	if !interrupted {
		s.setFailing(r.rec.ID, failure != nil)
	}
}

func (s *Service) setFailing(source id, failing bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if delete(s.failing, source); failing {
		s.failing[source] = true
	}
	s.metrics.failing.Set(float64(len(s.failing)))
}

// recover ends the runs that a crash cut off. They are due at once.
func (s *Service) recover(ctx context.Context) error {
	now := s.now()
	var failing []id
	err := s.deps.DB.Update(ctx, func(tx kv.Tx) error {
		failing = nil
		cut := map[id]*state{}
		err := tx.Scan(tableState, nil, nil, func(k, v []byte) (bool, error) {
			st, err := decodeState(v)
			if err != nil {
				return false, err
			}
			if st.Failures > 0 {
				failing = append(failing, id(k))
			}
			if !st.Running.IsZero() {
				cut[id(k)] = st
			}
			return true, nil
		})
		if err != nil {
			return err
		}
		for source, st := range cut {
			rec, err := getRecord(tx, source)
			if err != nil {
				return err
			}
			r, err := getRun(tx, source, st.Running)
			if err != nil {
				return err
			}
			r.State, r.Error, r.FinishedAt = "failed", errInterrupted.Error(), &now
			if err := putRun(tx, source, st.Running, r); err != nil {
				return err
			}
			st.Last, st.Running = st.Running, id{}
			st.NextAt = st.next(&rec.Config, now, now, true)
			if err := st.askAgain(tx, source, r, now); err != nil {
				return err
			}
			if err := st.put(tx, source); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("recover sources: %w", err)
	}
	for _, source := range failing {
		s.setFailing(source, true)
	}
	return nil
}

const purgeSlice = 1000

// purge removes what epochs that are over have left, one slice a call; it nudges while there is more.
func (s *Service) purge(ctx context.Context) error {
	var old []byte
	err := s.deps.DB.View(ctx, func(tx kv.Tx) error {
		return tx.Scan(tablePurge, nil, nil, func(k, _ []byte) (bool, error) {
			old = append([]byte(nil), k...)
			return false, nil
		})
	})
	if err != nil || old == nil {
		return err
	}
	err = s.deps.DB.Update(ctx, func(tx kv.Tx) error {
		for _, table := range []kv.Table{tableRow, tableEmail, tableTodo} {
			n, err := deleteSlice(tx, table, old)
			if err != nil || n > 0 {
				return err
			}
		}
		return tx.Delete(tablePurge, old)
	})
	if err != nil {
		return fmt.Errorf("remove old entries of sources: %w", err)
	}
	s.nudge()
	return nil
}

// deleteSlice deletes the first keys with a prefix and returns how many.
func deleteSlice(tx kv.Tx, table kv.Table, prefix []byte) (int, error) {
	var keys [][]byte
	if err := tx.Scan(table, prefix, kv.PrefixEnd(prefix), func(k, _ []byte) (bool, error) {
		keys = append(keys, append([]byte(nil), k...))
		return len(keys) < purgeSlice, nil
	}); err != nil {
		return 0, err
	}
	for _, k := range keys {
		if err := tx.Delete(table, k); err != nil {
			return 0, err
		}
	}
	return len(keys), nil
}
