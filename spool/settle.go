package spool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"relayd/internal/event"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// settling is one result with its records encoded, so that its transaction is short.
type settling struct {
	Settled
	bit    int    // in the records of the lease
	key    []byte // of the envelope
	record []byte // outcome record of a final result
	event  event.Event
	put    place // where the transaction stood a deferred one
}

// settling brings a copy of the envelope up to date with its result.
func (s *Store) settling(m *Message, envelope *Envelope, r Result, now time.Time) settling {
	if r.At.IsZero() {
		r.At = now
	}
	e := *envelope
	if r.Presented {
		e.Attempts++
	}
	if !r.Reply.IsZero() || r.Host != "" {
		e.LastReply, e.LastHost, e.LastAt = r.Reply, r.Host, r.At
	}
	w := settling{Settled: Settled{Message: m, Envelope: &e, Result: r}, key: envelopeKey(e.ID)}
	if r.Outcome == Deferred {
		e.NextAttempt = r.NextAttempt
		if e.NextAttempt.IsZero() {
			e.NextAttempt = r.At
		}
		e.Deferred = e.NextAttempt.After(now)
	} else {
		w.record = appendOutcome(make([]byte, 0, 192), &OutcomeRecord{
			Outcome: r.Outcome, SettledAt: r.At, Queue: e.Queue, To: e.To, Reason: r.Reason, Reply: r.Reply, Host: r.Host,
			TLS: r.TLS, Attempts: e.Attempts, InDoubt: e.InDoubt, AcceptedAt: m.AcceptedAt, From: m.ReversePath,
			MessageID: m.MessageID, Subject: m.Subject,
		})
	}
	w.event = event.Event{
		Type: "message." + r.Outcome.String(), At: r.At, Account: m.Account, Envelope: e.ID.String(), Stream: m.Stream,
		Campaign: m.Campaign, From: m.ReversePath.String(), To: e.To.String(), Attempt: e.Attempts, Host: r.Host,
		TLS: r.TLS, Reason: r.Reason,
	}
	if !r.Reply.IsZero() {
		w.event.Reply = &w.Result.Reply
	}
	return w
}

// Settle makes the results durable in one transaction with the hooks: final outcomes remove their envelope, a deferred
// one returns to its queue. Envelopes of the lease without a result stay leased. ErrLeaseLost when one is not under the
// lease: then nothing is settled. extra runs in the same transaction, last, maybe more than once. When Settle returns
// another error the lease goes on, and Settle may be called again.
func (s *Store) Settle(ctx context.Context, l *Lease, results []Result, extra ...func(kv.Tx) error) error {
	start := time.Now()
	s.pressure.begin(s.now())
	defer func() { s.pressure.end(s.now(), time.Since(start)) }()
	if err := s.settle(ctx, l, results, false, extra); err != nil {
		return err
	}
	s.metrics.seconds.WithLabelValues("settle").Observe(time.Since(start).Seconds())
	return nil
}

// settle is Settle, and Release where quiet is set: then nothing has happened that an event would tell.
func (s *Store) settle(ctx context.Context, l *Lease, results []Result, quiet bool, extra []func(kv.Tx) error) error {
	if len(results) == 0 && len(extra) == 0 {
		return nil
	}
	all, err := s.settlings(l, results)
	var work []settling
	if err == nil {
		err = s.db.Update(ctx, func(tx kv.Tx) (err error) {
			work, err = s.settleTx(tx, l, all, quiet, extra)
			return err
		})
	}
	if err != nil {
		if errors.Is(err, ErrLeaseLost) {
			s.metrics.leaseLost.Inc()
		}
		return fmt.Errorf("settle: %w", err)
	}
	moves := make([]move, len(work))
	for i := range work {
		w := &work[i]
		moves[i] = move{
			id: w.Envelope.ID, queue: w.Envelope.Queue, class: w.Envelope.Class, from: inFlight, to: w.put,
			next: w.Envelope.NextAttempt,
		}
		if !quiet {
			s.metrics.settled.WithLabelValues(w.Result.Outcome.String()).Inc()
		}
	}
	s.queues.apply(moves)
	return nil
}

// settlings finds the envelopes of the results in the lease.
func (s *Store) settlings(l *Lease, results []Result) ([]settling, error) {
	work := make([]settling, 0, len(results))
	now := s.now()
	seen := make(map[mail.EnvelopeID]bool, len(results))
	for _, r := range results {
		i, ok := l.index[r.ID]
		if !ok || seen[r.ID] {
			return nil, fmt.Errorf("envelope %s: %w", r.ID, ErrLeaseLost)
		}
		if r.Outcome != Deferred && !r.Outcome.final() {
			return nil, fmt.Errorf("envelope %s: %w: outcome %d", r.ID, ErrInvalid, r.Outcome)
		}
		seen[r.ID] = true
		e := l.Envelopes[i]
		w := s.settling(l.Messages[e.ID.Message], e, r, now)
		w.bit = l.bits[i]
		work = append(work, w)
	}
	return work, nil
}

