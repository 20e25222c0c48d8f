package campaign

import (
	"context"
	"errors"
	"fmt"

	"relayd/internal/account"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// This file holds campaigns to the quota of their account. A recipient counts when its envelope is made, unless it is
// suppressed at once.

// overQuota tells that a page does not fit into what is left of the account's 24 hours.
type overQuota struct{ left int64 }

func (e *overQuota) Error() string { return fmt.Sprintf("%d recipients are left of the quota", e.left) }

// reserve counts the page's envelopes, in the transaction that makes them.
func (p *paging) reserve(tx kv.Tx) error {
	q, n := p.s.quota, len(p.page.Recipients)-len(p.page.Done)
	if q == nil || n == 0 {
		return nil
	}
	took, err := q.ReserveDay(p.r.Account, n)
	if errors.Is(err, account.ErrQuota) {
		left, _ := q.Left(p.r.Account)
		return &overQuota{min(left, int64(len(p.page.Recipients)-1))}
	}
	if err != nil {
		return err
	}
	p.took = took
	return took.PutTx(tx)
}

// release24 gives back what a page took that was not stored.
func (p *paging) release24() {
	if p.took != nil {
		p.took.Release()
		p.took = nil
	}
}

// pauseOver pauses a campaign whose account has used up its 24 hours.
func (s *Service) pauseOver(ctx context.Context, id mail.QueueID) error {
	paused := false
	r, err := s.move(ctx, "", formatID(id), "pause", func(tx kv.Tx, r *record) error {
		paused = r.State == Running
		if !paused {
			return nil
		}
		r.State, r.Reason = Paused, reasonQuota
		r.Detail = "the account has used up its recipients of 24 hours: resume when some are free again"
		return s.tell(tx, r, "campaign.paused")
	})
	if err == nil && paused {
		s.metrics.paused.WithLabelValues(r.Reason).Inc()
		s.log.Warn("campaign.guarded", "campaign", formatID(id), "account", r.Account, "reason", r.Reason, "err", r.Detail)
	}
	return err
}

// quota24 tells whether the account's quota has room for the recipients that become due within 24 hours.
func (v *validation) quota24() {
	if v.s.quota == nil {
		return
	}
	left, limited := v.s.quota.Left(v.r.Account)
	if !limited {
		return
	}
	const day = 24 * 60 * 60
	need, send := v.out.Recipients.WillSend, &v.r.Send
	if send.SpreadSeconds > day {
		need = int64(float64(need) / float64(send.SpreadSeconds) * day)
	}
	if send.MaxRatePerSecond > 0 {
		need = min(need, int64(send.MaxRatePerSecond*day))
	}
	check := v.add("quota_24h", need <= left, "%d recipients become due within 24 hours, and the account's quota has %d left: the campaign would pause there", need, left)
	check.Remaining = &left
}
