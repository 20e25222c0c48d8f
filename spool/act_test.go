package spool_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/event"
	"relayd/internal/mail"
	"relayd/spool"
)

func act(t *testing.T, f *fixture, a spool.Action, selector string) spool.ActResult {
	t.Helper()
	sel, err := spool.ParseSelector(selector)
	require.NoError(t, err)
	got, err := f.Act(t.Context(), a, sel, "alice", "because", false)
	require.NoError(t, err)
	return got
}

func TestHeldEnvelopeWaitsForRelease(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	m, _ := f.commit("b", "a@x.example", "b@y.example")
	require.Equal(t, spool.ActResult{Matched: 1, Changed: 1}, act(t, f, spool.ActionHold, "domain=x.example"))
	require.Equal(t, spool.ActResult{Matched: 1, Unchanged: 1}, act(t, f, spool.ActionHold, "domain=x.example"))
	l := f.lease(10)
	require.Len(t, l.Envelopes, 1)
	require.Equal(t, "y.example", l.Envelopes[0].Queue.Domain)
	f.advance(time.Second)
	f.reopen()
	require.Len(t, f.list("state=held", 10), 1)
	require.Equal(t, spool.ActResult{Matched: 1, Unchanged: 1}, act(t, f, spool.ActionRetry, "state=held"))
	require.Equal(t, spool.ActResult{Matched: 1, Changed: 1}, act(t, f, spool.ActionRelease, "state=held"))
	require.Len(t, f.lease(10).Envelopes, 2)
	require.Equal(t, []string{"message.accepted", "message.held", "message.released"}, f.eventsSorted(m.ID))
}

func TestHoldOfALeasedEnvelopeTakesEffectWhenDeferred(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.commit("b", "a@x.example", "b@x.example")
	l := f.lease(10)
	require.Equal(t, spool.ActResult{Matched: 2, InFlight: 2}, act(t, f, spool.ActionHold, ""))
	require.Equal(t, spool.ActResult{Matched: 2, InFlight: 2}, act(t, f, spool.ActionFail, ""))
	require.Equal(t, spool.ActResult{Matched: 2, InFlight: 2}, act(t, f, spool.ActionRetry, ""))
	results := all(l, spool.Result{Outcome: spool.Deferred, NextAttempt: f.now()})
	results[0].Outcome = spool.Delivered
	require.NoError(t, f.Settle(t.Context(), l, results))
	require.Empty(t, f.lease(10).Envelopes)
	require.Equal(t, int64(1), f.stats().Held)
	require.Len(t, f.list("state=held", 10), 1)
}

func TestHoldOfALeasedEnvelopeSurvivesACrash(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.commit("b", "a@x.example")
	f.lease(1)
	act(t, f, spool.ActionHold, "")
	f.reopen()
	require.Equal(t, int64(1), f.stats().Held)
	require.Equal(t, 1, f.list("", 10)[0].Envelope.InDoubt)
	act(t, f, spool.ActionRelease, "")
	require.Len(t, f.lease(10).Envelopes, 1)
}

func TestRetryMakesADeferredEnvelopeDue(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.commit("b", "a@x.example")
	f.settle(f.lease(1), spool.Result{Outcome: spool.Deferred, NextAttempt: f.now().Add(time.Hour), Reply: busy, Presented: true})
	require.Len(t, f.list(`state=deferred reply="try LATER"`, 10), 1)
	require.Empty(t, f.list("reply=5.1.1", 10))
	dry, err := f.Act(t.Context(), spool.ActionRetry, spool.Selector{}, "alice", "", true)
	require.NoError(t, err)
	require.Equal(t, spool.ActResult{Matched: 1, Changed: 1}, dry)
	require.Empty(t, f.lease(1).Envelopes, "a dry run changes nothing")
	act(t, f, spool.ActionRetry, "")
	l := f.lease(1)
	require.Len(t, l.Envelopes, 1)
	require.Equal(t, 1, l.Envelopes[0].Attempts)
}

