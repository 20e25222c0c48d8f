package spool_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/mail"
	"relayd/spool"
)

func domains(queues []spool.Queue) []string {
	names := make([]string, len(queues))
	for i, q := range queues {
		names[i] = q.Domain
	}
	return names
}

func TestTakeGivesUrgentQueuesFirst(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, c := range []struct {
		class spool.Class
		to    string
	}{{spool.Bulk, "a@bulk.example"}, {spool.Transactional, "a@trans.example"}, {spool.Urgent, "a@urgent.example"}} {
		m, envs := f.message(c.to)
		envs[0].Class = c.class
		require.NoError(t, f.Commit(t.Context(), m, nil, envs, nil))
		f.advance(time.Second)
	}
	require.Equal(t, []string{"urgent.example", "trans.example"}, domains(f.Take(f.now(), 2)))
	require.Equal(t, []string{"bulk.example"}, domains(f.Take(f.now(), 2)))
	require.Empty(t, f.Take(f.now(), 2))
	require.Zero(t, f.NextDue())
}

func TestLongQueueDoesNotStarveOthers(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.campaign(nil, "cmp_1", "a@long.example", "b@long.example", "c@long.example", "d@long.example")
	f.advance(time.Second)
	f.campaign(nil, "cmp_2", "a@short.example")
	var order []string
	for range 3 {
		qs := f.Take(f.now(), 1)
		l, err := f.Lease(t.Context(), qs, f.now(), 1)
		require.NoError(t, err)
		f.settle(l, spool.Result{Outcome: spool.Delivered})
		f.Return(qs[0], time.Time{})
		order = append(order, domains(qs)...)
	}
	require.Equal(t, []string{"long.example", "short.example", "long.example"}, order)
}

func TestLeaseSharesBetweenQueuesAndGoesByClass(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	_, envs := f.campaign(nil, "cmp_1", "a@long.example", "b@long.example", "c@long.example", "d@long.example")
	_, other := f.campaign(nil, "cmp_2", "a@short.example", "b@short.example")
	m, urgent := f.message("u@short.example")
	urgent[0].Class = spool.Urgent
	require.NoError(t, f.Commit(t.Context(), m, nil, urgent, nil))
	queues := []spool.Queue{envs[0].Queue, other[0].Queue, urgent[0].Queue}
	l, err := f.Lease(t.Context(), queues, f.now(), 4)
	require.NoError(t, err)
	got := map[spool.Queue]int{}
	for _, e := range l.Envelopes {
		got[e.Queue]++
	}
	require.Equal(t, urgent[0].ID, l.Envelopes[0].ID)
	require.Equal(t, map[spool.Queue]int{queues[0]: 1, queues[1]: 1, queues[2]: 1}, got)
}

func TestReturnedQueueRests(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.commit("b", "a@x.example")
	qs := f.Take(f.now(), 1)
	<-f.Changed()
	f.Return(qs[0], f.now().Add(time.Minute))
	<-f.Changed()
	require.Empty(t, f.Take(f.now(), 1))
	require.Equal(t, f.now().Add(time.Minute), f.NextDue())
	f.commit("b", "b@x.example")
	require.Empty(t, f.Take(f.now(), 1), "new work does not end the rest")
	f.advance(time.Minute)
	require.Len(t, f.Take(f.now(), 1), 1)
}

func TestPausedStreamIsPassedOver(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	m, _ := f.campaign(nil, "cmp_1", "a@x.example", "b@y.example")
	f.PauseStream("cmp_1", true)
	require.Empty(t, f.Take(f.now(), 10))
	require.Zero(t, f.NextDue())
	f.campaign(m, "cmp_1", "c@z.example")
	require.Empty(t, f.Take(f.now(), 10), "a new queue of the stream is paused too")
	for _, q := range f.QueueStats() {
		require.True(t, q.Paused)
	}
	f.PauseStream("cmp_1", false)
	require.Len(t, f.Take(f.now(), 10), 3)
}

