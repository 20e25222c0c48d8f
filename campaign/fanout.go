package campaign

import (
	"context"
	"fmt"
	"time"

	"relayd/internal/intake"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/spool"
)

const (
	highWater  = 2_000_000              // envelopes of one campaign that wait for their first attempt: fan-out pauses above it
	idleWait   = time.Second            // between looks at campaigns when nothing happens
	fullWait   = 100 * time.Millisecond // while all are above the high water
	failedWait = 2 * time.Second        // after an error of the store
)

// Run turns the recipients of running campaigns into envelopes, page by page and in turn, ends cancelled campaigns, and
// takes up after a restart what was begun. It returns nil when ctx ends.
func (s *Service) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-timer.C:
		}
		wait := s.round(ctx)
		if ctx.Err() != nil {
			return nil
		}
		timer.Reset(wait)
	}
}

// round does one step for every campaign and tells how long nothing more is to do.
func (s *Service) round(ctx context.Context) time.Duration {
	wait := idleWait
	for _, id := range s.active() {
		next, err := s.stepFor(ctx, id)
		if err != nil && ctx.Err() == nil {
			s.log.Error("campaign.stalled", "campaign", formatID(id), "err", err)
			next = failedWait
		}
		wait = min(wait, next)
	}
	return wait
}

func (s *Service) active() []mail.QueueID {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]mail.QueueID, 0, len(s.jobs))
	for id := range s.jobs {
		ids = append(ids, id)
	}
	return ids
}

// stepFor advances one campaign.
func (s *Service) stepFor(ctx context.Context, id mail.QueueID) (time.Duration, error) {
	s.mu.Lock()
	j := s.jobs[id]
	var state string
	var queued, held bool
	if j != nil {
		state, queued, held = j.state, j.queued, j.held
	}
	s.mu.Unlock()
	switch {
	case state == Running && queued:
		return idleWait, s.settled(ctx, id)
	case state == Running:
		if waiting, _, _ := s.spool.CampaignStats(formatID(id)); waiting > highWater {
			return fullWait, s.sample(ctx, id)
		}
		if s.spool.Pressure() != "" { // its envelopes would take the room that deliveries need
			return failedWait, nil
		}
		return 0, s.page(ctx, id)
	case state == Preparing && !held:
		return idleWait, s.takeUp(ctx, id)
	case state == Cancelling:
		return fullWait, s.cancelRest(ctx, id)
	}
	return idleWait, nil
}

// page moves one page of recipients into the spool. Reading the page, its envelopes, their early suppression, the
// deletion of the rows and the counters are one transaction: whatever happens, each recipient is in exactly one place.
func (s *Service) page(ctx context.Context, id mail.QueueID) error {
	s.mu.Lock()
	j := s.jobs[id]
	if j == nil {
		s.mu.Unlock()
		return nil
	}
	after := j.after
	s.mu.Unlock()

	var r *record
	var p *intake.Page
	var last uint64
	err := s.db.Update(ctx, func(tx kv.Tx) (err error) {
		p = nil
		if r, err = getRecord(tx, id); err != nil || r.State != Running || r.Queued {
			return err
		}
		rows, err := scanRecipients(tx, id, after, s.cfg.PageSize)
		if err != nil {
			return err
		}
		p, last = s.pageOf(r, rows), after
		for _, row := range rows {
			last = row.n
			if err := tx.Delete(tableRecipient, recipientKey(id, row.n)); err != nil {
				return fmt.Errorf("remove queued recipient: %w", err)
			}
		}
		if err := s.change(tx, id, func(t *tally) { t.queued += int64(len(p.Recipients)) }); err != nil {
			return err
		}
		if len(p.Recipients) > 0 {
			if err := s.intake.PageTx(tx, p); err != nil {
				return fmt.Errorf("queue page: %w", err)
			}
		}
		if len(rows) == s.cfg.PageSize {
			return nil
		}
		r.Queued = true
		if err := r.put(tx); err != nil {
			return err
		}
		if err := s.complete(tx, id); err != nil {
			return err
		}
		r, err = getRecord(tx, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("fan out: %w", err)
	}
	if p == nil {
		s.follow(r)
		return nil
	}
	if len(p.Recipients) > 0 {
		s.intake.PageAdded(p)
	}
	s.metrics.queued.Add(float64(len(p.Recipients)))
	s.mu.Lock()
	if j := s.jobs[id]; j != nil {
		j.after = last
	}
	s.mu.Unlock()
	if r.Queued {
		s.follow(r)
		s.log.Info("campaign.queued", "campaign", formatID(id), "account", r.Account)
	}
	return nil
}

// pageOf makes the page that intake takes.
func (s *Service) pageOf(r *record, rows []row) *intake.Page {
	m := &spool.Message{
		ID: r.ID, Account: r.Account, Stream: formatID(r.ID), Campaign: formatID(r.ID), Class: spool.Bulk,
		ReversePath: r.Reverse, Subject: r.Subject, AcceptedAt: r.Started, ExpiresAt: r.expires(), Keep: true,
	}
	if p := r.Retry; p != nil {
		m.Retry = spool.RetryPolicy{
			Attempts: p.MaxAttempts, First: time.Duration(p.IntervalSeconds) * time.Second, Multiplier: p.BackoffRate, MaxAge: r.TTL,
		}
	}
	p := &intake.Page{Message: m}
	at := s.now()
	for _, row := range rows {
		if row.unsubscribed {
			continue
		}
		p.Recipients = append(p.Recipients, intake.PageRecipient{To: row.to, N: row.n, Data: snapshot(at, row.data)})
	}
	return p
}

// takeUp goes on with a start that a restart or an error of the store interrupted.
func (s *Service) takeUp(ctx context.Context, id mail.QueueID) error {
	var r *record
	err := s.db.View(ctx, func(tx kv.Tx) (err error) {
		r, err = getRecord(tx, id)
		return err
	})
	if err != nil {
		return err
	}
	if r.State != Preparing {
		s.follow(r)
		return nil
	}
	return s.prepare(ctx, r)
}

// cancelRest settles what waits. What is under lease finishes by itself, or comes back and is settled next time.
func (s *Service) cancelRest(ctx context.Context, id mail.QueueID) error {
	if _, err := s.spool.CancelCampaign(ctx, formatID(id)); err != nil {
		return fmt.Errorf("cancel campaign: %w", err)
	}
	return s.settled(ctx, id)
}

// settled looks whether a campaign has ended, which it does in the transaction of its last outcome.
func (s *Service) settled(ctx context.Context, id mail.QueueID) error {
	if err := s.sample(ctx, id); err != nil {
		return err
	}
	var r *record
	var t tally
	err := s.db.View(ctx, func(tx kv.Tx) (err error) {
		if r, err = getRecord(tx, id); err != nil {
			return err
		}
		t, err = sum(tx, id)
		return err
	})
	if err != nil {
		return err
	}
	if r.State == Cancelling && t.finished() >= t.queued {
		err := s.db.Update(ctx, func(tx kv.Tx) (err error) {
			if err = s.complete(tx, id); err != nil {
				return err
			}
			r, err = getRecord(tx, id)
			return err
		})
		if err != nil {
			return err
		}
	}
	if ended(r.State) {
		s.follow(r)
		s.log.Info("campaign.finished", "campaign", formatID(id), "account", r.Account, "status", r.State, "count", t.total)
	}
	return nil
}
