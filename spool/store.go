package spool

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"relayd/internal/event"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// node is the number of this process among those that share a store. There is one today.
const node = 0

// Store is the durable queue. Its methods may be called from many goroutines.
type Store struct {
	db      kv.DB
	events  *event.Log
	now     func() time.Time
	log     *slog.Logger
	metrics *metrics
	queues  *queueTable
	hooks   []SettleHook
	epoch   uint64 // fencing number of this Open
	seq     atomic.Uint64
	notes   atomic.Uint32 // tells records of one nanosecond apart
	inDoubt int
	buffers bufferPool

	pressure *pressure
}

// SettleHook runs inside the settling transaction with the envelopes that have come to their outcome (not with deferred
// ones), for what must become durable with it: campaign counters, suppression. It may run more than once, and must not
// keep what it is given.
type SettleHook func(tx kv.Tx, settled []Settled) error

// Open recovers the store in db: envelopes under lease go back to their queues with InDoubt counted, bodies without a
// message are removed, and the table of queues is rebuilt. The outcome of every envelope is appended to log in the
// settling transaction. A process that still has the store open loses it: its leases can no longer be settled.
func Open(ctx context.Context, db kv.DB, log *event.Log, cfg Config) (*Store, error) {
	s := &Store{db: db, events: log, now: cfg.Now, log: cfg.Log, queues: newQueueTable()}
	if s.now == nil {
		s.now = time.Now
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.pressure = &pressure{cfg: cfg, memory: availableMemory}
	s.pressure.disk, _ = db.(measurer)
	s.metrics = newMetrics(cfg.Metrics, s)
	version, err := s.takeOver(ctx)
	if err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	if err := s.migrate(ctx, version); err != nil {
		return nil, fmt.Errorf("open spool: migrate: %w", err)
	}
	if err := s.recoverLeases(ctx); err != nil {
		return nil, fmt.Errorf("open spool: recover leases: %w", err)
	}
	swept, err := s.sweepDrafts(ctx)
	if err != nil {
		return nil, fmt.Errorf("open spool: sweep bodies: %w", err)
	}
	if err := s.rebuild(ctx); err != nil {
		return nil, fmt.Errorf("open spool: rebuild queues: %w", err)
	}
	s.metrics.inDoubt.Add(float64(s.inDoubt))
	if s.inDoubt > 0 {
		s.log.Warn("lease.recovered", "count", s.inDoubt, "reason", "in_doubt")
	}
	if swept > 0 {
		s.log.Info("body.swept", "count", swept)
	}
	s.log.Info("spool.opened", "count", s.queues.queued())
	return s, nil
}

// OnSettle registers a hook; call before the first Settle.
func (s *Store) OnSettle(h SettleHook) { s.hooks = append(s.hooks, h) }

// InDoubt is the number of envelopes that Open found under lease: each may be delivered twice.
func (s *Store) InDoubt() int { return s.inDoubt }

var (
	keySchema  = []byte("schema")
	keyOwner   = binary.BigEndian.AppendUint32([]byte("owner/"), node)
	keyCounter = binary.BigEndian.AppendUint32(nil, node)
)

// takeOver checks the schema, takes the next fencing number and returns the version of the tables.
func (s *Store) takeOver(ctx context.Context) (version uint64, err error) {
	err = s.db.Update(ctx, func(tx kv.Tx) error {
		values, err := tx.GetMany(tableSpool, [][]byte{keySchema, keyOwner})
		if err != nil {
			return err
		}
		if version, err = schemaOf(values[0]); err != nil {
			return err
		}
		if version == 0 {
			version = schemaVersion
			if err := putSchema(tx); err != nil {
				return err
			}
		}
		s.epoch = 1
		if values[1] != nil {
			if len(values[1]) != 8 {
				return fmt.Errorf("owner %w", ErrCorrupt)
			}
			s.epoch = binary.BigEndian.Uint64(values[1]) + 1
		}
		return tx.Put(tableSpool, keyOwner, binary.BigEndian.AppendUint64(nil, s.epoch))
	})
	return version, err
}

// checkOwner fails the transaction when another process has opened the store since.
func (s *Store) checkOwner(tx kv.Tx) error {
	v, err := tx.Get(tableSpool, keyOwner)
	if err != nil {
		return err
	}
	if len(v) != 8 || binary.BigEndian.Uint64(v) != s.epoch {
		return ErrDeposed
	}
	return nil
}

// recoverRecords is how many records of leases one transaction of recoverLeases takes.
const recoverRecords = 16

// recoverLeases gives back what the process before us had under lease when it ended, a few records a transaction.
func (s *Store) recoverLeases(ctx context.Context) error {
	for {
		n := 0
		var keys [][]byte
		err := s.db.Update(ctx, func(tx kv.Tx) error {
			n, keys = 0, nil
			var records []leaseRecord
			prefix := binary.BigEndian.AppendUint32(nil, node)
			err := tx.Scan(tableLease, prefix, kv.PrefixEnd(prefix), func(k, v []byte) (bool, error) {
				rec, err := checkLease(bytes.Clone(v))
				keys, records = append(keys, bytes.Clone(k)), append(records, rec)
				return len(keys) < recoverRecords, err
			})
			if err != nil {
				return err
			}
			for i, rec := range records {
				back, err := s.recoverLease(tx, rec)
				if err != nil {
					return err
				}
				n += back
				if err := tx.Delete(tableLease, keys[i]); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil || len(keys) == 0 {
			return err
		}
		s.inDoubt += n
	}
}

// recoverLease makes the envelopes of a record due now. It returns how many it gave back.
func (s *Store) recoverLease(tx kv.Tx, rec leaseRecord) (n int, err error) {
	for i := range rec.len() {
		if !rec.live(i) {
			continue
		}
		back, err := s.recoverEnvelope(tx, rec.id(i))
		if err != nil {
			return n, err
		}
		n += back
	}
	return n, nil
}

// recoverEnvelope makes an envelope due now, in doubt once more. It returns how many it gave back.
func (s *Store) recoverEnvelope(tx kv.Tx, id mail.EnvelopeID) (int, error) {
	key := envelopeKey(id)
	v, err := tx.Get(tableEnvelope, key)
	if err != nil || v == nil {
		return 0, err
	}
	e, err := decodeEnvelope(id, v)
	if err != nil {
		return 0, err
	}
	e.InDoubt++
	e.NextAttempt = s.now()
	e.Deferred = false
	if _, err := putWaiting(tx, e); err != nil {
		return 0, err
	}
	return 1, tx.Put(tableEnvelope, key, appendEnvelope(nil, e))
}

// putWaiting stands an envelope in its queue, or with the held ones, and tells where.
func putWaiting(tx kv.Tx, e *Envelope) (place, error) {
	if e.Held {
		return inHeld, tx.Put(tableHeld, heldKeyOf(e), nil)
	}
	return waitingPlace(e.Deferred), tx.Put(tableDue, dueKeyOf(e), dueValue(e.Deferred))
}

// sweepDrafts removes bodies that were written ahead of a message that never came.
func (s *Store) sweepDrafts(ctx context.Context) (swept int, err error) {
	for {
		var id mail.QueueID
		found := false
		err := s.db.View(ctx, func(tx kv.Tx) error {
			return tx.Scan(tableDraft, nil, nil, func(k, _ []byte) (bool, error) {
				found = copy(id[:], k) == len(id) && len(k) == len(id)
				if !found {
					return false, fmt.Errorf("draft key: %w", ErrCorrupt)
				}
				return false, nil
			})
		})
		if err != nil || !found {
			return swept, err
		}
		if err := s.removeDraft(ctx, id); err != nil {
			return swept, err
		}
		swept++
	}
}

// rebuild fills the table of queues from the keys of what waits and what is held.
func (s *Store) rebuild(ctx context.Context) error {
	return s.db.View(ctx, func(tx kv.Tx) error {
		r := rebuilder{table: s.queues}
		err := tx.Scan(tableDue, nil, nil, func(k, v []byte) (bool, error) {
			if len(v) != 1 {
				return false, fmt.Errorf("due record: %w", ErrCorrupt)
			}
			return true, r.add(k, dueTail, waitingPlace(v[0] != 0))
		})
		if err != nil {
			return err
		}
		err = tx.Scan(tableHeld, nil, nil, func(k, _ []byte) (bool, error) {
			return true, r.add(k, mail.EnvelopeKeySize, inHeld)
		})
		r.flush()
		return err
	})
}

// rebuilder adds envelopes to the table, whose keys come queue by queue.
type rebuilder struct {
	table *queueTable
	text  string
	name  Queue
	moves []move
}

func (r *rebuilder) add(key []byte, tail int, to place) error {
	text, class, err := parseQueueKey(key, tail)
	if err != nil {
		return err
	}
	if string(text) != r.text {
		r.text = string(text)
		if r.name, err = parseQueue(r.text); err != nil {
			return err
		}
	}
	m := move{queue: r.name, class: class, from: nowhere, to: to}
	if m.id, err = mail.EnvelopeIDFromKey(key[len(key)-mail.EnvelopeKeySize:]); err != nil {
		return err
	}
	if to != inHeld {
		m.next = fromNanos(int64(binary.BigEndian.Uint64(key[len(key)-tail:]))) //nolint:gosec // written from 63 bits
	}
	if r.moves = append(r.moves, m); len(r.moves) == 1024 {
		r.flush()
	}
	return nil
}

func (r *rebuilder) flush() {
	r.table.apply(r.moves)
	r.moves = r.moves[:0]
}

// logCorrupt tells of a record that cannot be read. The loop that met it goes on without it: the record stays where it
// is, for an operator to look at.
func (s *Store) logCorrupt(id mail.EnvelopeID, err error) {
	s.metrics.corrupt.Inc()
	s.log.Error("record.unreadable", "envelope", id.String(), "err", err)
}

// errMissing is the cause of ErrCorrupt where one record refers to another that is not there.
var errMissing = errors.New("record is missing")
