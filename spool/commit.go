package spool

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"relayd/internal/event"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// Commit stores a message, its body and its envelopes durably. The queue wakes up. done holds final results of
// envelopes in envs that need no attempt (suppressed at the door): they settle in the same transaction. When Commit
// returns an error nothing of the message is visible; the caller then calls Abort on the body. body may be nil. also is
// what becomes durable in the same transaction; an error of it is returned wrapped, and nothing is stored.
func (s *Store) Commit(
	ctx context.Context, m *Message, body *BodyWriter, envs []*Envelope, done []Result, also ...func(kv.Tx) error,
) error {
	start := time.Now()
	s.pressure.begin(s.now())
	err := s.commit(ctx, m, body, envs, done, also)
	s.pressure.end(s.now(), time.Since(start))
	if err != nil {
		s.metrics.commits.WithLabelValues("error").Inc()
		return fmt.Errorf("commit message %s: %w", m.ID, s.refusal(err))
	}
	s.metrics.commits.WithLabelValues("ok").Inc()
	s.metrics.seconds.WithLabelValues("commit").Observe(time.Since(start).Seconds())
	s.Added(envs, done)
	return nil
}

func (s *Store) commit(
	ctx context.Context, m *Message, body *BodyWriter, envs []*Envelope, done []Result, also []func(kv.Tx) error,
) error {
	m.chunks = 0
	if body != nil {
		if body.err != nil {
			return body.err
		}
		m.chunks = body.end()
	}
	p, err := s.prepare(m, envs, done)
	if err != nil {
		return err
	}
	err = s.db.Update(ctx, func(tx kv.Tx) error {
		for _, fn := range also {
			if err := fn(tx); err != nil {
				return err
			}
		}
		if body != nil {
			if p.stored() {
				if err := body.put(tx); err != nil {
					return err
				}
			} else if err := removeBody(tx, m.ID, body.chunks); err != nil {
				return err
			}
			if body.chunks > 0 {
				if err := tx.Delete(tableDraft, m.ID[:]); err != nil {
					return err
				}
			}
		}
		return s.put(tx, p)
	})
	if err == nil && body != nil {
		body.stored()
	}
	return err
}

// PutTx writes a message with its body (at most 1 MiB, nil for none) and envelopes in the caller's transaction: a
// fan-out page, or a DSN that becomes durable with the bounce that caused it. In a later page of a campaign m is known
// already: it is written again with the same bytes, and envelopes that are known already, live or finished, are left
// alone (see Envelope.Known). Call Added with the same arguments after the transaction is durable.
func (s *Store) PutTx(tx kv.Tx, m *Message, body []byte, envs []*Envelope, done []Result) error {
	if len(body) > kv.MaxValue {
		return fmt.Errorf("put message %s: %w: body of %d bytes", m.ID, ErrInvalid, len(body))
	}
	m.chunks = 0
	if body != nil {
		m.chunks = chunksOf(body)
	}
	if err := findKnown(tx, m, envs); err != nil {
		return fmt.Errorf("put message %s: %w", m.ID, err)
	}
	p, err := s.prepare(m, envs, done)
	if err != nil {
		return fmt.Errorf("put message %s: %w", m.ID, err)
	}
	if body != nil && p.stored() {
		if err := putBody(tx, m.ID, body); err != nil {
			return fmt.Errorf("put message %s: %w", m.ID, err)
		}
	}
	if err := s.put(tx, p); err != nil {
		return fmt.Errorf("put message %s: %w", m.ID, err)
	}
	return nil
}

// findKnown marks the envelopes of a campaign that were stored or finished before. Those of a submitted message bear
// an ID that nobody else has: there is nothing to look for.
func findKnown(tx kv.Tx, m *Message, envs []*Envelope) error {
	keys := make([][]byte, len(envs))
	for i, e := range envs {
		e.known = false
		keys[i] = envelopeKey(e.ID)
	}
	if m.Campaign == "" {
		return nil
	}
	seen := make(map[mail.EnvelopeID]bool, len(envs))
	for _, e := range envs { // twice in one page
		e.known = seen[e.ID]
		seen[e.ID] = true
	}
	for _, table := range [...]kv.Table{tableEnvelope, tableOutcome} {
		values, err := tx.GetMany(table, keys)
		if err != nil {
			return err
		}
		for i, v := range values {
			envs[i].known = envs[i].known || v != nil
		}
	}
	return nil
}

