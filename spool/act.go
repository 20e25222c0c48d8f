package spool

import (
	"context"
	"fmt"
	"strings"
	"time"

	"relayd/internal/event"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// Action is what an operator does to envelopes.
type Action string

// The actions.
const (
	ActionHold    Action = "hold"    // no attempt until released; held envelopes do not expire
	ActionRelease Action = "release" // ends a hold
	ActionRetry   Action = "retry"   // due now
	ActionFail    Action = "fail"    // settles as failed
	ActionMove    Action = "move"    // to another route, due now: see Move
)

// event is the type of the event that tells of one envelope, "" for an unknown action.
func (a Action) event() string {
	switch a {
	case ActionHold:
		return "message.held"
	case ActionRelease:
		return "message.released"
	case ActionRetry:
		return "message.retried"
	case ActionFail:
		return "message.failed"
	case ActionMove:
		return "message.moved"
	}
	return ""
}

// actSlice is how many envelopes one transaction of an action changes at most.
const actSlice = 250

// ActResult counts what an action met.
type ActResult struct {
	Matched   int `json:"matched"`   // envelopes that the selector selected
	Changed   int `json:"changed"`   // those that the action changed; with dry run: that it would change
	InFlight  int `json:"in_flight"` // being attempted: a hold takes effect if the attempt defers them, retry and fail do not
	Unchanged int `json:"unchanged"` // nothing to do, or finished meanwhile
	Notices   int `json:"notices"`   // messages to senders, where they were asked for
}

// order is an action with its author.
type order struct {
	action   Action
	route    string  // of ActionMove
	notices  Notices // of ActionFail, nil: nobody is told
	who, why string
	now      time.Time
}

func (o *order) data() map[string]any {
	data := map[string]any{"who": o.who}
	if o.why != "" {
		data["why"] = o.why
	}
	if o.action == ActionMove {
		data["route"] = o.route
	}
	return data
}

// Act applies an action to the envelopes that sel selects, in slices, each of them one transaction that is atomic
// against delivery. who and why stand in the events. With dryRun it only counts. On error the counts tell how far it
// came; it may be repeated.
func (s *Store) Act(ctx context.Context, a Action, sel Selector, who, why string, dryRun bool) (ActResult, error) {
	if a.event() == "" || a == ActionMove {
		return ActResult{}, fmt.Errorf("%w: %q", ErrAction, a)
	}
	return s.act(ctx, order{action: a, who: who, why: why, now: s.now()}, sel, dryRun)
}

// Move is Act for ActionMove: what waits or is held goes to the queue of a route (the name of a smarthost, or RouteMX),
// "" for the route that the configuration says, and is due at once. Whether there is such a route is for the caller to know.
func (s *Store) Move(ctx context.Context, route string, sel Selector, who, why string, dryRun bool) (ActResult, error) {
	if len(route) > 128 || strings.ContainsAny(route, "@:\x00") {
		return ActResult{}, fmt.Errorf("%w: route %q", ErrAction, route)
	}
	return s.act(ctx, order{action: ActionMove, route: route, who: who, why: why, now: s.now()}, sel, dryRun)
}

func (s *Store) act(ctx context.Context, o order, sel Selector, dryRun bool) (ActResult, error) {
	var total ActResult
	a := o.action
	c, err := s.newScanner(sel, nil)
	if err != nil {
		return total, err
	}
	for more := true; more; {
		var page []Info
		c.left = scanBudget
		if page, _, more, err = c.next(ctx, nil, o.slice()); err != nil {
			return total, fmt.Errorf("%s envelopes: %w", a, err)
		}
		page = o.withoutOwn(page)
		total.Matched += len(page)
		if dryRun {
			for i := range page {
				total.forecast(&o, &page[i])
			}
			if err := s.forecastNotices(ctx, &o, page, &total); err != nil {
				return total, fmt.Errorf("%s envelopes: %w", a, err)
			}
			continue
		}
		if err := s.actPage(ctx, &o, page, &total); err != nil {
			return total, fmt.Errorf("%s envelopes: %w", a, err)
		}
	}
	return total, nil
}

// forecast counts what the action would do to an envelope.
func (r *ActResult) forecast(o *order, info *Info) {
	a, e, now := o.action, &info.Envelope, o.now
	flying := info.State == StateLeased
	switch {
	case a == ActionHold && e.Held, a == ActionRelease && !e.Held:
		r.Unchanged++
	case a == ActionRelease:
		r.Changed++
	case flying:
		r.InFlight++
	case a == ActionMove && e.Queue == o.queueOf(e):
		r.Unchanged++
	case a == ActionRetry && (e.Held || !e.NextAttempt.After(now)):
		r.Unchanged++
	default:
		r.Changed++
	}
}

func (r *ActResult) add(o ActResult) {
	r.Changed += o.Changed
	r.InFlight += o.InFlight
	r.Unchanged += o.Unchanged
	r.Notices += o.Notices
}

// actSlice applies an action to envelopes in one transaction, with the notice about them if there is one.
func (s *Store) actSlice(ctx context.Context, o *order, ids []mail.EnvelopeID, with *notified, total *ActResult) error {
	var result ActResult
	var moves []move
	err := s.db.Update(ctx, func(tx kv.Tx) (err error) {
		result, moves = ActResult{}, moves[:0]
		if err := s.checkOwner(tx); err != nil {
			return err
		}
		found, err := locate(tx, ids)
		if err != nil {
			return err
		}
		result.Unchanged = len(ids) - len(found)
		if o.action == ActionFail {
			if !with.fits(found) {
				return errMoved
			}
			if moves, err = s.failTx(tx, o, found, &result, moves); err != nil {
				return err
			}
			return with.putTx(tx)
		}
		for i := range found {
			if moves, err = s.actTx(tx, o, &found[i], &result, moves); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.queues.apply(moves)
	if o.action == ActionFail {
		s.countMoves(moves, Failed)
	}
	total.add(result)
	return nil
}

// located is an envelope with its message and its place, as a transaction sees them.
type located struct {
	message  *Message
	envelope *Envelope
	at       place
}

// locate reads envelopes and finds where they stand. Those that have gone are left out.
func locate(tx kv.Tx, ids []mail.EnvelopeID) ([]located, error) {
	keys := make([][]byte, len(ids))
	for i, id := range ids {
		keys[i] = envelopeKey(id)
	}
	records, err := tx.GetMany(tableEnvelope, keys)
	if err != nil {
		return nil, err
	}
	cache := messageCache{tx: tx, messages: map[mail.QueueID]*Message{}}
	found := make([]located, 0, len(ids))
	for i, id := range ids {
		if records[i] == nil {
			continue
		}
		e, err := decodeEnvelope(id, records[i])
		if err != nil {
			return nil, err
		}
		m, err := cache.get(id.Message)
		if err != nil {
			return nil, err
		}
		found = append(found, located{m, e, inFlight})
	}
	return found, findPlaces(tx, found)
}

func findPlaces(tx kv.Tx, found []located) error {
	keys := make([][]byte, len(found))
	for i := range found {
		keys[i] = dueKeyOf(found[i].envelope)
	}
	due, err := tx.GetMany(tableDue, keys)
	if err != nil {
		return err
	}
	for i := range found {
		keys[i] = heldKeyOf(found[i].envelope)
	}
	held, err := tx.GetMany(tableHeld, keys)
	if err != nil {
		return err
	}
	for i := range found {
		switch {
		case due[i] != nil:
			found[i].at = waitingPlace(len(due[i]) == 1 && due[i][0] != 0)
		case held[i] != nil:
			found[i].at = inHeld
		}
	}
	return nil
}

// leave takes an envelope out of its place.
func (l *located) leave(tx kv.Tx) error {
	if l.at == inHeld {
		return tx.Delete(tableHeld, heldKeyOf(l.envelope))
	}
	return tx.Delete(tableDue, dueKeyOf(l.envelope))
}

// queueOf is where ActionMove sends an envelope.
func (o *order) queueOf(e *Envelope) Queue {
	q := e.Queue
	q.Domain = QueueDomain(q.Sender(), o.route, e.To.Domain)
	return q
}

// actTx holds, releases, retries or moves one envelope.
func (s *Store) actTx(tx kv.Tx, o *order, l *located, result *ActResult, moves []move) ([]move, error) {
	e := l.envelope
	was := *l
	next := *e
	switch {
	case o.action == ActionHold && !e.Held:
		next.Held = true
	case o.action == ActionRelease && e.Held:
		next.Held = false
		next.Deferred = e.NextAttempt.After(o.now)
	case o.action == ActionRetry && l.at == inLater && e.NextAttempt.After(o.now):
		next.NextAttempt, next.Deferred = o.now, false
	case o.action == ActionMove && l.at != inFlight && e.Queue != o.queueOf(e):
		next.Queue = o.queueOf(e)
		next.NextAttempt, next.Deferred = o.now, false
	case (o.action == ActionRetry || o.action == ActionMove) && l.at == inFlight:
		result.InFlight++
		return moves, nil
	default:
		result.Unchanged++
		return moves, nil
	}
	if l.at == inFlight { // the mark waits in the record for the end of the attempt
		if o.action == ActionHold {
			result.InFlight++
		} else {
			result.Changed++
		}
	} else {
		result.Changed++
		if err := was.leave(tx); err != nil {
			return moves, err
		}
		to, err := putWaiting(tx, &next)
		if err != nil {
			return moves, err
		}
		if next.Queue == e.Queue {
			moves = append(moves, move{id: e.ID, queue: e.Queue, class: e.Class, from: l.at, to: to, next: next.NextAttempt})
		} else {
			moves = append(moves, move{id: e.ID, queue: e.Queue, class: e.Class, from: l.at, to: nowhere},
				move{id: e.ID, queue: next.Queue, class: e.Class, from: nowhere, to: to, next: next.NextAttempt})
		}
	}
	if err := tx.Put(tableEnvelope, envelopeKey(e.ID), appendEnvelope(nil, &next)); err != nil {
		return moves, err
	}
	m := l.message
	err := s.putNote(tx, e.ID, &Note{
		At: o.now, Event: strings.TrimPrefix(o.action.event(), "message."), Attempt: e.Attempts, Who: o.who, Why: o.why,
	})
	if err != nil {
		return moves, err
	}
	return moves, s.events.Append(tx, event.Event{
		Type: o.action.event(), At: o.now, Account: m.Account, Envelope: e.ID.String(), Stream: m.Stream,
		Campaign: m.Campaign, From: m.ReversePath.String(), To: e.To.String(), Attempt: e.Attempts, Data: o.data(),
	})
}

// failTx settles what waits or is held as failed.
func (s *Store) failTx(tx kv.Tx, o *order, found []located, result *ActResult, moves []move) ([]move, error) {
	r := o.failure()
	for i := range found {
		if found[i].at == inFlight {
			continue
		}
		e := found[i].envelope
		err := s.putNote(tx, e.ID, &Note{At: o.now, Event: Failed.String(), Attempt: e.Attempts, Who: o.who, Why: o.why})
		if err != nil {
			return moves, err
		}
	}
	settled, moves, err := s.settleWaiting(tx, found, r, o.data(), moves)
	result.Changed += settled
	result.InFlight += len(found) - settled
	return moves, err
}

// settleWaiting gives all that wait or are held the same final result, and tells how many those are.
func (s *Store) settleWaiting(tx kv.Tx, found []located, r Result, data map[string]any, moves []move) (int, []move, error) {
	work := make([]settling, 0, len(found))
	for i := range found {
		l := &found[i]
		if l.at == inFlight {
			continue
		}
		if err := l.leave(tx); err != nil {
			return 0, moves, err
		}
		r.ID = l.envelope.ID
		w := s.settling(l.message, l.envelope, r, r.At)
		w.event.Data = data
		work = append(work, w)
		moves = append(moves, move{id: r.ID, queue: l.envelope.Queue, class: l.envelope.Class, from: l.at, to: nowhere})
	}
	return len(work), moves, s.finish(tx, work)
}

// countMoves counts envelopes that were settled without an attempt.
func (s *Store) countMoves(moves []move, o Outcome) {
	for i := range moves {
		if moves[i].to == nowhere {
			s.metrics.settled.WithLabelValues(o.String()).Inc()
		}
	}
}
