package spool

import (
	"context"
	"time"
)

// GiveBack returns some envelopes of a lease to their queues, due at next, without counting an attempt and without an event:
// they were not presented. Those that are not under the lease any more are left alone.
func (s *Store) GiveBack(ctx context.Context, l *Lease, envelopes []*Envelope, next time.Time) error {
	results := make([]Result, 0, len(envelopes))
	s.queues.mu.Lock()
	for _, e := range envelopes {
		if s.queues.leased[e.ID] == l {
			results = append(results, Result{ID: e.ID, NextAttempt: next})
		}
	}
	s.queues.mu.Unlock()
	if len(results) == 0 {
		return nil
	}
	return s.settle(ctx, l, results, true, nil)
}

// Recall ends what Return has put off: the queue is offered again as soon as it has due work, unless it is taken.
func (s *Store) Recall(name Queue) {
	t := s.queues
	t.mu.Lock()
	defer t.mu.Unlock()
	q := t.queues[name]
	if q == nil || q.taken {
		return
	}
	q.notBefore = 0
	t.settleQueue(q)
	t.signal()
}
