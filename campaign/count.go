package campaign

import (
	"encoding/binary"
	"fmt"
	"time"

	"relayd/internal/api"
	"relayd/internal/event"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/spool"
)

// tally is what one node has counted of one campaign. Each node writes only its own row; readers add them.
type tally struct {
	total        int64 // recipients added
	queued       int64 // recipients that have an envelope
	delivered    int64
	bounced      int64
	failed       int64
	suppressed   int64
	unsubscribed int64
	renderFailed int64
	expired      int64
	cancelled    int64
	first        int64 // first delivery, Unix nanoseconds, 0 for none
	last         int64 // last outcome
}

func (t *tally) fields() []*int64 {
	return []*int64{
		&t.total, &t.queued, &t.delivered, &t.bounced, &t.failed, &t.suppressed, &t.unsubscribed, &t.renderFailed, &t.expired,
		&t.cancelled, &t.first, &t.last,
	}
}

// finished is how many envelopes have their outcome.
func (t *tally) finished() int64 {
	return t.delivered + t.bounced + t.failed + t.suppressed + t.unsubscribed + t.renderFailed + t.expired + t.cancelled
}

func (t *tally) encode() []byte {
	b := []byte{recordVersion}
	for _, f := range t.fields() {
		b = binary.AppendVarint(b, *f)
	}
	return b
}

func decodeTally(b []byte) (tally, error) {
	var t tally
	if len(b) == 0 {
		return t, nil
	}
	if b[0] != recordVersion {
		return t, fmt.Errorf("%w: unknown version of counters", errBadRecord)
	}
	b = b[1:]
	for _, f := range t.fields() {
		v, n := binary.Varint(b)
		if n <= 0 {
			return tally{}, fmt.Errorf("%w: counters", errBadRecord)
		}
		*f, b = v, b[n:]
	}
	if len(b) > 0 {
		return tally{}, fmt.Errorf("%w: counters", errBadRecord)
	}
	return t, nil
}

func (t *tally) add(o tally) {
	first, last := t.first, max(t.last, o.last)
	if first == 0 || o.first != 0 && o.first < first {
		first = o.first
	}
	from := o.fields()
	for i, f := range t.fields() {
		*f += *from[i]
	}
	t.first, t.last = first, last
}

// count adds one outcome, under the name that the API has for it.
func (t *tally) count(r spool.Result) {
	switch r.Outcome {
	case spool.Delivered:
		t.delivered++
		if at := r.At.UnixNano(); !r.At.IsZero() && (t.first == 0 || at < t.first) {
			t.first = at
		}
	case spool.Bounced:
		t.bounced++
	case spool.Expired:
		t.expired++
	case spool.Cancelled:
		t.cancelled++
	case spool.Suppressed:
		*t.suppressedAs(r.Reason)++
	case spool.Failed:
		if r.Reason == "render_failed" {
			t.renderFailed++
		} else {
			t.failed++
		}
	default:
		return
	}
	if !r.At.IsZero() {
		t.last = max(t.last, r.At.UnixNano())
	}
}

func (t *tally) suppressedAs(reason string) *int64 {
	switch stateOf(spool.Suppressed, reason) {
	case "unsubscribed":
		return &t.unsubscribed
	case "cancelled":
		return &t.cancelled
	}
	return &t.suppressed
}

// stateOf names an outcome as the API does.
func stateOf(o spool.Outcome, reason string) string {
	switch {
	case o == spool.Suppressed && (reason == "unsubscribe" || reason == "unsubscribed"):
		return "unsubscribed"
	case o == spool.Suppressed && reason == Cancelled:
		return "cancelled"
	case o == spool.Failed && reason == "render_failed":
		return "render_failed"
	}
	return o.String()
}

func (t *tally) counts() api.Counts {
	return api.Counts{
		Delivered: t.delivered, Bounced: t.bounced, Failed: t.failed, Suppressed: t.suppressed, Unsubscribed: t.unsubscribed,
		RenderFailed: t.renderFailed, Expired: t.expired, Cancelled: t.cancelled,
	}
}

func countKey(id mail.QueueID, node string) []byte {
	return append(append([]byte(nil), id[:]...), node...)
}

// change applies fn to this node's counters.
func (s *Service) change(tx kv.Tx, id mail.QueueID, fn func(t *tally)) error {
	key := countKey(id, s.cfg.Node)
	b, err := tx.Get(tableCount, key)
	if err != nil {
		return fmt.Errorf("read campaign counters: %w", err)
	}
	t, err := decodeTally(b)
	if err != nil {
		return err
	}
	fn(&t)
	if err := tx.Put(tableCount, key, t.encode()); err != nil {
		return fmt.Errorf("write campaign counters: %w", err)
	}
	return nil
}

// sum adds the counters of all nodes.
func sum(tx kv.Tx, id mail.QueueID) (tally, error) {
	var all tally
	err := tx.Scan(tableCount, id[:], kv.PrefixEnd(id[:]), func(_, v []byte) (bool, error) {
		t, err := decodeTally(v)
		all.add(t)
		return true, err
	})
	if err != nil {
		return all, fmt.Errorf("read campaign counters: %w", err)
	}
	return all, nil
}

// SettleHook counts outcomes in the transaction in which they become durable, and ends the campaign with its last one
// (spool.SettleHook).
func (s *Service) SettleHook(tx kv.Tx, settled []spool.Settled) error {
	var order []mail.QueueID
	groups := map[mail.QueueID][]spool.Result{}
	for i := range settled {
		e := &settled[i]
		if e.Message.Campaign == "" || e.Result.Outcome == spool.Deferred {
			continue
		}
		id := e.Message.ID
		if groups[id] == nil {
			order = append(order, id)
		}
		groups[id] = append(groups[id], e.Result)
	}
	for _, id := range order {
		err := s.change(tx, id, func(t *tally) {
			for _, r := range groups[id] {
				t.count(r)
			}
		})
		if err != nil {
			return err
		}
		if err := s.complete(tx, id); err != nil {
			return err
		}
	}
	return nil
}

// complete ends the campaign if all its recipients have their outcome.
func (s *Service) complete(tx kv.Tx, id mail.QueueID) error {
	t, err := sum(tx, id)
	if err != nil || t.finished() < t.queued {
		return err
	}
	r, err := getRecord(tx, id)
	switch {
	case err != nil:
		return err
	case r.State == Cancelling:
		r.State = Cancelled
	case ended(r.State) || !r.Queued || t.finished() < t.total:
		return nil
	case t.bounced+t.failed+t.renderFailed+t.expired > 0:
		r.State = CompletedWithFailures
	default:
		r.State = Completed
	}
	r.Finished = s.now()
	if err := s.spool.RemoveMessageTx(tx, id); err != nil {
		return fmt.Errorf("remove campaign's message: %w", err)
	}
	if err := r.put(tx); err != nil {
		return err
	}
	return s.tell(tx, r, "campaign."+verb(r.State))
}

// verb is the event's name for a state: both ways to complete are one.
func verb(state string) string {
	if state == CompletedWithFailures {
		return Completed
	}
	return state
}

// tell appends an event of the campaign.
func (s *Service) tell(tx kv.Tx, r *record, kind string) error {
	return s.events.Append(tx, event.Event{
		Type: kind, At: s.now(), Account: r.Account, Stream: r.Stream, Campaign: formatID(r.ID), From: r.From.Email, Reason: r.Reason,
	})
}

func timeOf(unixNano int64) *time.Time {
	if unixNano == 0 {
		return nil
	}
	t := time.Unix(0, unixNano).UTC()
	return &t
}
