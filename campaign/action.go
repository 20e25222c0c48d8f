package campaign

import (
	"context"
	"errors"
	"fmt"

	"relayd/internal/api"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// Start checks that every recipient's message can be made, and begins to send. A refusal is an *Invalid, and leaves the
// draft as it was. A campaign that goes to a list is prepared in the background; what its contacts lack makes it failed.
// A campaign that runs already is answered as it is.
func (s *Service) Start(ctx context.Context, account, id string) (api.Campaign, error) {
	r, err := s.read(ctx, account, id)
	if err != nil {
		return api.Campaign{}, err
	}
	if r.State == Draft && r.Audience != nil {
		if err := s.sendable(ctx, r); err != nil {
			return api.Campaign{}, err
		}
	}
	r, err = s.move(ctx, account, id, "start", func(_ kv.Tx, r *record) error {
		if !startable(r.State) {
			return &StateError{"start", r.State}
		}
		if r.State == Draft || r.State == Scheduled {
			r.State, r.Schedule, r.Cut = Preparing, nil, s.now().UTC() // no recipient comes in any more
		}
		return nil
	})
	if err != nil || r.State == Running || r.Audience != nil || r.Retrying {
		return s.answer(ctx, r, err)
	}
	defer s.hold(r.ID)()
	if err := s.prepare(ctx, r); err != nil {
		return api.Campaign{}, err
	}
	return s.Get(ctx, account, id)
}

// sendable tells why a campaign could not start, as far as that can be told without its recipients.
func (s *Service) sendable(ctx context.Context, r *record) error {
	c, err := s.compile(ctx, r)
	if err != nil {
		return err
	}
	bad := &Invalid{}
	if _, err := s.findAudience(ctx, r.Account, r.Audience, bad); err != nil {
		return err
	}
	if err := bad.orNil(); err != nil {
		return err
	}
	total := int64(1)
	if r.Audience == nil {
		t, err := s.total(ctx, r.ID)
		if err != nil {
			return err
		}
		total = t.total
	}
	return s.ready(r, c, total)
}

// hold keeps Run from preparing a campaign as well, until the function that it returns is called.
func (s *Service) hold(id mail.QueueID) func() {
	set := func(held bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if j := s.jobs[id]; j != nil {
			j.held = held
		}
	}
	set(true)
	return func() { set(false) }
}

// prepare takes a campaign from preparing to running, or away from there with the reason: to draft where somebody waits
// for the answer, else to failed.
func (s *Service) prepare(ctx context.Context, r *record) error {
	reason := s.examine(ctx, r)
	why, bad := errors.AsType[*Invalid](reason)
	if reason != nil && !bad {
		return reason // ours to mend: it stays in preparing, and Run tries again
	}
	r, err := s.move(ctx, "", formatID(r.ID), "start", func(tx kv.Tx, r *record) error {
		switch {
		case r.State != Preparing:
			return nil
		case reason == nil:
			if err := s.begin(tx, r); err != nil {
				return err
			}
			return s.tell(tx, r, "campaign.started")
		case r.Audience == nil && r.Schedule == nil:
			r.State = Draft
			return nil
		}
		r.State, r.Reason, r.Detail, r.Finished = Failed, why.Code, mail.CleanText(why.Error(), 1000), s.now().UTC()
		return s.tell(tx, r, "campaign.failed")
	})
	if err != nil {
		return err
	}
	if reason == nil {
		s.log.Info("campaign.started", "campaign", formatID(r.ID), "account", r.Account)
	} else if r.State == Failed {
		s.log.Warn("campaign.refused", "campaign", formatID(r.ID), "account", r.Account, "reason", r.Reason, "err", r.Detail)
	}
	return reason
}

// examine makes every recipient's message without keeping it.
func (s *Service) examine(ctx context.Context, r *record) error {
	if err := s.freeze(ctx, r); err != nil {
		return err
	}
	c, err := s.compile(ctx, r)
	if err != nil {
		return err
	}
	var total int64
	err = s.db.View(ctx, func(tx kv.Tx) error {
		t, err := sum(tx, r.ID)
		total = t.total
		return err
	})
	if err != nil {
		return err
	}
	if err := s.ready(r, c, total); err != nil {
		return err
	}
	lack := newLacks(c)
	if lack.always {
		return nil
	}
	for after, more := uint64(0), true; more; {
		var rows []row
		err := s.db.View(ctx, func(tx kv.Tx) (err error) {
			rows, err = scanRecipients(tx, r.ID, after, examinePage)
			return err
		})
		if err != nil {
			return err
		}
		attributes := make([]attribute, 0, 16)
		for i := range rows {
			after = rows[i].n + 1
			if rows[i].unsubscribed {
				continue
			}
			if attributes, err = readAttributes(attributes[:0], rows[i].data); err != nil {
				return err
			}
			lack.see(rows[i].to, attributes, "")
		}
		more = len(rows) == examinePage
	}
	bad := &Invalid{}
	lack.tell(bad)
	return bad.orNil()
}

const examinePage = 1000

// Pause stops new attempts; those in an SMTP transaction finish, and InFlight tells how many. Pausing again changes
// nothing.
func (s *Service) Pause(ctx context.Context, account, id string) (api.Campaign, error) {
	r, err := s.move(ctx, account, id, "pause", func(tx kv.Tx, r *record) error {
		switch r.State {
		case Running:
			r.State, r.Reason, r.Detail = Paused, reasonUser, ""
			return s.tell(tx, r, "campaign.paused")
		case Paused:
			return nil
		}
		return &StateError{"pause", r.State}
	})
	c, err := s.answer(ctx, r, err)
	if err == nil {
		_, _, leased := s.spool.CampaignStats(c.ID)
		c.InFlight = int64(leased)
	}
	return c, err
}

// Resume goes on where Pause, or a guard, stopped: guards count from now on. A campaign whose schedule was missed starts.
func (s *Service) Resume(ctx context.Context, account, id string) (api.Campaign, error) {
	r, err := s.move(ctx, account, id, "resume", func(tx kv.Tx, r *record) error {
		switch r.State {
		case Paused:
			if r.Reason == reasonMisfire {
				r.State, r.Reason, r.Detail, r.Cut = Preparing, "", "", s.now().UTC()
				return s.tell(tx, r, "campaign.resumed")
			}
			if err := s.begin(tx, r); err != nil {
				return err
			}
			return s.tell(tx, r, "campaign.resumed")
		case Preparing:
			return nil
		case Running:
			return nil
		}
		return &StateError{"resume", r.State}
	})
	return s.answer(ctx, r, err)
}

// Cancel ends a campaign: what is delivered stays so, what is in an SMTP transaction finishes, the rest becomes
// cancelled. It works in every state but those that are an end.
func (s *Service) Cancel(ctx context.Context, account, id string) (api.Campaign, error) {
	r, err := s.move(ctx, account, id, "cancel", func(tx kv.Tx, r *record) error {
		switch {
		case r.State == Cancelling || r.State == Cancelled:
			return nil
		case ended(r.State):
			return &StateError{"cancel", r.State}
		case r.State == Draft || r.State == Scheduled || r.State == Paused && r.Started.IsZero():
			r.State, r.Reason, r.Detail, r.Finished = Cancelled, "", "", s.now().UTC()
			return s.tell(tx, r, "campaign.cancelled")
		}
		r.State, r.Reason, r.Detail = Cancelling, "", ""
		return nil
	})
	return s.answer(ctx, r, err)
}

// move changes a record in one transaction where fn changes its state, and follows it once it is durable. fn may run more
// than once.
func (s *Service) move(ctx context.Context, account, id, action string, fn func(tx kv.Tx, r *record) error) (*record, error) {
	return s.update(ctx, account, id, action, false, fn)
}

// edit is move where the record is written though its state may stay.
func (s *Service) edit(ctx context.Context, account, id, action string, fn func(tx kv.Tx, r *record) error) (*record, error) {
	return s.update(ctx, account, id, action, true, fn)
}

func (s *Service) update(
	ctx context.Context, account, id, action string, always bool, fn func(tx kv.Tx, r *record) error,
) (*record, error) {
	var r *record
	var before string
	err := s.db.Update(ctx, func(tx kv.Tx) (err error) {
		if r, err = s.owned(tx, account, id); err != nil {
			return err
		}
		before = r.State
		if err := fn(tx, r); err != nil {
			return err
		}
		if r.State == before && !always {
			return nil
		}
		return r.put(tx)
	})
	if err != nil {
		if isRefusal(err) {
			return nil, err
		}
		return nil, fmt.Errorf("%s campaign: %w", action, err)
	}
	if r.State != before || always {
		s.follow(r)
	}
	if r.State != before {
		s.log.Info("campaign.moved", "campaign", id, "account", r.Account, "status", r.State, "reason", r.Reason)
	}
	return r, nil
}

func (s *Service) answer(ctx context.Context, r *record, err error) (api.Campaign, error) {
	if err != nil {
		return api.Campaign{}, err
	}
	t, err := s.total(ctx, r.ID)
	return r.api(t.total), err
}

func (s *Service) total(ctx context.Context, id mail.QueueID) (t tally, err error) {
	err = s.db.View(ctx, func(tx kv.Tx) (err error) {
		t, err = sum(tx, id)
		return err
	})
	return t, err
}

// Get returns one campaign.
func (s *Service) Get(ctx context.Context, account, id string) (api.Campaign, error) {
	var c api.Campaign
	err := s.db.View(ctx, func(tx kv.Tx) error {
		r, err := s.owned(tx, account, id)
		if err != nil {
			return err
		}
		t, err := sum(tx, r.ID)
		c = r.api(t.total)
		return err
	})
	return c, err
}