func TestFailSettlesWithAuthorAndReason(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	m, envs := f.commit("b", "a@x.example", "b@x.example")
	act(t, f, spool.ActionHold, "to=a@x.example")
	require.Equal(t, spool.ActResult{Matched: 2, Changed: 2}, act(t, f, spool.ActionFail, ""))
	require.Zero(t, f.records("message"))
	outcomes, err := f.ListOutcomes(t.Context(), m.ID, ^uint64(0), 10)
	require.NoError(t, err)
	require.Len(t, outcomes, 2)
	require.Equal(t, "operator", outcomes[0].Reason)
	page, _, err := f.log.List(t.Context(), event.Filter{}, "", 100)
	require.NoError(t, err)
	found := false
	for _, e := range page {
		if e.Type == "message.failed" && e.Envelope == envs[0].ID.String() {
			found = true
			require.Equal(t, map[string]any{"who": "alice", "why": "because"}, e.Data)
		}
	}
	require.True(t, found)
}

func TestUnknownActionIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	_, err := f.Act(t.Context(), "explode", spool.Selector{}, "", "", false)
	require.ErrorIs(t, err, spool.ErrAction)
	_, err = f.Act(t.Context(), spool.ActionHold, spool.Selector{State: "odd"}, "", "", false)
	require.ErrorIs(t, err, spool.ErrSelector)
}

func TestActionsAndPagesCoverManyEnvelopes(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var to []string
	for i := range 1200 {
		to = append(to, fmt.Sprintf("u%d@d%d.example", i, i%3))
	}
	f.campaign(nil, "cmp_1", to...)
	require.Len(t, f.list("", 1000), 1200)
	require.Len(t, f.list("domain=d1.example", 7), 400)
	require.Empty(t, f.list("domain=d1.example account=other", 7))
	require.Equal(t, spool.ActResult{Matched: 400, Changed: 400}, act(t, f, spool.ActionHold, "domain=d2.example"))
	require.Equal(t, spool.ActResult{Matched: 1200, Changed: 800, Unchanged: 400}, act(t, f, spool.ActionHold, ""))
	require.Equal(t, int64(1200), f.stats().Held)
	require.Equal(t, 1200, act(t, f, spool.ActionFail, "").Changed)
	require.Empty(t, f.QueueStats())
}

func TestListingSelectsByEveryTerm(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	m, envs := f.commit("b", "a@x.example", "b@y.example")
	null, nullEnvs := f.message("c@x.example")
	null.ReversePath, null.Account, null.Stream = mail.Path{}, "acme", "dsn"
	nullEnvs[0].Queue.Account, nullEnvs[0].Queue.Stream, nullEnvs[0].Class = "acme", "dsn", spool.Urgent
	require.NoError(t, f.Commit(context.Background(), null, nil, nullEnvs, nil))
	f.advance(time.Hour)
	f.campaign(nil, "cmp_1", "d@x.example")
	for selector, want := range map[string]int{
		"": 4, "domain=x.example": 3, "from=sender@example.com": 2, "from=@example.com": 3, "from=<>": 1,
		"to=a@x.example": 1, "account=acme": 1, "stream=transactional": 2, "campaign=cmp_1": 1, "campaign=transactional": 0,
		"state=ready": 4, "state=leased": 0, "class=urgent": 1, "class=bulk": 1, "age>30m": 3, "age<30m": 1, "age>2h": 0,
		"id=" + m.ID.String(): 2, "id=" + envs[1].ID.String(): 1,
		"id=" + envs[1].ID.String() + " id=" + null.ID.String(): 2, "id=" + m.ID.String() + " domain=y.example": 1,
	} {
		for _, limit := range []int{1, 100} {
			require.Len(t, f.list(selector, limit), want, selector)
		}
	}
	infos, err := f.ListEnvelopes(t.Context(), m.ID, 0, 10)
	require.NoError(t, err)
	require.Len(t, infos, 1)
	require.Equal(t, envs[1].ID, infos[0].Envelope.ID)
	require.Equal(t, m.Subject, infos[0].Subject)
}

