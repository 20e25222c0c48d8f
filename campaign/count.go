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

	complained     int64 // recipients who called it spam
	baseDelivered  int64 // what guards do not look at: see rebase
	baseBounced    int64
	baseComplained int64
	byProvider     [len(providerNames)]int64 // delivered
}

// tallyVersion 2 added what stands behind last.
const (
	tallyVersion = 2
	firstFields  = 12
)

func (t *tally) fields() []*int64 {
	list := make([]*int64, 0, firstFields+4+len(t.byProvider))
	list = append(list, &t.total, &t.queued, &t.delivered, &t.bounced, &t.failed, &t.suppressed, &t.unsubscribed, &t.renderFailed,
		&t.expired, &t.cancelled, &t.first, &t.last, &t.complained, &t.baseDelivered, &t.baseBounced, &t.baseComplained)
	for i := range t.byProvider {
		list = append(list, &t.byProvider[i])
	}
	return list
}

// finished is how many envelopes have their outcome.
func (t *tally) finished() int64 {
	return t.delivered + t.bounced + t.failed + t.suppressed + t.unsubscribed + t.renderFailed + t.expired + t.cancelled
}

func (t *tally) encode() []byte {
	b := append(make([]byte, 0, 64), tallyVersion)
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
	fields := t.fields()
	switch b[0] {
	case tallyVersion:
	case recordVersion:
		fields = fields[:firstFields]
	default:
		return t, fmt.Errorf("%w: unknown version of counters", errBadRecord)
	}
	b = b[1:]
	for _, f := range fields {
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
		t.byProvider[providerOf(r.Host)]++
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

// SettleHook counts outcomes in the transaction in which they become durable, keeps whom we failed for a retry, pauses
// the campaign where its guards say so, and ends it with its last outcome (spool.SettleHook).
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
		if flag := retryable(&e.Result); flag != 0 {
			if err := keepFailed(tx, e.Envelope, flag); err != nil {
				return err
			}
		}
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
		t, err := sum(tx, id)
		if err != nil {
			return err
		}
		if err := s.watch(tx, id, &t); err != nil {
			return err
		}
		if err := s.completeWith(tx, id, &t); err != nil {
			return err
		}
	}
	return nil
}

// watch asks the guards. What it pauses in tx, Run stops when tx is durable.
func (s *Service) watch(tx kv.Tx, id mail.QueueID, t *tally) error {
	s.mu.Lock()
	j := s.jobs[id]
	limits := api.CampaignGuards{}
	if j != nil && j.state == Running {
		limits = j.guards
	}
	s.mu.Unlock()
	if reason, _ := t.guarded(0).verdict(&limits); reason == "" || limits.Action != "pause" {
		return nil
	}
	r, err := getRecord(tx, id)
	if err != nil {
		return err
	}
	tripped, err := s.guard(tx, r, t, 0)
	if tripped {
		s.tripped(id)
	}
	return err
}

// tripped makes Run look at a campaign soon.
func (s *Service) tripped(id mail.QueueID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j := s.jobs[id]; j != nil {
		j.look = 20 // times: the transaction may not be durable yet
		s.poke()
	}
}

// complete ends the campaign if all its recipients have their outcome.
func (s *Service) complete(tx kv.Tx, id mail.QueueID) error {
	t, err := sum(tx, id)
	if err != nil {
		return err
	}
	return s.completeWith(tx, id, &t)
}

func (s *Service) completeWith(tx kv.Tx, id mail.QueueID, t *tally) error {
	if t.finished() < t.queued {
		return nil
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
	r.Finished, r.Reason, r.Detail = s.now(), "", ""
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
		Data: detailOf(r),
	})
}

func detailOf(r *record) map[string]any {
	if r.Detail == "" {
		return nil
	}
	return map[string]any{"detail": r.Detail}
}

func timeOf(unixNano int64) *time.Time {
	if unixNano == 0 {
		return nil
	}
	t := time.Unix(0, unixNano).UTC()
	return &t
}
