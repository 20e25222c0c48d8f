package delivery

import (
	"math/rand/v2"
	"time"

	"relayd/internal/mail"
	"relayd/spool"
)

// This file brings queues from the spool to their sites, and settles those that have none.

// take starts look-ups for due queues, as many as may run, and tells when the next queue falls due. The places are taken
// before the queues, so that no look-up that ends meanwhile is missed.
func (s *Scheduler) take(now time.Time) time.Time {
	s.mu.Lock()
	free := maxLookups - s.lookups
	s.lookups += free
	s.mu.Unlock()
	if free == 0 {
		return time.Time{} // the first look-up to end wakes us
	}
	queues := s.store.Take(now, free)
	s.mu.Lock()
	s.lookups -= free - len(queues)
	s.mu.Unlock()
	for _, q := range queues {
		s.wg.Go(func() { s.place(q) })
	}
	if len(queues) == free {
		return time.Time{} // as above, or woke us already
	}
	return s.store.NextDue()
}

// place finds the route of a queue and hands the queue to its site.
func (s *Scheduler) place(q spool.Queue) {
	slow, done := false, false
	late := time.AfterFunc(slowLookup, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !done && s.slow < maxSlow {
			slow = true
			s.slow++
			s.freeLookup()
		}
	})
	defer func() {
		late.Stop()
		s.mu.Lock()
		defer s.mu.Unlock()
		if done = true; slow {
			s.slow--
		} else {
			s.freeLookup()
		}
	}()
	r, err := s.router.resolve(s.working, q)
	if err == nil && r.fallback != "" && s.isSuspended(r.key) {
		r, err = s.router.standIn(s.working, q, r)
	}
	switch {
	case err != nil && s.working.Err() != nil:
		s.store.Return(q, time.Time{})
	case err != nil:
		s.unresolved(q, err)
	case r.refusal != nil:
		s.forgetDomain(q.Domain)
		s.forgetSite(q.Domain)
		s.refuse(q, r.refusal)
	default:
		s.forgetDomain(q.Domain)
		s.join(q, r)
	}
}

// freeLookup gives up the place of a look-up. The caller holds mu.
func (s *Scheduler) freeLookup() {
	if s.lookups--; s.lookups == maxLookups-1 {
		s.poke()
	}
}

func (s *Scheduler) forgetDomain(domain string) {
	s.mu.Lock()
	delete(s.domains, domain)
	s.mu.Unlock()
}

// unresolved sets a queue aside whose domain could not be looked up; no attempt is counted.
func (s *Scheduler) unresolved(q spool.Queue, cause error) {
	s.mu.Lock()
	if len(s.domains) >= maxDomains {
		clear(s.domains)
	}
	s.domains[q.Domain]++
	n := s.domains[q.Domain]
	delay := backoff(s.cfg.SuspendFirst, s.cfg.SuspendMax, n, rand.Float64())
	s.mu.Unlock()
	until := s.now().Add(delay)
	if n == 1 {
		s.metrics.suspensions.WithLabelValues(causeDNS).Inc()
		attrs := []any{"domain", q.Recipient(), "delay", delay.Round(time.Second).String(), "err", cause}
		if from := q.Sender(); from != "" {
			attrs = append(attrs, "from", from)
		}
		s.log.Info("domain.unresolved", attrs...)
	}
	s.setAside([]spool.Queue{q}, mail.Reply{
		Code: 451, Status: mail.Status{Class: 4, Subject: 4, Detail: 3}, Text: "Name servers of the domain could not be asked",
	}, "", until)
	s.store.Return(q, until)
}

// refuse settles all that waits for a domain that takes no mail.
func (s *Scheduler) refuse(q spool.Queue, r *refusal) {
	s.leaseAll([]spool.Queue{q}, func(e *spool.Envelope, m *spool.Message) settlement {
		res := r.result(e)
		res.At = s.now()
		return settlement{message: m, envelope: e, result: res}
	}, maxLease, func(n, _ int) bool { return n == maxLease })
	s.store.Return(q, time.Time{})
}

// setAside defers what is due in queues whose site or domain is out of reach, and lets expire what has waited too long.
// The reply is noted with the first envelopes, so that an operator sees why they wait; the rest is left alone unless
// envelopes expire.
func (s *Scheduler) setAside(queues []spool.Queue, reply mail.Reply, host string, until time.Time) {
	s.leaseAll(queues, func(e *spool.Envelope, m *spool.Message) settlement {
		res := s.retrier.unpresented(m, e, reply, s.now(), until)
		res.Host = host
		return settlement{message: m, envelope: e, result: res}
	}, minLease, func(n, final int) bool { return n == minLease && final > 0 })
}

// leaseAll leases from queues, most at a time, and settles each envelope at once, as long as more tells to go on.
func (s *Scheduler) leaseAll(
	queues []spool.Queue, end func(*spool.Envelope, *spool.Message) settlement, most int, more func(n, final int) bool, // final: those that ended, or whose senders hear of a delay
) {
	for !s.isStopping() {
		l, err := s.store.Lease(s.working, queues, s.now(), most)
		if err != nil {
			if s.working.Err() == nil {
				s.log.Error("lease.failed", "err", err)
			}
			return
		}
		if len(l.Envelopes) == 0 {
			return
		}
		b := s.track(l, nil)
		final := 0
		var done []settlement
		for _, e := range l.Envelopes {
			m := l.Messages[e.ID.Message]
			if m == nil {
				continue
			}
			d := end(e, m)
			if d.result.Outcome != spool.Deferred || s.settler.notifier.late(&d) {
				final++
			}
			done = append(done, d)
		}
		s.settler.settle(b, done)
		s.abandonRest(b, s.now().Add(localDelay))
		if !more(len(l.Envelopes), final) {
			return
		}
	}
}
