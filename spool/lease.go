package spool

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

const (
	// maxLease bounds one lease.
	maxLease = 10_000
	// leaseShare is how many envelopes of a lease share one record. A settlement writes the records of its envelopes anew,
	// and these are mostly neighbours.
	leaseShare = 64
)

// Lease is the exclusive right of this process to attempt the envelopes in it. It lasts until each of them is settled
// or released, or the process ends. The envelopes and messages are shared: read them only.
type Lease struct {
	Envelopes []*Envelope
	Messages  map[mail.QueueID]*Message

	at    time.Time
	key   []byte                  // of its first record; nil for an empty lease
	index map[mail.EnvelopeID]int // of each envelope in Envelopes and of its bit in the records
	bits  []int
}

// picked is a due entry that a lease takes.
type picked struct {
	queue Queue
	class Class
	id    mail.EnvelopeID
	key   []byte
	from  place
}

// Lease takes up to most due envelopes from the queues, in class order, and records them durably before it returns.
// Queues of one class share what is left of most fairly. An empty lease means that nothing was due. most is at most
// 10,000.
func (s *Store) Lease(ctx context.Context, queues []Queue, now time.Time, most int) (*Lease, error) {
	start := time.Now()
	for _, q := range queues {
		if err := checkQueue(q); err != nil {
			return nil, fmt.Errorf("lease: %w", err)
		}
	}
	versions := s.queues.versions(queues)
	p := picker{now: dueTime(now), most: min(most, maxLease), next: make([][classes]int64, len(queues))}
	key := s.leaseKey(p.most)
	err := s.db.Update(ctx, func(tx kv.Tx) error {
		if err := s.checkOwner(tx); err != nil {
			return err
		}
		if err := p.pick(tx, queues); err != nil || len(p.picks) == 0 {
			return err
		}
		for i := range p.picks {
			if err := tx.Delete(tableDue, p.picks[i].key); err != nil {
				return err
			}
		}
		return putLease(tx, key, p.ids())
	})
	if err != nil {
		return nil, fmt.Errorf("lease: %w", err)
	}
	l := &Lease{at: now}
	moves := make([]move, len(p.picks))
	for i, pk := range p.picks {
		moves[i] = move{id: pk.id, queue: pk.queue, class: pk.class, from: pk.from, to: inFlight, lease: l}
	}
	s.queues.apply(moves)
	s.queues.corrected(queues, versions, p.next)
	if len(p.picks) == 0 {
		return l, nil
	}
	l.key = key
	if err := s.load(context.WithoutCancel(ctx), l, p.picks); err != nil {
		return nil, fmt.Errorf("lease: %w", errors.Join(err, s.unlease(context.WithoutCancel(ctx), key, p.picks)))
	}
	s.metrics.seconds.WithLabelValues("lease").Observe(time.Since(start).Seconds())
	return l, nil
}

// leaseKey sets keys aside for the records of n envelopes and returns the first.
func (s *Store) leaseKey(n int) []byte {
	records := uint64(n/leaseShare + 1) //nolint:gosec // not negative
	b := binary.BigEndian.AppendUint32(make([]byte, 0, leaseKeySize), node)
	b = binary.BigEndian.AppendUint64(b, s.epoch)
	return binary.BigEndian.AppendUint64(b, s.seq.Add(records)-records)
}

const leaseKeySize = 20

// leaseKeyAt is the key of record i of a lease whose first has the key first.
func leaseKeyAt(first []byte, i int) []byte {
	b := append(make([]byte, 0, leaseKeySize), first[:leaseKeySize-8]...)
	return binary.BigEndian.AppendUint64(b, binary.BigEndian.Uint64(first[leaseKeySize-8:])+uint64(i)) //nolint:gosec // not negative
}

// putLease writes the records of a lease.
func putLease(tx kv.Tx, first []byte, ids []mail.EnvelopeID) error {
	i := 0
	for part := range slices.Chunk(ids, leaseShare) {
		if err := tx.Put(tableLease, leaseKeyAt(first, i), newLeaseRecord(part)); err != nil {
			return err
		}
		i++
	}
	return nil
}

// endLease takes the envelopes out of the records of their lease. One that is not in them any more is ErrLeaseLost or,
// for a Release that ran beside a Settle, left out.
func endLease(tx kv.Tx, l *Lease, work []settling, quiet bool) ([]settling, error) {
	var numbers []int // of the records, each once
	for i := range work {
		if n := work[i].bit / leaseShare; !slices.Contains(numbers, n) {
			numbers = append(numbers, n)
		}
	}
	keys := make([][]byte, len(numbers))
	for i, n := range numbers {
		keys[i] = leaseKeyAt(l.key, n)
	}
	values, err := tx.GetMany(tableLease, keys)
	if err != nil {
		return nil, err
	}
	records := make([]leaseRecord, len(numbers))
	for i, v := range values {
		records[i] = newLeaseRecord(nil)
		if v != nil {
			if records[i], err = checkLease(slices.Clone(v)); err != nil {
				return nil, err
			}
		}
	}
	live := make([]settling, 0, len(work))
	for i := range work {
		rec, bit := records[slices.Index(numbers, work[i].bit/leaseShare)], work[i].bit%leaseShare
		switch {
		case rec.live(bit):
			rec.settle(bit)
			live = append(live, work[i])
		case !quiet:
			return nil, fmt.Errorf("envelope %s: %w", work[i].Envelope.ID, ErrLeaseLost)
		}
	}
	if len(live) == 0 {
		return live, nil
	}
	for i, rec := range records {
		if rec.empty() {
			err = tx.Delete(tableLease, keys[i])
		} else {
			err = tx.Put(tableLease, keys[i], rec)
		}
		if err != nil {
			return nil, err
		}
	}
	return live, nil
}

