package campaign

import (
	"context"
	"fmt"
	"math"
	"time"

	"relayd/internal/api"
	"relayd/internal/kv"
)

// schedule is when a campaign is to be sent.
type schedule struct {
	At    time.Time `json:"at,omitzero"`     // a moment; with Local the first at which it is that time anywhere
	Local string    `json:"local,omitempty"` // a time of day where the recipient is, in localForm
	Zone  string    `json:"zone,omitempty"`  // of recipients without one, with Local
}

const (
	localForm  = "2006-01-02T15:04:05"
	maxAhead   = 366 * 24 * time.Hour
	firstZone  = 14 * time.Hour // the zones of the earth go from UTC+14 to UTC-12
	lastZone   = 12 * time.Hour
	quietSlack = 24 * time.Hour // no quiet time lasts longer
)

func (sc *schedule) api() *api.CampaignSchedule {
	switch {
	case sc == nil:
		return nil
	case sc.Local != "":
		return &api.CampaignSchedule{SendAtLocal: sc.Local, FallbackTimezone: sc.Zone}
	}
	return &api.CampaignSchedule{SendAt: sc.At}
}

// scheduleOf checks a request.
func (s *Service) scheduleOf(in *api.CampaignSchedule) (*schedule, error) {
	bad := &Invalid{}
	sc := &schedule{}
	switch {
	case in.SendAt.IsZero() && in.SendAtLocal == "":
		bad.add("/send_at", api.CodeInvalidParameter, "a time is needed: send_at, or send_at_local with fallback_timezone")
	case !in.SendAt.IsZero() && in.SendAtLocal != "":
		bad.add("/send_at_local", api.CodeInvalidParameter, "stands beside send_at: give one of them")
	case in.SendAtLocal != "":
		s.localSchedule(sc, in, bad)
	default:
		sc.At = in.SendAt.UTC()
		if in.FallbackTimezone != "" {
			bad.add("/fallback_timezone", api.CodeInvalidParameter, "goes with send_at_local")
		}
	}
	if err := bad.orNil(); err != nil {
		return nil, err
	}
	now := s.now()
	name := "/send_at"
	last := sc.At
	if sc.Local != "" {
		name, last = "/send_at_local", sc.At.Add(firstZone+lastZone)
	}
	switch {
	case !last.After(now):
		bad.add(name, api.CodeInvalidParameter, "is over: it is %s now", now.UTC().Format(time.RFC3339))
	case sc.At.After(now.Add(maxAhead)):
		bad.add(name, api.CodeInvalidParameter, "is more than %d days ahead", int(maxAhead/(24*time.Hour)))
	}
	return sc, bad.orNil()
}

func (s *Service) localSchedule(sc *schedule, in *api.CampaignSchedule, bad *Invalid) {
	var at time.Time
	var err error
	for _, form := range []string{localForm, "2006-01-02T15:04"} {
		if at, err = time.Parse(form, in.SendAtLocal); err == nil {
			break
		}
	}
	if err != nil {
		bad.add("/send_at_local", api.CodeInvalidParameter, "%q is not a time without a zone such as 2026-11-27T09:00", clip(in.SendAtLocal, 40))
	}
	if in.FallbackTimezone == "" {
		bad.add("/fallback_timezone", api.CodeInvalidParameter, "is needed with send_at_local, for recipients without a timezone attribute")
	} else if _, err := s.zones.find(in.FallbackTimezone); err != nil {
		bad.add("/fallback_timezone", api.CodeInvalidParameter, "%s", err)
	}
	sc.Local, sc.Zone, sc.At = at.Format(localForm), in.FallbackTimezone, at.Add(-firstZone)
}

// Schedule makes a draft start by itself, or gives a scheduled campaign another time.
func (s *Service) Schedule(ctx context.Context, account, id string, in *api.CampaignSchedule) (api.Campaign, error) {
	sc, err := s.scheduleOf(in)
	if err != nil {
		return api.Campaign{}, err
	}
	r, err := s.read(ctx, account, id)
	if err != nil {
		return api.Campaign{}, err
	}
	if r.State != Draft && r.State != Scheduled {
		return api.Campaign{}, &StateError{"schedule", r.State}
	}
	if err := s.sendable(ctx, r); err != nil {
		return api.Campaign{}, err
	}
	r, err = s.edit(ctx, account, id, "schedule", func(tx kv.Tx, r *record) error {
		if r.State != Draft && r.State != Scheduled {
			return &StateError{"schedule", r.State}
		}
		r.State, r.Schedule, r.Reason, r.Detail = Scheduled, sc, "", ""
		return s.tell(tx, r, "campaign.scheduled")
	})
	return s.answer(ctx, r, err)
}

