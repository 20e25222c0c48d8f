package campaign

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"relayd/internal/api"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// speed keeps what was finished when, for the last seconds.
type speed struct {
	at       [12]time.Time
	finished [12]int64
	next     int
}

const speedWindow = 10 * time.Second

// add notes how many recipients are finished now, at most once a second.
func (p *speed) add(now time.Time, finished int64) {
	last := (p.next + len(p.at) - 1) % len(p.at)
	if !p.at[last].IsZero() && now.Sub(p.at[last]) < time.Second {
		return
	}
	p.at[p.next], p.finished[p.next] = now, finished
	p.next = (p.next + 1) % len(p.at)
}

// rate is per second, over the last ten seconds.
func (p *speed) rate(now time.Time, finished int64) float64 {
	oldest, from := now, finished
	for i, at := range p.at {
		if !at.IsZero() && now.Sub(at) <= speedWindow+500*time.Millisecond && at.Before(oldest) {
			oldest, from = at, p.finished[i]
		}
	}
	if d := now.Sub(oldest).Seconds(); d > 0 {
		return round(float64(finished-from) / d)
	}
	return 0
}

func round(f float64) float64 { return math.Round(f*10) / 10 }

// sample notes the progress of a campaign that nobody asks about.
func (s *Service) sample(ctx context.Context, id mail.QueueID) error {
	t, err := s.total(ctx, id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if j := s.jobs[id]; j != nil {
		j.speed.add(s.now(), t.finished())
	}
	return nil
}

// Progress returns counts that sum to the total. It costs the same for ten recipients as for ten million.
func (s *Service) Progress(ctx context.Context, account, id string) (api.Progress, error) {
	// The spool is asked first: an envelope that is settled meanwhile is then counted as pending for a moment, never
	// twice.
	waiting, deferred, leased := s.spool.CampaignStats(id)
	var r *record
	var t tally
	err := s.db.View(ctx, func(tx kv.Tx) (err error) {
		if r, err = s.owned(tx, account, id); err != nil {
			return err
		}
		t, err = sum(tx, r.ID)
		return err
	})
	if err != nil {
		return api.Progress{}, err
	}
	p := api.Progress{
		ID: formatID(r.ID), Name: r.Name, State: r.State, Reason: r.Reason, Detail: r.Detail, Total: t.total, Counts: t.counts(),
		CreatedAt: r.Created, FirstDeliveredAt: timeOf(t.first), Providers: []api.ProviderProgress{},
	}
	if r.State == Cancelled || r.State == Failed {
		p.Counts.Cancelled += t.total - t.queued
	}
	rest := t.total - p.Counts.Finished()
	p.Counts.Sending = min(int64(leased), rest)
	p.Counts.Deferred = min(int64(deferred), rest-p.Counts.Sending)
	p.Counts.Pending = rest - p.Counts.Sending - p.Counts.Deferred
	p.Guards = t.guarded(p.Counts.Deferred).state(&r.Guards)
	w := s.waiting(r)
	s.providers(&p, &w, &t)
	if !r.Started.IsZero() {
		started := r.Started
		p.StartedAt, p.SnapshotAt = &started, &started
	}
	if !r.Finished.IsZero() {
		finished := r.Finished
		p.FinishedAt = &finished
	}
	s.rates(&p, r, t, rest)
	s.bottleneck(&p, r, rest, waiting, &w)
	return p, nil
}

// rates fills in speed and end.
func (s *Service) rates(p *api.Progress, r *record, t tally, rest int64) {
	now := s.now()
	until := now
	if p.FinishedAt != nil {
		until = *p.FinishedAt
	}
	if d := until.Sub(r.Started).Seconds(); !r.Started.IsZero() && d > 0 {
		p.Rate.Average = round(float64(t.finished()) / d)
	}
	s.mu.Lock()
	if j := s.jobs[r.ID]; j != nil {
		j.speed.add(now, t.finished())
		p.Rate.Last10s = j.speed.rate(now, t.finished())
	}
	s.mu.Unlock()
	rate := p.Rate.Last10s
	if rate == 0 {
		rate = p.Rate.Average
	}
	if r.State == Running && rate > 0 && rest > 0 {
		eta := now.Add(time.Duration(float64(rest) / rate * float64(time.Second))).UTC().Truncate(time.Second)
		p.ETA = &eta
	}
}

// bottleneck fills in what keeps a campaign from being faster, nothing where nothing is left to do.
func (s *Service) bottleneck(p *api.Progress, r *record, rest int64, waiting int, w *waiting) {
	s.mu.Lock()
	j := job{}
	if at := s.jobs[r.ID]; at != nil {
		j = *at
	}
	s.mu.Unlock()
	now := s.now()
	c := &p.Counts
	busy := c.Sending + int64(waiting)
	limit := func(found Wait, otherwise string) {
		p.LimitedBy = otherwise
		if found.Limit != "" {
			p.LimitedBy, p.LimitedDetail, p.LimitedUntil = found.Limit, found.Detail, momentOf(found.Until)
		}
	}
	switch {
	case r.State == Paused:
		p.LimitedBy = "paused"
	case r.State == Scheduled:
		p.LimitedBy = "schedule"
	case r.State != Running || rest == 0:
	case now.Before(j.hushed) && c.Sending == 0:
		p.LimitedBy, p.LimitedUntil = "quiet_hours", momentOf(j.hushed)
	case c.Pending+c.Sending == 0:
		limit(w.limit(true), "retry_schedule")
	case !r.Queued && busy == 0 && j.next.After(now) && r.Placed:
		p.LimitedBy, p.LimitedUntil = "campaign.schedule", momentOf(j.next)
	case !r.Queued && s.spool.Pressure() != "":
		p.LimitedBy, p.LimitedDetail = "spool", "nothing more is queued: too little "+s.spool.Pressure()
	case !r.Queued && r.Send.MaxRatePerSecond > 0 && float64(waiting) <= r.Send.MaxRatePerSecond:
		p.LimitedBy = "campaign.max_rate_per_second"
	case !r.Queued && waiting == 0:
		p.LimitedBy = "fanout"
	case waiting == 0 && c.Sending == 0: // what is not deferred is not queued
		limit(w.limit(true), "delivery")
	default:
		limit(w.limit(false), "delivery")
		if p.LimitedBy == "delivery" && r.Send.MaxConcurrency > 0 && c.Sending >= int64(r.Send.MaxConcurrency) {
			p.LimitedBy = "campaign.max_concurrency"
			p.LimitedDetail = fmt.Sprintf("campaign %s has all the transactions that it may have (%d)", p.ID, r.Send.MaxConcurrency)
		}
	}
}

// maxPage bounds what a listing returns at once.
const maxPage = 1000

// List returns the account's campaigns, newest first, and with account "" those of all.
func (s *Service) List(ctx context.Context, account, cursor string, limit int) (api.CampaignList, error) {
	if limit <= 0 || limit > maxPage {
		limit = 100
	}
	ids, err := s.ids(ctx, account)
	if err != nil {
		return api.CampaignList{}, err
	}
	start := len(ids)
	if cursor != "" {
		b, err := base64.RawURLEncoding.DecodeString(cursor)
		if err != nil || len(b) != len(mail.QueueID{}) {
			return api.CampaignList{}, ErrBadCursor
		}
		for start > 0 && string(ids[start-1][:]) >= string(b) {
			start--
		}
	}
	list := api.CampaignList{Data: []api.Campaign{}}
	err = s.db.View(ctx, func(tx kv.Tx) error {
		list = api.CampaignList{Data: []api.Campaign{}}
		for i := start - 1; i >= 0; i-- {
			if len(list.Data) == limit {
				list.HasMore, list.NextCursor = true, base64.RawURLEncoding.EncodeToString(ids[i+1][:])
				break
			}
			r, err := getRecord(tx, ids[i])
			if err != nil {
				return err
			}
			t, err := sum(tx, ids[i])
			if err != nil {
				return err
			}
			list.Data = append(list.Data, r.api(t.total))
		}
		return nil
	})
	return list, err
}

// ids returns the campaigns of an account in order.
func (s *Service) ids(ctx context.Context, account string) (ids []mail.QueueID, err error) {
	table, prefix := tableCampaign, []byte(nil)
	var end []byte
	if account != "" {
		table, prefix = tableAccount, append([]byte(account), 0)
		end = kv.PrefixEnd(prefix)
	}
	err = s.db.View(ctx, func(tx kv.Tx) error {
		ids = nil
		return tx.Scan(table, prefix, end, func(k, _ []byte) (bool, error) {
			if k = k[len(prefix):]; len(k) == len(mail.QueueID{}) {
				ids = append(ids, mail.QueueID(k))
			}
			return true, nil
		})
	})
	return ids, err
}

func cursorOf(n uint64) string {
	return base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint64([]byte{recordVersion}, n))
}

// cursorNumber is the number behind which a listing goes on; the spool's "before the first" for no cursor.
func cursorNumber(cursor string) (uint64, error) {
	if cursor == "" {
		return math.MaxUint64, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil || len(b) != 9 || b[0] != recordVersion {
		return 0, ErrBadCursor
	}
	return binary.BigEndian.Uint64(b[1:]), nil
}
