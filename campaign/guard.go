package campaign

import (
	"context"
	"errors"
	"fmt"
	"math"

	"relayd/internal/api"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// The limits that hold where a campaign sets none: a share of bounces or complaints at which mailbox providers begin to
// refuse a sender.
const (
	defaultBounceRate    = 0.1
	defaultComplaintRate = 0.005
	defaultMinSample     = 200
)

// The reasons of campaigns that relayd has paused, and their guards.
const (
	reasonUser      = "user"
	reasonMisfire   = "misfire"
	reasonQuota     = "quota"
	reasonBounce    = "guard_bounce"
	reasonComplaint = "guard_complaint"
	reasonDeferral  = "guard_deferral"
)

// guardsOf checks the guards of a request and sets the defaults.
func guardsOf(in api.CampaignGuards, bad *Invalid) api.CampaignGuards {
	for _, g := range []struct {
		name  string
		rate  **float64
		usual float64
	}{
		{"bounce_rate", &in.BounceRate, defaultBounceRate},
		{"complaint_rate", &in.ComplaintRate, defaultComplaintRate},
		{"deferral_rate", &in.DeferralRate, 0},
	} {
		if *g.rate == nil {
			usual := g.usual
			*g.rate = &usual
		}
		if v := **g.rate; math.IsNaN(v) || v < 0 || v > 1 {
			bad.add("/guards/"+g.name, api.CodeInvalidParameter, "%g is not between 0 (off) and 1", v)
		}
	}
	if in.MinSample == 0 {
		in.MinSample = defaultMinSample
	}
	if in.MinSample < 1 {
		bad.add("/guards/min_sample", api.CodeInvalidParameter, "%d is not a number of recipients", in.MinSample)
	}
	switch in.Action {
	case "":
		in.Action = "pause"
	case "pause", "none":
	default:
		bad.add("/guards/action", api.CodeInvalidParameter, `%q is not "pause" or "none"`, clip(in.Action, 40))
	}
	return in
}

// guarded is what guards look at: what has happened since the campaign was last resumed, so that a campaign that a
// person resumes with his eyes open is not stopped at once again by what he has seen.
type guarded struct {
	delivered, bounced, complained, deferred int64
}

func (t *tally) guarded(deferred int64) guarded {
	return guarded{t.delivered - t.baseDelivered, t.bounced - t.baseBounced, t.complained - t.baseComplained, deferred}
}

// state is what the API shows.
func (g guarded) state(limits *api.CampaignGuards) api.GuardState {
	st := api.GuardState{
		BounceRate: share(g.bounced, g.delivered+g.bounced), ComplaintRate: share(g.complained, g.delivered),
		DeferralRate: share(g.deferred, g.delivered+g.bounced+g.deferred), Sample: g.delivered + g.bounced, State: "ok",
	}
	for _, one := range [][2]float64{
		{st.BounceRate, rateOf(limits.BounceRate)}, {st.ComplaintRate, rateOf(limits.ComplaintRate)}, {st.DeferralRate, rateOf(limits.DeferralRate)},
	} {
		if one[1] > 0 && one[0] >= one[1]/2 && st.Sample >= limits.MinSample {
			st.State = "warn"
		}
	}
	if reason, _ := g.verdict(limits); reason != "" {
		st.State = "tripped"
	}
	return st
}

// verdict is why the campaign must pause, with a text for people; "" if it need not.
func (g guarded) verdict(limits *api.CampaignGuards) (reason, detail string) {
	for _, one := range []struct {
		reason, what string
		n, of        int64
		limit        float64
	}{
		{reasonComplaint, "complaints", g.complained, g.delivered, rateOf(limits.ComplaintRate)},
		{reasonBounce, "bounces", g.bounced, g.delivered + g.bounced, rateOf(limits.BounceRate)},
		{reasonDeferral, "deferrals", g.deferred, g.delivered + g.bounced + g.deferred, rateOf(limits.DeferralRate)},
	} {
		if one.limit > 0 && one.of >= limits.MinSample && float64(one.n) >= one.limit*float64(one.of) {
			return one.reason, fmt.Sprintf("%d %s of %d recipients: %.1f %% where the limit is %.1f %%", one.n, one.what, one.of,
				share(one.n, one.of)*100, one.limit*100)
		}
	}
	return "", ""
}

func rateOf(r *float64) float64 {
	if r == nil {
		return 0
	}
	return *r
}

func share(n, of int64) float64 {
	if of <= 0 {
		return 0
	}
	return math.Round(float64(n)/float64(of)*1e6) / 1e6
}

// guard pauses a running campaign in tx if its counts say so.
func (s *Service) guard(tx kv.Tx, r *record, t *tally, deferred int64) (tripped bool, err error) {
	if r.State != Running || r.Guards.Action != "pause" {
		return false, nil
	}
	reason, detail := t.guarded(deferred).verdict(&r.Guards)
	if reason == "" {
		return false, nil
	}
	r.State, r.Reason, r.Detail = Paused, reason, detail
	if err := r.put(tx); err != nil {
		return false, err
	}
	return true, s.tell(tx, r, "campaign.paused")
}

// rebase makes the guards count from now on.
func (s *Service) rebase(tx kv.Tx, r *record) error {
	t, err := sum(tx, r.ID)
	if err != nil {
		return err
	}
	return s.change(tx, r.ID, func(own *tally) {
		own.baseDelivered += t.delivered - t.baseDelivered
		own.baseBounced += t.bounced - t.baseBounced
		own.baseComplained += t.complained - t.baseComplained
	})
}

// Complained counts a complaint that came in by another way than the mail itself. source is the campaign, or one of its
// envelopes; anything else is passed over.
func (s *Service) Complained(ctx context.Context, account, source string) error {
	id, err := parseID(source)
	if err != nil {
		e, bad := mail.ParseEnvelopeID(source)
		if bad != nil {
			return nil //nolint:nilerr // of no campaign
		}
		id = e.Message
	}
	err = s.db.Update(ctx, func(tx kv.Tx) error {
		r, err := getRecord(tx, id)
		if errors.Is(err, ErrNotFound) || err == nil && r.Account != account {
			return nil
		}
		if err != nil {
			return err
		}
		return s.ComplainedTx(tx, formatID(id), 1)
	})
	if err != nil {
		return fmt.Errorf("count complaint: %w", err)
	}
	return nil
}

// ComplainedTx counts complaints about a campaign's mail, and lets its guard see them. Complaints about campaigns that
// relayd has forgotten are passed over.
func (s *Service) ComplainedTx(tx kv.Tx, campaign string, n int64) error {
	id, err := parseID(campaign)
	if err != nil {
		return nil //nolint:nilerr // not a campaign
	}
	if _, err := getRecord(tx, id); err != nil {
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		return err
	}
	if err := s.change(tx, id, func(t *tally) { t.complained += n }); err != nil {
		return err
	}
	t, err := sum(tx, id)
	if err != nil {
		return err
	}
	return s.watch(tx, id, &t)
}