// Unschedule makes a scheduled campaign a draft again.
func (s *Service) Unschedule(ctx context.Context, account, id string) (api.Campaign, error) {
	r, err := s.move(ctx, account, id, "unschedule", func(_ kv.Tx, r *record) error {
		switch {
		case r.State == Draft:
			return nil
		case r.State == Scheduled, r.State == Paused && r.Reason == reasonMisfire:
			r.State, r.Schedule, r.Reason, r.Detail = Draft, nil, "", ""
			return nil
		}
		return &StateError{"unschedule", r.State}
	})
	return s.answer(ctx, r, err)
}

// fire starts a scheduled campaign whose time has come. One whose time was missed by more than its grace waits for a
// person: relayd was down, or the machine is a copy of one that has sent it.
func (s *Service) fire(ctx context.Context, r *record) error {
	r, err := s.move(ctx, "", formatID(r.ID), "start", func(tx kv.Tx, r *record) error {
		if r.State != Scheduled {
			return nil
		}
		now := s.now()
		due := r.Schedule.At
		if r.Schedule.Local != "" {
			due = due.Add(firstZone) // it counts from the middle of the earth, not from its first hour
		}
		late := now.Sub(due)
		if grace := time.Duration(*r.Send.MisfireGraceSeconds) * time.Second; late > grace {
			r.State, r.Reason = Paused, reasonMisfire
			r.Detail = fmt.Sprintf("it was to start at %s, %s ago; send.misfire_grace_seconds allows %s: resume starts it now",
				due.Format(time.RFC3339), late.Round(time.Second), grace)
			return s.tell(tx, r, "campaign.paused")
		}
		r.State, r.Cut = Preparing, now.UTC()
		return nil
	})
	if err != nil {
		return err
	}
	if r.State == Paused {
		s.metrics.paused.WithLabelValues(r.Reason).Inc()
		s.log.Warn("campaign.misfired", "campaign", formatID(r.ID), "account", r.Account, "reason", r.Reason)
	}
	return nil
}

// plan is how a running campaign's recipients are laid out in time.
type plan struct {
	start  time.Time // of the campaign
	local  time.Time // the time of day, as if it were UTC; zero: all at start
	zone   *time.Location
	spread time.Duration
	quiet  *quiet
	last   time.Time // the last moment at which a recipient may be due
}

// layout is the plan of a campaign that has started.
func (r *record) layout() plan {
	p := plan{start: r.Started, spread: time.Duration(r.Send.SpreadSeconds) * time.Second}
	p.last = p.start.Add(p.spread)
	if r.Schedule != nil && r.Schedule.Local != "" {
		if at, err := time.Parse(localForm, r.Schedule.Local); err == nil {
			p.local = at
			p.last = later(p.last, at.Add(lastZone+p.spread))
		}
		p.zone, _ = (&zones{}).find(r.Schedule.Zone)
	}
	if r.Rules != nil && r.Rules.quiet() != nil {
		p.quiet = r.Rules.quiet()
		p.last = p.last.Add(quietSlack)
	}
	return p
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// trivial tells that every recipient is due at once.
func (p *plan) trivial() bool { return p.local.IsZero() && p.spread == 0 && p.quiet == nil }

// due is when the recipient with number n, whose zone is loc (nil: not known), is to be sent to. It depends on nothing
// that changes, so that a restart gives the same answer; numbers are spread evenly.
func (p *plan) due(n uint64, loc *time.Location) time.Time {
	at := p.start
	if !p.local.IsZero() {
		zone := loc
		if zone == nil {
			zone = p.zone
		}
		if zone == nil {
			zone = time.UTC
		}
		l := p.local
		at = later(at, time.Date(l.Year(), l.Month(), l.Day(), l.Hour(), l.Minute(), l.Second(), 0, zone))
	}
	at = at.Add(time.Duration(float64(p.spread) * (float64(n) / math.MaxInt64)))
	if p.quiet != nil {
		at = p.quiet.after(at, loc)
	}
	return at
}