func TestMoveSendsOverAnotherRoute(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	_, envs := f.commit("b", "a@x.example", "b@y.example", "c@x.example")
	f.settle(f.lease(1), spool.Result{Outcome: spool.Deferred, Reply: busy, NextAttempt: f.now().Add(time.Hour)})
	flying := f.lease(1)
	require.Len(t, flying.Envelopes, 1)
	res, err := f.Move(t.Context(), "upstream", spool.Selector{}, "ann", "", true)
	require.NoError(t, err)
	want := spool.ActResult{Matched: 3, Changed: 2, InFlight: 1}
	require.Equal(t, want, res)
	res, err = f.Move(t.Context(), "upstream", spool.Selector{}, "ann", "", false)
	require.NoError(t, err)
	require.Equal(t, want, res)
	require.Empty(t, f.check().Findings)
	f.settle(flying, spool.Result{Outcome: spool.Deferred, Reply: busy, NextAttempt: f.now().Add(time.Hour)})
	via := 0
	l := f.lease(10)
	for _, e := range l.Envelopes {
		if e.Queue.Via() == "upstream" {
			via++
			require.NotEqual(t, e.Queue.Domain, e.To.Domain)
		}
	}
	require.Equal(t, 2, via)
	require.Len(t, l.Envelopes, 2, "moved ones are due at once")
	require.NoError(t, f.Release(t.Context(), l, f.now()))
	f.reopen()
	res, err = f.Move(t.Context(), "", spool.Selector{}, "ann", "", false)
	require.NoError(t, err)
	require.Equal(t, spool.ActResult{Matched: 3, Changed: 2, Unchanged: 1}, res)
	for _, q := range f.QueueStats() {
		require.Empty(t, q.Queue.Via())
	}
	require.EqualValues(t, len(envs), f.stats().Queued)
	_, err = f.Move(t.Context(), "a@b", spool.Selector{}, "ann", "", false)
	require.ErrorIs(t, err, spool.ErrAction)
}

func TestSelectorOfASite(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.commit("b", "a@x.example", "b@y.example", "c@z.example")
	sel, err := spool.ParseSelector("site=mx.example")
	require.NoError(t, err)
	_, _, err = f.List(t.Context(), sel, "", 10)
	require.ErrorIs(t, err, spool.ErrSelector, "the store alone knows no sites")
	sel.SiteDomains = map[string]bool{"x.example": true, "z.example": true}
	page, _, err := f.List(t.Context(), sel, "", 10)
	require.NoError(t, err)
	require.Len(t, page, 2)
	got, err := f.Act(t.Context(), spool.ActionHold, sel, "alice", "", false)
	require.NoError(t, err)
	require.Equal(t, spool.ActResult{Matched: 2, Changed: 2}, got)
	sel.SiteDomains = map[string]bool{}
	page, _, err = f.List(t.Context(), sel, "", 10)
	require.NoError(t, err)
	require.Empty(t, page)
}

func TestSelectorOfAnAccountKeepsToItWhateverTheNames(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	label := strings.Repeat("d", 60)
	f.commit("b", "a@"+label+"."+label+"."+label+".example") // longer than what is judged without decoding
	require.Empty(t, f.list("account=other", 10))
	require.Empty(t, f.list("campaign=cmp_1", 10))
	require.Len(t, f.list("account=default", 10), 1)
	other, envs := f.message("b@" + label + "." + label + "." + label + ".example")
	other.Account, envs[0].Queue.Account = "other", "other"
	w := f.NewBody(t.Context(), other.ID)
	require.NoError(t, f.Commit(t.Context(), other, w, envs, nil))
	require.Len(t, f.list("account=other", 10), 1)
	require.Len(t, f.list("account=default", 10), 1)
}
