package delivery

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"relayd/internal/kv"
	"relayd/spool"
)

// settler makes results durable, whatever waits of one lease at once. Sessions run on meanwhile, but only a little: what
// the remote host has taken and we have not settled is what a crash would send twice.
type settler struct {
	ctx      context.Context // ends when even settling is given up
	store    *spool.Store
	notifier *notifier
	log      *slog.Logger
	metrics  *metrics
	now      func() time.Time
	settled  func(b *batch, n int) // told how many are durable

	mu        sync.Mutex
	unsettled int           // results that sessions handed in and that are not durable yet
	fewer     sync.Cond     // signalled when there are fewer
	enough    chan struct{} // closed while there are enough for one commit
	wg        sync.WaitGroup
}

// maxAhead is how many results may be unsettled before sessions wait: enough that they seldom do, since a commit takes
// whatever waits, few enough that a crash doubles little beside what was in flight.
const maxAhead = 32

// Results of bulk mail wait for others until enough are unsettled, or for gatherBulk: a commit of many costs hardly more
// than one of a few. The bound of what a crash doubles is maxAhead all the same.
const (
	enoughAhead = maxAhead / 2
	gatherBulk  = 4 * time.Millisecond
)

// start makes the settler ready. It must be called once, before add.
func (s *settler) start() {
	s.fewer.L = &s.mu
	s.enough = make(chan struct{})
	context.AfterFunc(s.ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.fewer.Broadcast()
	})
}

// wait returns when so few results are unsettled that a session may go on, or when settling is given up.
func (s *settler) wait() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.unsettled > maxAhead && s.ctx.Err() == nil {
		s.fewer.Wait()
	}
}

// add queues results of a lease.
func (s *settler) add(b *batch, done []settlement) {
	if len(done) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b.pending = append(b.pending, done...)
	s.count(len(done))
	if !b.settling {
		b.settling = true
		s.wg.Go(func() { s.drain(b) })
	}
}

// count changes the number of unsettled results. The caller holds mu.
func (s *settler) count(n int) {
	were := s.unsettled
	s.unsettled += n
	switch {
	case were < enoughAhead && s.unsettled >= enoughAhead:
		close(s.enough)
	case were >= enoughAhead && s.unsettled < enoughAhead:
		s.enough = make(chan struct{})
	}
}

// gather waits until there are enough results for one commit, but not for long.
func (s *settler) gather() {
	s.mu.Lock()
	enough := s.enough
	s.mu.Unlock()
	t := time.NewTimer(gatherBulk)
	defer t.Stop()
	select {
	case <-enough:
	case <-t.C:
	case <-s.ctx.Done():
	}
}

// drain settles what waits until nothing does.
func (s *settler) drain(b *batch) {
	for {
		if b.bulk {
			s.gather()
		}
		s.mu.Lock()
		done := b.pending
		b.pending = nil
		if len(done) == 0 {
			b.settling = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		s.settle(b, done)
		s.mu.Lock()
		s.count(-len(done))
		s.fewer.Broadcast()
		s.mu.Unlock()
	}
}

// giveBack returns envelopes of a lease to their queues in the background: nothing has happened that anybody would be told.
func (s *settler) giveBack(b *batch, envs []*spool.Envelope, next time.Time) {
	s.wg.Go(func() {
		for delay := 50 * time.Millisecond; ; delay = min(2*delay, 5*time.Second) {
			err := s.store.GiveBack(s.ctx, b.lease, envs, next)
			if err == nil {
				s.settled(b, len(envs))
				return
			}
			s.metrics.settleFails.Inc()
			s.log.Error("release.failed", "count", len(envs), "err", err)
			if s.ctx.Err() != nil || sleep(s.ctx, delay) != nil {
				return
			}
		}
	})
}

// settle makes results durable with the notices that they cause, and tries until it can or is told to give up: what
// is not settled stays under lease and is in doubt at the next start.
func (s *settler) settle(b *batch, done []settlement) {
	out := s.notifier.prepare(s.ctx, done)
	for delay := 50 * time.Millisecond; ; delay = min(2*delay, 5*time.Second) {
		err := s.store.Settle(s.ctx, b.lease, resultsOf(done), out.put()...)
		switch {
		case err == nil:
			s.publish(done)
			out.added()
			s.settled(b, len(done))
			return
		case len(done) > 1 && (errors.Is(err, spool.ErrLeaseLost) || errors.Is(err, kv.ErrNoSpace)):
			// on a full disk less at a time takes less room, and each message that goes makes some
			s.oneByOne(b, done)
			return
		case errors.Is(err, spool.ErrLeaseLost):
			s.log.Error("settle.lost", "envelope", done[0].envelope.ID.String(), "err", err)
			s.settled(b, len(done))
			return
		}
		s.metrics.settleFails.Inc()
		s.log.Error("settle.failed", "count", len(done), "err", err)
		if s.ctx.Err() != nil || sleep(s.ctx, delay) != nil {
			s.settled(b, 0)
			return
		}
	}
}

// oneByOne finds the envelope that is not ours any more, without harm for the others.
func (s *settler) oneByOne(b *batch, done []settlement) {
	for i := range done {
		s.settle(b, done[i:i+1])
	}
}

func resultsOf(done []settlement) []spool.Result {
	results := make([]spool.Result, len(done))
	for i := range done {
		results[i] = done[i].result
	}
	return results
}

// publish logs and counts what is durable now.
func (s *settler) publish(done []settlement) {
	for i := range done {
		d := &done[i]
		outcome := d.result.Outcome.String()
		s.metrics.results.WithLabelValues(outcome).Inc()
		if d.result.Outcome == spool.Delivered {
			s.metrics.octets.Add(float64(d.message.Size))
			s.metrics.wait.WithLabelValues(className(d.envelope.Class)).Observe(s.now().Sub(d.message.AcceptedAt).Seconds())
		}
		s.report(d)
	}
}

func (s *settler) report(d *settlement) {
	if !s.log.Enabled(s.ctx, slog.LevelInfo) {
		return
	}
	res := &d.result
	attrs := make([]any, 0, 24)
	attrs = append(attrs, "envelope", d.envelope.ID.String(), "from", d.message.ReversePath.String(), "to",
		d.envelope.To.String(), "attempt", d.envelope.Attempts+boolInt(res.Presented))
	if res.Host != "" {
		attrs = append(attrs, "mx", res.Host, "tls", res.TLS)
	}
	if !res.Reply.IsZero() {
		attrs = append(attrs, "code", res.Reply.Code, "status", res.Reply.Status.String(), "err", res.Reply.Text)
	}
	if res.Reason != "" {
		attrs = append(attrs, "reason", res.Reason)
	}
	if res.Outcome == spool.Deferred {
		attrs = append(attrs, "next", res.NextAttempt.UTC().Format(time.RFC3339))
	}
	switch res.Outcome {
	case spool.Delivered:
		s.log.Info("attempt.delivered", attrs...)
	case spool.Deferred:
		s.log.Info("attempt.deferred", attrs...)
	case spool.Bounced:
		s.log.Info("attempt.bounced", attrs...)
	case spool.Failed:
		s.log.Info("attempt.failed", attrs...)
	case spool.Expired:
		s.log.Info("attempt.expired", attrs...)
	case spool.Suppressed:
		s.log.Info("attempt.suppressed", attrs...)
	case spool.Cancelled:
		s.log.Info("attempt.cancelled", attrs...)
	}
}
