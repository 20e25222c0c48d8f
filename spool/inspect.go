package spool

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

// State is where a live envelope is.
type State uint8

// The states of a live envelope, and of one that is finished.
const (
	StateReady    State = iota // due, or due as soon as it was queued
	StateDeferred              // deferred or scheduled: it was queued for a later time
	StateHeld                  // by an operator
	StateLeased                // being attempted
	StateFinished              // it has an outcome
)

var stateNames = [...]string{"ready", "deferred", "held", "leased", "finished"}

// String returns the name used in selectors, logs and the API.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return "unknown"
}

// Info is what a listing shows of one envelope.
type Info struct {
	Envelope  Envelope // without Data
	State     State
	From      mail.Path // reverse-path
	Campaign  string
	MessageID string
	Subject   string
	Size      int64
	Account   string
	Stream    string
	Credential,
	ClientIP string
	AcceptedAt time.Time
	ExpiresAt  time.Time
	Outcome    *OutcomeRecord // of a finished envelope, nil for a live one
}

// OutcomeRecord is the final result of one envelope, kept for the retention period.
type OutcomeRecord struct {
	ID         mail.EnvelopeID
	Queue      Queue
	To         mail.Path
	Outcome    Outcome
	Reason     string
	Reply      mail.Reply
	Host       string
	TLS        string
	Attempts   int
	InDoubt    int
	AcceptedAt time.Time
	SettledAt  time.Time
	From       mail.Path // reverse-path
	MessageID  string    // "" for a campaign
	Subject    string    // "" for a campaign
}

// Stats counts the envelopes of the store. Queued is the sum of the four counts behind it.
type Stats struct {
	Queued   int64
	Ready    int64
	Deferred int64
	Held     int64
	Leased   int64
	Accepted int64            // durable: every envelope ever accepted
	Outcomes map[string]int64 // durable, by name of the outcome; Accepted = Queued + their sum
}

// QueueStat counts the envelopes of one queue.
type QueueStat struct {
	Queue    Queue
	Ready    int
	Deferred int
	Held     int
	Leased   int
	Paused   bool
	Oldest   time.Time // acceptance of the oldest envelope, to the minute; zero when there is none
	NextDue  time.Time // zero when nothing waits
}

// totals counts the live envelopes by place.
func (t *queueTable) totals() [places]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.total
}

// queued counts the live envelopes.
func (t *queueTable) queued() int {
	n := 0
	for _, c := range t.totals() {
		n += c
	}
	return n
}

func (t *queueTable) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.queues)
}

// any tells whether a queue is there that the selector may match. What a lease has just taken is still counted.
func (t *queueTable) any(sel *Selector) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name := range t.queues {
		if sel.matchQueue(name) {
			return true
		}
	}
	return false
}

// Stats returns the counts of the whole store. While mail flows the counts from memory and the durable ones may be a
// few envelopes apart.
func (s *Store) Stats(ctx context.Context) (Stats, error) {
	t := s.queues.totals()
	stats := Stats{
		Ready: int64(max(0, t[inReady])), Deferred: int64(max(0, t[inLater])), Held: int64(max(0, t[inHeld])),
		Leased: int64(max(0, t[inFlight])), Outcomes: make(map[string]int64, len(outcomeNames)-1),
	}
	for o := Delivered; o.final(); o++ {
		stats.Outcomes[o.String()] = 0
	}
	stats.Queued = stats.Ready + stats.Deferred + stats.Held + stats.Leased
	err := s.db.View(ctx, func(tx kv.Tx) error {
		return tx.Scan(tableCounter, nil, nil, func(_, v []byte) (bool, error) { // one row per node
			n, err := decodeCounts(v)
			stats.Accepted += int64(n[0]) //nolint:gosec // a count of envelopes
			for o := Delivered; o.final(); o++ {
				stats.Outcomes[o.String()] += int64(n[o]) //nolint:gosec // a count of envelopes
			}
			return true, err
		})
	})
	if err != nil {
		return Stats{}, fmt.Errorf("read counters: %w", err)
	}
	return stats, nil
}