// settleTx returns the part of work that it settled: all of it, unless quiet is set.
func (s *Store) settleTx(tx kv.Tx, l *Lease, work []settling, quiet bool, extra []func(kv.Tx) error) ([]settling, error) {
	if err := s.checkOwner(tx); err != nil {
		return nil, err
	}
	work, err := endLease(tx, l, work, quiet)
	if err != nil {
		return nil, err
	}
	if err := s.putBack(tx, work, quiet); err != nil {
		return nil, err
	}
	if err := s.finish(tx, work); err != nil {
		return nil, err
	}
	for _, fn := range extra {
		if err := fn(tx); err != nil {
			return nil, err
		}
	}
	return work, nil
}

// finish makes the final results among work durable and removes what they leave behind.
func (s *Store) finish(tx kv.Tx, work []settling) error {
	var n counts
	if err := removeFinished(tx, work); err != nil {
		return err
	}
	if err := s.putOutcomes(tx, work, &n); err != nil {
		return err
	}
	return addCounts(tx, &n)
}

// putBack returns the deferred ones to their queues, or to the held ones where an operator has asked for it meanwhile.
func (s *Store) putBack(tx kv.Tx, work []settling, quiet bool) error {
	var keys [][]byte
	for i := range work {
		if work[i].Result.Outcome == Deferred {
			keys = append(keys, work[i].key)
		}
	}
	if keys == nil {
		return nil
	}
	records, err := tx.GetMany(tableEnvelope, keys)
	if err != nil {
		return err
	}
	for i := range work {
		w := &work[i]
		if w.Result.Outcome != Deferred {
			continue
		}
		stored, err := decodeStored(w.Envelope.ID, records[0])
		if err != nil {
			return err
		}
		records = records[1:]
		w.Envelope.Held = stored.Held
		if w.put, err = putWaiting(tx, w.Envelope); err != nil {
			return err
		}
		if err := tx.Put(tableEnvelope, w.key, appendEnvelope(nil, w.Envelope)); err != nil {
			return err
		}
		if quiet {
			continue
		}
		if err := s.events.Append(tx, w.event); err != nil {
			return err
		}
		r := &w.Result
		err = s.putNote(tx, w.Envelope.ID, &Note{
			At: r.At, Event: r.Outcome.String(), Attempt: w.Envelope.Attempts, Reply: r.Reply, Host: r.Host, TLS: r.TLS,
			Reason: r.Reason,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// putOutcomes writes the outcome, what finds it, the event and what the hooks add for the final results among work, and
// counts them.
func (s *Store) putOutcomes(tx kv.Tx, work []settling, n *counts) error {
	final := make([]Settled, 0, len(work))
	index := make([]indexed, 0, len(work))
	for i := range work {
		w := &work[i]
		if !w.Result.Outcome.final() {
			continue
		}
		if err := tx.Put(tableOutcome, w.key, w.record); err != nil {
			return err
		}
		if err := s.events.Append(tx, w.event); err != nil {
			return err
		}
		n[w.Result.Outcome]++
		final = append(final, w.Settled)
		index = append(index, indexed{hashText(w.Envelope.To.String()), hashText(w.Message.MessageID), w.key})
	}
	if len(final) == 0 {
		return nil
	}
	if err := s.putIndex(tx, index); err != nil {
		return err
	}
	for _, hook := range s.hooks {
		if err := hook(tx, final); err != nil {
			return err
		}
	}
	return nil
}

// removeFinished removes the records of the envelopes that have their outcome, and messages with their last envelope.
func removeFinished(tx kv.Tx, work []settling) error {
	for i := range work {
		if work[i].Result.Outcome.final() {
			if err := tx.Delete(tableEnvelope, work[i].key); err != nil {
				return err
			}
		}
	}
	var last *Message
	for i := range work {
		m := work[i].Message
		if m == last || m.Keep || !work[i].Result.Outcome.final() {
			continue
		}
		last = m
		empty := true
		err := tx.Scan(tableEnvelope, m.ID[:], kv.PrefixEnd(m.ID[:]), func(_, _ []byte) (bool, error) {
			empty = false
			return false, nil
		})
		if err != nil {
			return err
		}
		if empty {
			if err := removeMessage(tx, m); err != nil {
				return err
			}
		}
	}
	return nil
}