// prepared is a message with its records encoded, so that its transaction is short.
type prepared struct {
	message   *Message
	record    []byte
	live      []preparedEnvelope
	done      []settling
	accepted  int
	announced event.Event
}

type preparedEnvelope struct{ key, record, due, dueValue, held []byte }

// stored tells whether there is anything to deliver, or the message is kept for later.
func (p *prepared) stored() bool { return p.message.Keep || len(p.live) > 0 }

func (s *Store) prepare(m *Message, envs []*Envelope, done []Result) (*prepared, error) {
	if err := checkMessage(m, envs, done); err != nil {
		return nil, err
	}
	var results map[mail.EnvelopeID]*Result
	if len(done) > 0 {
		results = make(map[mail.EnvelopeID]*Result, len(done))
	}
	for i := range done {
		results[done[i].ID] = &done[i]
	}
	p := &prepared{message: m, record: appendMessage(make([]byte, 0, 512+len(m.Header)), m)}
	p.live = make([]preparedEnvelope, 0, len(envs)-len(done))
	now := s.now()
	for _, e := range envs {
		if e.known {
			continue
		}
		p.accepted++
		if r := results[e.ID]; r != nil {
			p.done = append(p.done, s.settling(m, e, *r, now))
			continue
		}
		e.Deferred = e.NextAttempt.After(now)
		pe := preparedEnvelope{key: envelopeKey(e.ID), record: appendEnvelope(make([]byte, 0, 128+len(e.Data)), e)}
		if e.Held {
			pe.held = heldKeyOf(e)
		} else {
			pe.due, pe.dueValue = dueKeyOf(e), dueValue(e.Deferred)
		}
		p.live = append(p.live, pe)
	}
	if m.Campaign == "" {
		p.announced = accepted(m, envs)
	}
	return p, nil
}

// checkMessage refuses what could not be read back.
func checkMessage(m *Message, envs []*Envelope, done []Result) error {
	if m.ID.IsZero() || m.Class >= classes {
		return fmt.Errorf("%w: no queue ID, or class %d", ErrInvalid, m.Class)
	}
	if len(m.Header)+8192 > kv.MaxValue {
		return fmt.Errorf("%w: header of %d bytes", ErrInvalid, len(m.Header))
	}
	ids := make(map[mail.EnvelopeID]bool, len(envs))
	for _, e := range envs {
		switch {
		case e.ID.Message != m.ID:
			return fmt.Errorf("%w: envelope %s is of another message", ErrInvalid, e.ID)
		case e.Class >= classes:
			return fmt.Errorf("%w: envelope %s: class %d", ErrInvalid, e.ID, e.Class)
		case ids[e.ID] && !e.known:
			return fmt.Errorf("%w: envelope %s is there twice", ErrInvalid, e.ID)
		case len(e.Data)+8192 > kv.MaxValue:
			return fmt.Errorf("%w: envelope %s: data of %d bytes", ErrInvalid, e.ID, len(e.Data))
		}
		if err := checkQueue(e.Queue); err != nil {
			return err
		}
		ids[e.ID] = true
	}
	for i := range done {
		if !ids[done[i].ID] || !done[i].Outcome.final() {
			return fmt.Errorf("%w: result %s of envelope %s", ErrInvalid, done[i].Outcome, done[i].ID)
		}
	}
	return nil
}

// accepted is the event of a submitted message. Its envelope is the queue ID: it tells of all recipients at once.
func accepted(m *Message, envs []*Envelope) event.Event {
	ev := event.Event{
		Type: "message.accepted", At: m.AcceptedAt, Account: m.Account, Envelope: m.ID.String(), Stream: m.Stream,
		From: m.ReversePath.String(),
	}
	if len(envs) == 1 {
		ev.To = envs[0].To.String()
	} else {
		ev.Data = map[string]any{"recipients": len(envs)}
	}
	if len(m.Tags) > 0 {
		if ev.Data == nil {
			ev.Data = map[string]any{}
		}
		ev.Data["tags"] = m.Tags
	}
	return ev
}