// QueueStats returns one entry per queue that has envelopes, sorted by name. It touches no disk.
func (s *Store) QueueStats() []QueueStat {
	t := s.queues
	t.mu.Lock()
	stats := make([]QueueStat, 0, len(t.queues))
	for _, q := range t.queues {
		if q.count == [places]int{} {
			continue
		}
		stat := QueueStat{
			Queue: q.name, Ready: max(0, q.count[inReady]), Deferred: max(0, q.count[inLater]),
			Held: max(0, q.count[inHeld]), Leased: max(0, q.count[inFlight]), Paused: !t.paused[q.name.Stream].IsZero(),
		}
		if len(q.ages) > 0 {
			stat.Oldest = time.Unix(q.ages[0].minute*60, 0).UTC()
		}
		if next := slices.Min(q.next[:]); next != never {
			stat.NextDue = time.Unix(0, max(next, q.notBefore)).UTC()
		}
		stats = append(stats, stat)
	}
	t.mu.Unlock()
	slices.SortFunc(stats, func(a, b QueueStat) int {
		return cmp.Or(cmp.Compare(a.Queue.Account, b.Queue.Account), cmp.Compare(a.Queue.Stream, b.Queue.Stream),
			cmp.Compare(a.Queue.Domain, b.Queue.Domain))
	})
	return stats
}

// CampaignStats counts the live envelopes of a campaign from memory: those that wait for their first attempt, those
// that wait for a later one or are held, and those being attempted.
func (s *Store) CampaignStats(campaign string) (waiting, deferred, leased int) {
	t := s.queues
	t.mu.Lock()
	defer t.mu.Unlock()
	for q := range t.streams[campaign] {
		waiting += q.count[inReady]
		deferred += q.count[inLater] + q.count[inHeld]
		leased += q.count[inFlight]
	}
	return max(0, waiting), max(0, deferred), max(0, leased)
}

// stateOf tells where a live envelope is.
func (s *Store) stateOf(e *Envelope) State {
	s.queues.mu.Lock()
	_, leased := s.queues.leased[e.ID]
	s.queues.mu.Unlock()
	switch {
	case leased:
		return StateLeased
	case e.Held:
		return StateHeld
	case e.Deferred:
		return StateDeferred
	}
	return StateReady
}

func newInfo(m *Message, e *Envelope, state State) Info {
	info := Info{
		Envelope: *e, State: state, From: m.ReversePath, Campaign: m.Campaign, MessageID: m.MessageID, Subject: m.Subject,
		Size: m.Size, Account: e.Queue.Account, Stream: e.Queue.Stream, Credential: m.Credential, ClientIP: m.ClientIP,
		AcceptedAt: m.AcceptedAt, ExpiresAt: m.ExpiresAt,
	}
	info.Envelope.Data = nil
	return info
}

// finishedInfo is the Info of an envelope that has its outcome.
func finishedInfo(o *OutcomeRecord) Info {
	return Info{
		Envelope: Envelope{
			ID: o.ID, Queue: o.Queue, To: o.To, Attempts: o.Attempts, InDoubt: o.InDoubt, LastReply: o.Reply,
			LastHost: o.Host, LastAt: o.SettledAt,
		},
		State: StateFinished, From: o.From, MessageID: o.MessageID, Subject: o.Subject, Account: o.Queue.Account,
		Stream: o.Queue.Stream, AcceptedAt: o.AcceptedAt, Outcome: o,
	}
}

// List returns live envelopes that sel selects, in the order of acceptance, and a cursor for what follows, "" at the
// end. A page may be short, even empty, before the end: one call examines a bounded number of envelopes. limit is 1 to
// 1,000. It is correct while mail flows: an envelope that is live all the while is listed exactly once.
func (s *Store) List(ctx context.Context, sel Selector, cursor string, limit int) ([]Info, string, error) {
	after, err := decodeCursor(cursor)
	if err != nil {
		return nil, "", err
	}
	c, err := s.newScanner(sel, after)
	if err != nil {
		return nil, "", err
	}
	page, last, more, err := c.next(ctx, nil, min(max(limit, 1), maxPage))
	if err != nil {
		return nil, "", fmt.Errorf("list envelopes: %w", err)
	}
	if !more || last == nil {
		return page, "", nil
	}
	return page, encodeCursor(last), nil
}