func TestCampaignStatsAndCancel(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.campaign(nil, "cmp_1", "a@x.example", "b@x.example", "c@y.example", "d@y.example")
	f.commit("b", "a@x.example")
	l, err := f.Lease(t.Context(), []spool.Queue{{Account: "default", Stream: "cmp_1", Domain: "x.example"}}, f.now(), 1)
	require.NoError(t, err)
	_, err = f.Act(t.Context(), spool.ActionHold, spool.Selector{Domain: "y.example", Recipient: "c@y.example"}, "op", "", false)
	require.NoError(t, err)
	waiting, deferred, leased := f.CampaignStats("cmp_1")
	require.Equal(t, []int{2, 1, 1}, []int{waiting, deferred, leased})
	n, err := f.CancelCampaign(t.Context(), "cmp_1")
	require.NoError(t, err)
	require.Equal(t, 3, n, "held ones too, not the leased one")
	f.settle(l, spool.Result{Outcome: spool.Delivered})
	require.Equal(t, int64(3), f.stats().Outcomes["cancelled"])
	stats := f.QueueStats()
	require.Len(t, stats, 1)
	require.Equal(t, "transactional", stats[0].Queue.Stream)
	n, err = f.CancelCampaign(t.Context(), "transactional")
	require.NoError(t, err)
	require.Zero(t, n, "a stream is not a campaign")
}

func TestOldestIsTheOldestLiveEnvelope(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	_, first := f.commit("b", "a@x.example")
	f.advance(10 * time.Minute)
	f.commit("b", "b@x.example")
	require.Equal(t, epoch, f.QueueStats()[0].Oldest)
	l := f.lease(1)
	require.Equal(t, first[0].ID, l.Envelopes[0].ID)
	require.Equal(t, epoch, f.QueueStats()[0].Oldest, "it is being attempted")
	f.settle(l, spool.Result{Outcome: spool.Delivered})
	require.Equal(t, epoch.Add(10*time.Minute), f.QueueStats()[0].Oldest)
	f.reopen()
	require.Equal(t, epoch.Add(10*time.Minute), f.QueueStats()[0].Oldest)
}

func TestExpiredEnvelopeIsStillLeased(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	m, _ := f.commit("b", "a@x.example")
	f.advance(10 * 24 * time.Hour)
	l := f.lease(1)
	require.Len(t, l.Envelopes, 1)
	require.True(t, l.Messages[m.ID].ExpiresAt.Before(f.now()))
	f.settle(l, spool.Result{Outcome: spool.Expired})
	require.Equal(t, int64(1), f.stats().Outcomes["expired"])
}

func TestClockThatGoesBackStormsNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.commit("b", "a@x.example")
	f.advance(-time.Hour)
	require.Empty(t, f.Take(f.now(), 1))
	require.Equal(t, epoch, f.NextDue())
	f.commit("b", "b@x.example")
	require.Len(t, f.lease(10).Envelopes, 1)
	f.advance(time.Hour)
	require.Len(t, f.lease(10).Envelopes, 1)
}

func TestTakeReturnsNothingOfAnEmptyStore(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	require.Empty(t, f.Take(f.now(), 10))
	require.Zero(t, f.NextDue())
	l, err := f.Lease(t.Context(), []spool.Queue{{Account: "a", Stream: "s", Domain: "x.example"}}, f.now(), 10)
	require.NoError(t, err)
	require.Empty(t, l.Envelopes)
	require.NoError(t, f.Release(t.Context(), l, f.now()))
	require.NoError(t, f.Settle(t.Context(), l, nil))
	_, _, err = f.Get(t.Context(), mail.NewQueueID(f.now()))
	require.ErrorIs(t, err, spool.ErrNotFound)
	_, err = f.WriteBody(t.Context(), mail.NewQueueID(f.now()), nil)
	require.ErrorIs(t, err, spool.ErrNotFound)
	_, _, err = f.List(t.Context(), spool.Selector{}, "garbage", 10)
	require.ErrorIs(t, err, spool.ErrCursor)
}
