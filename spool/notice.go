package spool

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

// Notices writes to the senders of envelopes that an operator fails: delivery.Scheduler.
type Notices interface {
	// Count tells how many messages Prepare would write.
	Count(failed []Settled) int
	// Prepare writes them. On error nothing is failed.
	Prepare(ctx context.Context, failed []Settled) (Notice, error)
}

// Notice is what becomes durable in the transaction of the failures that it tells of.
type Notice struct {
	Count int
	Put   func(tx kv.Tx) error // may run more than once
	Added func()               // after the transaction is durable
	Drop  func()               // when it will not be stored
}

// Bounds of failing with notices: each holds a message of up to 1 MiB in memory.
const (
	noticeSlice = 50 // envelopes of one transaction
	noticeTries = 10 // of a slice whose envelopes are attempted meanwhile
)

// errMoved tells that the envelopes of a slice are not those that a notice was written about.
var errMoved = errors.New("envelopes are on the move")

// Fail is Act for ActionFail that also tells the senders. A message whose envelopes do not fit in one slice is told of in
// several notices.
func (s *Store) Fail(ctx context.Context, sel Selector, notices Notices, who, why string, dryRun bool) (ActResult, error) {
	return s.act(ctx, order{action: ActionFail, notices: notices, who: who, why: why, now: s.now()}, sel, dryRun)
}

func (o *order) slice() int {
	if o.notices != nil {
		return noticeSlice
	}
	return actSlice
}

// failure is the result of ActionFail.
func (o *order) failure() Result {
	return Result{
		Outcome: Failed, Reason: "operator", At: o.now,
		Reply: mail.Reply{Code: 554, Status: mail.Status{Class: 5}, Text: "Given up by the operator"},
	}
}

// withoutOwn leaves out the notices that the action itself put into the queue, and any other accepted since it began.
func (o *order) withoutOwn(page []Info) []Info {
	if o.notices == nil {
		return page
	}
	return slices.DeleteFunc(page, func(i Info) bool {
		return i.From.IsNull() && !i.AcceptedAt.Before(o.now)
	})
}

func idsOf(page []Info) []mail.EnvelopeID {
	ids := make([]mail.EnvelopeID, len(page))
	for i := range page {
		ids[i] = page[i].Envelope.ID
	}
	return ids
}

// actPage applies an action to a page of envelopes, with notices where they are wanted. The notices are written before
// the transaction, which checks that what it fails is what they tell of.
func (s *Store) actPage(ctx context.Context, o *order, page []Info, total *ActResult) error {
	if len(page) == 0 {
		return nil
	}
	ids := idsOf(page)
	if o.notices == nil {
		return s.actSlice(ctx, o, ids, nil, total)
	}
	for range noticeTries {
		with, err := s.notify(ctx, o, ids)
		if err != nil {
			return err
		}
		switch err = s.actSlice(ctx, o, ids, with, total); {
		case err == nil:
			total.Notices += with.notice.Count
			with.notice.Added()
			return nil
		case !errors.Is(err, errMoved):
			with.notice.Drop()
			return err
		}
		with.notice.Drop()
	}
	return errMoved
}

// notified is a notice with the envelopes that it was written about. A nil one is about none.
type notified struct {
	about  []mail.EnvelopeID
	notice Notice
}

func (s *Store) notify(ctx context.Context, o *order, ids []mail.EnvelopeID) (*notified, error) {
	failing, err := s.failing(ctx, o, ids)
	if err != nil {
		return nil, err
	}
	with := &notified{about: make([]mail.EnvelopeID, len(failing))}
	for i := range failing {
		with.about[i] = failing[i].Envelope.ID
	}
	if with.notice, err = o.notices.Prepare(ctx, failing); err != nil {
		return nil, fmt.Errorf("write notices to senders: %w", err)
	}
	return with, nil
}

// failing are the envelopes that ActionFail would fail now.
func (s *Store) failing(ctx context.Context, o *order, ids []mail.EnvelopeID) ([]Settled, error) {
	var failing []Settled
	err := s.db.View(ctx, func(tx kv.Tx) error {
		found, err := locate(tx, ids)
		if err != nil {
			return err
		}
		failing = make([]Settled, 0, len(found))
		for i := range found {
			if found[i].at == inFlight {
				continue
			}
			r := o.failure()
			r.ID = found[i].envelope.ID
			failing = append(failing, Settled{Message: found[i].message, Envelope: found[i].envelope, Result: r})
		}
		return nil
	})
	return failing, err
}

// fits tells whether the notice is about exactly what will be failed.
func (n *notified) fits(found []located) bool {
	if n == nil {
		return true
	}
	at := 0
	for i := range found {
		if found[i].at == inFlight {
			continue
		}
		if at == len(n.about) || n.about[at] != found[i].envelope.ID {
			return false
		}
		at++
	}
	return at == len(n.about)
}

func (n *notified) putTx(tx kv.Tx) error {
	if n == nil {
		return nil
	}
	return n.notice.Put(tx)
}

// forecastNotices counts the notices that a dry run would send.
func (s *Store) forecastNotices(ctx context.Context, o *order, page []Info, total *ActResult) error {
	if o.notices == nil || len(page) == 0 {
		return nil
	}
	failing, err := s.failing(ctx, o, idsOf(page))
	if err == nil {
		total.Notices += o.notices.Count(failing)
	}
	return err
}
