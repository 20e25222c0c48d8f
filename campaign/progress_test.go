package campaign

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/spool"
)

// hosts plays delivery: what it knows of recipient domains.
type hosts map[string]Wait

func (h hosts) SiteOf(domain string) string { return "mx." + domain }

func (h hosts) Waits(queues []spool.Queue) []Wait {
	waits := make([]Wait, len(queues))
	for i, q := range queues {
		waits[i] = h[q.Domain]
	}
	return waits
}

func nextHour(r *rig) func([]byte, *spool.Envelope) spool.Result {
	return func([]byte, *spool.Envelope) spool.Result {
		return spool.Result{Outcome: spool.Deferred, NextAttempt: r.now().Add(time.Hour)}
	}
}

func TestProgressNamesWhatHoldsMostBack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	until := r.now().Add(time.Hour)
	c := r.draftOf(0, func(req *api.CreateCampaign) {
		for i := range 60 { // 10 at a.example, 20 at b.example, 30 at google.com
			domain := map[int]string{0: "a.example", 1: "b.example", 2: "b.example"}[i%6]
			if domain == "" {
				domain = "google.com"
			}
			req.Recipients = append(req.Recipients, to(fmt.Sprintf("u%d@%s", i, domain), "N"))
		}
	})
	_, err := r.Start(t.Context(), "default", c.ID)
	require.NoError(t, err)
	r.fan()
	limited := func(h hosts) api.Progress {
		r.Service.sites = h
		return r.progress(c.ID)
	}
	site := Wait{Limit: "site:mx.b.example", Detail: "3 of 3 connections are busy"}
	p := limited(hosts{})
	require.Equal(t, "delivery", p.LimitedBy, "all of them wait for their turn only")
	require.Equal(t, "delivery", limited(hosts{"b.example": site}).LimitedBy, "most wait for their turn")
	p = limited(hosts{"a.example": site, "b.example": site})
	require.Equal(t, "site:mx.b.example", p.LimitedBy, "together they are as many")
	require.Equal(t, "3 of 3 connections are busy", p.LimitedDetail)
	require.Nil(t, p.LimitedUntil)

	google := Wait{Limit: "provider:google", State: "backoff", Until: until, Detail: "421 4.7.28 too fast", PerSecond: 20}
	p = limited(hosts{"b.example": site, "google.com": google})
	require.Equal(t, "provider:google", p.LimitedBy)
	require.Equal(t, until, *p.LimitedUntil)
	require.Equal(t, api.ProviderProgress{Name: "google", Waiting: 30, LimitPerSecond: 20, State: "backoff", Until: &until, Reason: "421 4.7.28 too fast"}, p.Providers[0])
	require.Equal(t, api.ProviderProgress{Name: "other", Waiting: 30, State: "ok"}, p.Providers[1])

	// What a closed provider has deferred counts as held back by it, not as waiting for its next attempt.
	for r.deliver(60, nextHour(r)) > 0 {
	}
	p = limited(hosts{"google.com": google})
	require.Equal(t, "provider:google", p.LimitedBy)
	require.Equal(t, int64(30), p.Providers[0].Deferred)
	require.Equal(t, "retry_schedule", limited(hosts{"b.example": {Limit: "site:mx.b.example", State: "suspended"}}).LimitedBy, "most were refused for now")
	require.Equal(t, "retry_schedule", limited(hosts{"google.com": {Limit: "provider:google"}}).LimitedBy, "a rate keeps nobody from the time that they wait for")
}

// A campaign to many domains asks delivery about a bounded number of them, and counts all.
func TestProgressIsBoundedInDomains(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n := lookedQueues + 300
	asked := 0
	r.Service.sites = counting{&asked}
	c := r.draftOf(0, func(req *api.CreateCampaign) {
		for i := range n {
			req.Recipients = append(req.Recipients, to(fmt.Sprintf("u@d%d.example", i), "N"))
		}
	})
	_, err := r.Start(t.Context(), "default", c.ID)
	require.NoError(t, err)
	r.fan()
	asked = 0
	p := r.progress(c.ID)
	require.LessOrEqual(t, asked, lookedQueues+askedQueues)
	require.Len(t, p.Providers, 1)
	require.Equal(t, int64(n), p.Providers[0].Waiting)
}

type counting struct{ asked *int }

func (c counting) SiteOf(domain string) string {
	*c.asked++
	return "mx." + domain
}

func (c counting) Waits(queues []spool.Queue) []Wait {
	*c.asked += len(queues)
	return make([]Wait, len(queues))
}

// A spool that takes nothing more is what holds a campaign back.
func TestProgressTellsOfPressure(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.draftOf(3)
	_, err := r.Start(t.Context(), "default", c.ID)
	require.NoError(t, err)
	r.minMemory = 1 << 60
	r.reopen()
	r.round(t.Context())
	p := r.progress(c.ID)
	require.Equal(t, "spool", p.LimitedBy)
	require.Equal(t, "nothing more is queued: too little memory", p.LimitedDetail)
	r.minMemory = 0
	r.reopen()
	r.fan()
	require.Equal(t, "delivery", r.progress(c.ID).LimitedBy)
}

// A campaign that sends as much at a time as it may says so with the figure, also before anything of it had to wait for that.
func TestProgressTellsOfItsOwnConcurrency(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.draftOf(5, func(req *api.CreateCampaign) { req.Send.MaxConcurrency = 2 })
	_, err := r.Start(t.Context(), "default", c.ID)
	require.NoError(t, err)
	r.fan()
	require.Equal(t, "delivery", r.progress(c.ID).LimitedBy)
	require.Equal(t, 2, r.deliver(2, func(msg []byte, e *spool.Envelope) spool.Result {
		p := r.progress(c.ID)
		require.Equal(t, "campaign.max_concurrency", p.LimitedBy)
		require.Equal(t, "campaign "+c.ID+" has all the transactions that it may have (2)", p.LimitedDetail)
		return delivered(msg, e)
	}))
	require.Empty(t, r.progress(c.ID).LimitedDetail)
}
