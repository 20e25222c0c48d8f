package campaign

import (
	"context"
	"errors"
	"fmt"
	"time"

	"relayd/internal/kv"
	"relayd/internal/mail"
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

// stepFor advances one campaign, and tells when it is to be looked at again.
func (s *Service) stepFor(ctx context.Context, id mail.QueueID) (time.Duration, error) {
	s.mu.Lock()
	var j job
	if p := s.jobs[id]; p != nil {
		j = *p
		p.look = max(0, p.look-1)
	}
	s.mu.Unlock()
	switch {
	case j.state == Running && j.look > 0:
		return fullWait, s.settled(ctx, id)
	case j.state == Running && j.queued:
		return idleWait, s.settled(ctx, id)
	case j.state == Running:
		if waiting, _, _ := s.spool.CampaignStats(formatID(id)); waiting > highWater {
			return fullWait, s.settled(ctx, id)
		}
		if s.spool.Pressure() != "" { // its envelopes would take the room that deliveries need
			return failedWait, s.settled(ctx, id)
		}
		wait, err := s.page(ctx, id)
		if err == nil && s.pulse(id) {
			err = s.settled(ctx, id)
		}
		return wait, err
	case j.state == Scheduled:
		return s.await(ctx, id)
	case j.state == Preparing && !j.held:
		return s.takeUp(ctx, id)
	case j.state == Cancelling:
		return fullWait, s.cancelRest(ctx, id)
	}
	return idleWait, nil
}

// pulse tells once a second that a campaign that is being fanned out wants to be looked at.
func (s *Service) pulse(id mail.QueueID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.jobs[id]
	if j == nil || s.now().Sub(j.looked) < idleWait {
		return false
	}
	j.looked = s.now()
	return true
}

// await starts a scheduled campaign when its time has come.
func (s *Service) await(ctx context.Context, id mail.QueueID) (time.Duration, error) {
	r, err := s.readID(ctx, id)
	if err != nil {
		return idleWait, err
	}
	if r.State != Scheduled {
		s.follow(r)
		return 0, nil
	}
	if wait := r.Schedule.At.Sub(s.now()); wait > 0 {
		return min(wait, idleWait), nil
	}
	return 0, s.fire(ctx, r)
}

// takeUp goes on with a start: with its audience, with recipients that are to be tried again, with the examination.
func (s *Service) takeUp(ctx context.Context, id mail.QueueID) (time.Duration, error) {
	r, err := s.readID(ctx, id)
	if err != nil {
		return idleWait, err
	}
	switch {
	case r.State != Preparing:
		s.follow(r)
		return 0, nil
	case r.Retrying:
		return 0, s.takeBack(ctx, id)
	case r.Audience != nil && !r.Ready:
		return 0, s.takeOver(ctx, r)
	}
	err = s.prepare(ctx, r)
	if _, refused := errors.AsType[*Invalid](err); refused {
		return 0, nil // the record tells it
	}
	return idleWait, err
}

// readID reads a record, whoever owns it.
func (s *Service) readID(ctx context.Context, id mail.QueueID) (r *record, err error) {
	err = s.db.View(ctx, func(tx kv.Tx) (err error) {
		r, err = getRecord(tx, id)
		return err
	})
	return r, err
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
	if r.State == Running {
		if r, err = s.deferrals(ctx, r, &t); err != nil {
			return err
		}
	}
	if r.State != Running && r.State != Cancelling {
		s.follow(r)
	}
	if r.State == Paused && r.Reason != reasonUser {
		s.metrics.paused.WithLabelValues(r.Reason).Inc()
		s.log.Warn("campaign.guarded", "campaign", formatID(id), "account", r.Account, "reason", r.Reason, "err", r.Detail)
	}
	if ended(r.State) {
		s.log.Info("campaign.finished", "campaign", formatID(id), "account", r.Account, "status", r.State, "count", t.total)
	}
	return nil
}

// deferrals asks the guard of deferrals, which live in memory.
func (s *Service) deferrals(ctx context.Context, r *record, t *tally) (*record, error) {
	if rateOf(r.Guards.DeferralRate) == 0 || s.isQuiet(r.ID) {
		return r, nil
	}
	_, deferred, _ := s.spool.CampaignStats(formatID(r.ID))
	if reason, _ := t.guarded(int64(deferred)).verdict(&r.Guards); reason == "" {
		return r, nil
	}
	err := s.db.Update(ctx, func(tx kv.Tx) (err error) {
		if r, err = getRecord(tx, r.ID); err != nil {
			return err
		}
		_, err = s.guard(tx, r, t, int64(deferred))
		return err
	})
	return r, err
}