// Get returns one message and its envelopes, live ones and then finished ones, at most 1,000 each. The message is nil
// when only outcomes are left. ErrNotFound when nothing is known of it.
func (s *Store) Get(ctx context.Context, id mail.QueueID) (*Message, []Info, error) {
	return s.get(ctx, id, ^uint64(0), maxPage)
}

// GetEnvelope is Get for one envelope.
func (s *Store) GetEnvelope(ctx context.Context, id mail.EnvelopeID) (*Message, []Info, error) {
	m, infos, err := s.get(ctx, id.Message, id.N-1, 1)
	infos = slices.DeleteFunc(infos, func(i Info) bool { return i.Envelope.ID != id })
	if err == nil && len(infos) == 0 {
		err = fmt.Errorf("get envelope %s: %w", id, ErrNotFound)
	}
	return m, infos, err
}

// get reads a message with most live and most finished envelopes behind after, in one snapshot: an envelope that is settled
// meanwhile is met once.
func (s *Store) get(ctx context.Context, id mail.QueueID, after uint64, most int) (m *Message, infos []Info, err error) {
	err = s.db.View(ctx, func(tx kv.Tx) error {
		v, err := tx.Get(tableMessage, id[:])
		if err == nil && v != nil {
			m, err = decodeMessage(id, v)
		}
		if err != nil {
			return err
		}
		if infos, err = s.liveOf(tx, id, after, most); err != nil {
			return err
		}
		outcomes, err := outcomesOf(tx, id, after, most)
		for i := range outcomes {
			infos = append(infos, finishedInfo(&outcomes[i]))
		}
		return err
	})
	if err == nil && m == nil && len(infos) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return nil, nil, fmt.Errorf("get message %s: %w", id, err)
	}
	return m, infos, nil
}

// ListEnvelopes returns the live envelopes of a message with N above after, at most limit; after is ^uint64(0) for the
// beginning.
func (s *Store) ListEnvelopes(ctx context.Context, id mail.QueueID, after uint64, limit int) (page []Info, err error) {
	err = s.db.View(ctx, func(tx kv.Tx) error {
		page, err = s.liveOf(tx, id, after, min(max(limit, 1), maxPage))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list envelopes of %s: %w", id, err)
	}
	return page, nil
}

// liveOf reads at most limit live envelopes of one message: one slice has them all.
func (s *Store) liveOf(tx kv.Tx, id mail.QueueID, after uint64, limit int) ([]Info, error) {
	c, err := s.newScanner(Selector{Messages: []mail.QueueID{id}}, nil)
	if err != nil {
		return nil, err
	}
	c.skip(firstKey(id, after))
	if len(c.ranges) == 0 {
		return nil, nil
	}
	page, _, err := c.slice(tx, nil, limit, nil)
	return page, err
}

// firstKey is the first key of a message behind after.
func firstKey(id mail.QueueID, after uint64) []byte {
	return envelopeKey(mail.EnvelopeID{Message: id, N: after + 1}) // ^uint64(0) wraps to the beginning
}

// ListOutcomes returns the outcomes of the envelopes of a message with N above after, at most limit; after is
// ^uint64(0) for the beginning.
func (s *Store) ListOutcomes(ctx context.Context, id mail.QueueID, after uint64, limit int) (page []OutcomeRecord, err error) {
	err = s.db.View(ctx, func(tx kv.Tx) error {
		page, err = outcomesOf(tx, id, after, min(max(limit, 1), maxPage))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list outcomes of %s: %w", id, err)
	}
	return page, nil
}

func outcomesOf(tx kv.Tx, id mail.QueueID, after uint64, limit int) (page []OutcomeRecord, err error) {
	err = tx.Scan(tableOutcome, firstKey(id, after), kv.PrefixEnd(id[:]), func(k, v []byte) (bool, error) {
		eid, err := mail.EnvelopeIDFromKey(k)
		if err != nil {
			return false, err
		}
		o, err := decodeOutcome(eid, v)
		if err != nil {
			return false, err
		}
		page = append(page, *o)
		return len(page) < limit, nil
	})
	return page, err
}
