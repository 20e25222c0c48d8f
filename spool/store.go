package spool

import (
	"context"
	"io"
	"time"

	"relayd/internal/event"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// CONTRACT STUB: the owner of this package replaces every body in this file; signatures stay.

// Store is the durable queue.
type Store struct{}

// SettleHook runs inside the settling transaction, for what must become durable with the outcome: event, campaign
// counters, suppression. It may run more than once.
type SettleHook func(tx kv.Tx, settled []Settled) error

// Open recovers the store in db: envelopes under lease go back to their queues with InDoubt counted.
// The outcome of every envelope is appended to log in the settling transaction.
func Open(ctx context.Context, db kv.DB, log *event.Log, cfg Config) (*Store, error) { panic("stub") }

// OnSettle registers a hook; call before the first Settle.
func (s *Store) OnSettle(h SettleHook) { panic("stub") }

// NewBody returns a writer that stores a body under id, full chunks ahead of the message's commit.
func (s *Store) NewBody(ctx context.Context, id mail.QueueID) *BodyWriter { panic("stub") }

// BodyWriter is an io.Writer. Not for concurrent use.
type BodyWriter struct{}

func (b *BodyWriter) Write(p []byte) (int, error) { panic("stub") }

// Size is the number of octets written.
func (b *BodyWriter) Size() int64 { panic("stub") }

// Abort removes what was written ahead. After Commit it does nothing.
func (b *BodyWriter) Abort() { panic("stub") }

// Commit stores a message, its body and its envelopes durably. The queue wakes up. done holds final results of
// envelopes in envs that need no attempt (suppressed at the door): they settle in the same transaction.
func (s *Store) Commit(ctx context.Context, m *Message, body *BodyWriter, envs []*Envelope, done []Result) error {
	panic("stub")
}

// PutTx writes a message with its body (at most 1 MiB, nil for none) and envelopes in the caller's transaction: a
// fan-out page, or a DSN that becomes durable with the bounce that caused it. In a later page of a campaign m is known
// already: it is written again with the same bytes. Call Added with the same arguments after the transaction is durable.
func (s *Store) PutTx(tx kv.Tx, m *Message, body []byte, envs []*Envelope, done []Result) error {
	panic("stub")
}

// Added tells the in-memory queues of envelopes that PutTx wrote.
func (s *Store) Added(envs []*Envelope, done []Result) { panic("stub") }

// RemoveMessageTx removes the record of a message with Keep set.
func (s *Store) RemoveMessageTx(tx kv.Tx, id mail.QueueID) error { panic("stub") }

// Take returns up to most queues that have work due at now, urgent ones first, and marks them taken: they are not
// returned again before Return.
func (s *Store) Take(now time.Time, most int) []Queue { panic("stub") }

// Return gives a taken queue back. It is not offered again before notBefore (zero: as soon as it has due work).
func (s *Store) Return(q Queue, notBefore time.Time) { panic("stub") }

// Changed receives after work was added or a queue was returned; NextDue tells when the next queue falls due (zero: none).
func (s *Store) Changed() <-chan struct{} { panic("stub") }

// NextDue is the earliest time at which Take could return a queue.
func (s *Store) NextDue() time.Time { panic("stub") }

// Lease is the exclusive right of this process to attempt the envelopes in it.
type Lease struct {
	Envelopes []*Envelope
	Messages  map[mail.QueueID]*Message
}

// Lease takes up to most due envelopes from the queues, in class order, and records them durably before it returns.
// An empty lease means that nothing was due.
func (s *Store) Lease(ctx context.Context, queues []Queue, now time.Time, most int) (*Lease, error) {
	panic("stub")
}

// Settle makes the results durable in one transaction with the hooks: final outcomes remove their envelope, a deferred
// one returns to its queue. Envelopes of the lease without a result stay leased. ErrLeaseLost when one is not leased.
// extra runs in the same transaction, last.
func (s *Store) Settle(ctx context.Context, l *Lease, results []Result, extra ...func(kv.Tx) error) error {
	panic("stub")
}

// Release gives the unsettled envelopes of the lease back without counting an attempt, not before next.
func (s *Store) Release(ctx context.Context, l *Lease, next time.Time) error { panic("stub") }

// WriteBody streams the body of a message to w, chunk by chunk.
func (s *Store) WriteBody(ctx context.Context, id mail.QueueID, w io.Writer) (int64, error) {
	panic("stub")
}