// picker reads due entries in a transaction that may run more than once.
type picker struct {
	now   uint64
	most  int
	picks []picked
	next  [][classes]int64 // what stays behind in each queue, -1 where it was not looked at
}

func (p *picker) ids() []mail.EnvelopeID {
	ids := make([]mail.EnvelopeID, len(p.picks))
	for i := range p.picks {
		ids[i] = p.picks[i].id
	}
	return ids
}

func (p *picker) pick(tx kv.Tx, queues []Queue) error {
	p.picks = p.picks[:0]
	for i := range p.next {
		p.next[i] = [classes]int64{-1, -1, -1}
	}
	for class := range classes {
		for i, q := range queues {
			left := p.most - len(p.picks)
			if left <= 0 {
				return nil
			}
			share := (left + len(queues) - i - 1) / (len(queues) - i)
			next, err := p.pickClass(tx, q, class, share)
			if err != nil {
				return err
			}
			p.next[i][class] = next
		}
	}
	return nil
}

// pickClass takes up to share due entries of one class of a queue and returns when the first one left falls due.
func (p *picker) pickClass(tx kv.Tx, q Queue, class Class, share int) (next int64, err error) {
	next = never
	prefix := appendQueueKey(make([]byte, 0, 96), q, class)
	err = tx.Scan(tableDue, prefix, kv.PrefixEnd(prefix), func(k, v []byte) (bool, error) {
		if len(k) != len(prefix)+dueTail || len(v) != 1 {
			return false, fmt.Errorf("due record of queue %s: %w", q, ErrCorrupt)
		}
		due := binary.BigEndian.Uint64(k[len(prefix):])
		if due > p.now || share == 0 {
			next = int64(due) //nolint:gosec // written from 63 bits
			return false, nil
		}
		share--
		id, err := mail.EnvelopeIDFromKey(k[len(prefix)+8:])
		p.picks = append(p.picks, picked{q, class, id, append([]byte(nil), k...), waitingPlace(v[0] != 0)})
		return true, err
	})
	return next, err
}

// load reads the envelopes and messages of a lease. One that cannot be read stays under lease, where it harms nobody,
// and the log tells of it.
func (s *Store) load(ctx context.Context, l *Lease, picks []picked) error {
	l.Envelopes = make([]*Envelope, 0, len(picks))
	l.Messages = make(map[mail.QueueID]*Message)
	l.index = make(map[mail.EnvelopeID]int, len(picks))
	keys := make([][]byte, len(picks))
	for i := range picks {
		keys[i] = envelopeKey(picks[i].id)
	}
	return s.db.View(ctx, func(tx kv.Tx) error {
		records, err := tx.GetMany(tableEnvelope, keys)
		if err != nil {
			return err
		}
		cache := messageCache{tx: tx, messages: l.Messages}
		for i := range picks {
			e, err := decodeStored(picks[i].id, records[i])
			if err == nil {
				_, err = cache.get(e.ID.Message)
			}
			if err != nil {
				s.logCorrupt(picks[i].id, err)
				continue
			}
			l.index[e.ID] = len(l.Envelopes)
			l.Envelopes = append(l.Envelopes, e)
			l.bits = append(l.bits, i)
		}
		return nil
	})
}

func decodeStored(id mail.EnvelopeID, record []byte) (*Envelope, error) {
	if record == nil {
		return nil, fmt.Errorf("envelope %s: %w: %w", id, ErrCorrupt, errMissing)
	}
	return decodeEnvelope(id, record)
}

// messageCache reads each message once.
type messageCache struct {
	tx       kv.Tx
	messages map[mail.QueueID]*Message
}

func (c *messageCache) get(id mail.QueueID) (*Message, error) {
	if m := c.messages[id]; m != nil {
		return m, nil
	}
	v, err := c.tx.Get(tableMessage, id[:])
	if err != nil {
		return nil, err
	}
	if v == nil {
		return nil, fmt.Errorf("message %s: %w: %w", id, ErrCorrupt, errMissing)
	}
	m, err := decodeMessage(id, v)
	if err != nil {
		return nil, err
	}
	c.messages[id] = m
	return m, nil
}

// unlease puts due entries back as they were, when a lease could not be handed out.
func (s *Store) unlease(ctx context.Context, key []byte, picks []picked) error {
	err := s.db.Update(ctx, func(tx kv.Tx) error {
		for i := range picks {
			if err := tx.Put(tableDue, picks[i].key, dueValue(picks[i].from == inLater)); err != nil {
				return err
			}
		}
		for i := range len(picks)/leaseShare + 1 {
			if err := tx.Delete(tableLease, leaseKeyAt(key, i)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	moves := make([]move, len(picks))
	for i, pk := range picks {
		due := binary.BigEndian.Uint64(pk.key[len(pk.key)-dueTail:])
		moves[i] = move{
			id: pk.id, queue: pk.queue, class: pk.class, from: inFlight, to: pk.from,
			next: fromNanos(int64(due)), //nolint:gosec // written from 63 bits
		}
	}
	s.queues.apply(moves)
	return nil
}

// Release gives the unsettled envelopes of the lease back without counting an attempt, not before next.
func (s *Store) Release(ctx context.Context, l *Lease, next time.Time) error {
	return s.GiveBack(ctx, l, l.Envelopes, next)
}