// put writes a prepared message.
func (s *Store) put(tx kv.Tx, p *prepared) error {
	m := p.message
	if p.stored() {
		if err := tx.Put(tableMessage, m.ID[:], p.record); err != nil {
			return err
		}
	}
	for i := range p.live {
		e := &p.live[i]
		if err := tx.Put(tableEnvelope, e.key, e.record); err != nil {
			return err
		}
		table, key := tableDue, e.due
		if e.held != nil {
			table, key = tableHeld, e.held
		}
		if err := tx.Put(table, key, e.dueValue); err != nil {
			return err
		}
	}
	var n counts
	n[0] = uint64(p.accepted) //nolint:gosec // not negative
	if p.announced.Type != "" {
		if err := s.events.Append(tx, p.announced); err != nil {
			return err
		}
	}
	if len(p.done) > 0 {
		if err := s.putOutcomes(tx, p.done, &n); err != nil {
			return err
		}
	}
	return addCounts(tx, &n)
}

// Added tells the in-memory queues of envelopes that PutTx wrote, after its transaction is durable.
func (s *Store) Added(envs []*Envelope, done []Result) {
	var results map[mail.EnvelopeID]Outcome
	if len(done) > 0 {
		results = make(map[mail.EnvelopeID]Outcome, len(done))
	}
	for i := range done {
		results[done[i].ID] = done[i].Outcome
	}
	moves := make([]move, 0, len(envs))
	for _, e := range envs {
		if e.known {
			continue
		}
		if o, ok := results[e.ID]; ok {
			s.metrics.settled.WithLabelValues(o.String()).Inc()
			continue
		}
		to := waitingPlace(e.Deferred)
		if e.Held {
			to = inHeld
		}
		moves = append(moves, move{id: e.ID, queue: e.Queue, class: e.Class, from: nowhere, to: to, next: e.NextAttempt})
	}
	s.queues.apply(moves)
}

// RemoveMessageTx removes the record of a message with Keep set, when no envelope of it is live any more.
func (s *Store) RemoveMessageTx(tx kv.Tx, id mail.QueueID) error {
	v, err := tx.Get(tableMessage, id[:])
	if err != nil || v == nil {
		return err
	}
	m, err := decodeMessage(id, v)
	if err != nil {
		return err
	}
	return removeMessage(tx, m)
}

func removeMessage(tx kv.Tx, m *Message) error {
	if err := tx.Delete(tableMessage, m.ID[:]); err != nil {
		return err
	}
	return removeBody(tx, m.ID, m.chunks)
}

func removeBody(tx kv.Tx, id mail.QueueID, chunks uint32) error {
	for n := range chunks {
		if err := tx.Delete(tableBody, bodyKey(id, n)); err != nil {
			return err
		}
	}
	return nil
}

// counts are the durable counters of one node: index 0 counts the accepted envelopes, the others their outcomes.
type counts [len(outcomeNames)]uint64

func addCounts(tx kv.Tx, n *counts) error {
	if *n == (counts{}) {
		return nil
	}
	v, err := tx.Get(tableCounter, keyCounter)
	if err != nil {
		return err
	}
	old, err := decodeCounts(v)
	if err != nil {
		return err
	}
	b := append(make([]byte, 0, 1+8*len(old)), recordVersion)
	for i := range old {
		b = binary.BigEndian.AppendUint64(b, old[i]+n[i])
	}
	return tx.Put(tableCounter, keyCounter, b)
}

func decodeCounts(v []byte) (n counts, err error) {
	if v == nil {
		return n, nil
	}
	switch {
	case len(v) > 0 && v[0] != recordVersion:
		return n, fmt.Errorf("counter record: %w: %d", ErrVersion, v[0])
	case len(v) != 1+8*len(n):
		return n, fmt.Errorf("counter record: %w", ErrCorrupt)
	}
	for i := range n {
		n[i] = binary.BigEndian.Uint64(v[1+8*i:])
	}
	return n, nil
}
