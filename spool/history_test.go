package spool_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/spool"
)

// history reads all pages of a query.
func (f *fixture) history(q spool.HistoryQuery, limit int) []spool.OutcomeRecord {
	f.tb.Helper()
	var all []spool.OutcomeRecord
	cursor := ""
	for range 1000 {
		page, next, err := f.History(f.tb.Context(), q, cursor, limit)
		require.NoError(f.tb, err)
		all = append(all, page...)
		if cursor = next; cursor == "" {
			return all
		}
	}
	f.tb.Fatal("no end")
	return nil
}

func TestOutcomesAreFoundByRecipientAndMessageID(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var last *spool.Message
	for i := range 30 { // three days
		last, _ = f.commit("b", "Ann@x.example", fmt.Sprintf("other%d@x.example", i))
		f.settle(f.lease(10), spool.Result{Outcome: spool.Delivered, Reply: accepted, Presented: true})
		f.advance(2*time.Hour + 24*time.Minute)
	}
	for _, limit := range []int{1, 7, 1000} {
		got := f.history(spool.HistoryQuery{Recipient: "ann@X.example"}, limit)
		require.Len(t, got, 30, "limit %d", limit)
		for i := 1; i < len(got); i++ {
			require.True(t, got[i].SettledAt.Before(got[i-1].SettledAt), "last first")
		}
	}
	require.Len(t, f.history(spool.HistoryQuery{Recipient: "other7@x.example"}, 10), 1)
	require.Len(t, f.history(spool.HistoryQuery{MessageID: "1@example.com"}, 10), 60, "all of the fixture bear the same")
	require.Len(t, f.history(spool.HistoryQuery{MessageID: "<1@example.com>", Recipient: "ann@x.example"}, 10), 30)
	require.Len(t, f.history(spool.HistoryQuery{Message: last.ID}, 1), 2)
	require.Empty(t, f.history(spool.HistoryQuery{Recipient: "nobody@x.example"}, 10))
	require.Empty(t, f.history(spool.HistoryQuery{Recipient: "ann@x.example", Account: "other"}, 10))
	_, _, err := f.History(t.Context(), spool.HistoryQuery{}, "", 1)
	require.ErrorIs(t, err, spool.ErrNotFound)
	_, _, err = f.History(t.Context(), spool.HistoryQuery{Recipient: "a@b.example"}, "x", 1)
	require.ErrorIs(t, err, spool.ErrCursor)

	f.advance(24 * time.Hour)
	n, err := f.Purge(t.Context(), f.now(), 10_000)
	require.NoError(t, err)
	require.Equal(t, 60, n)
	for _, table := range []kv.Table{"outcome", "settled", "note"} {
		require.Zero(t, f.records(table), table)
	}
}

func TestCampaignOutcomesAreFoundByTheirMessageID(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	m, envs := f.message("a@x.example", "b@x.example")
	m.Campaign, m.Stream, m.MessageID = "cmp_1", "cmp_1", ""
	for _, e := range envs {
		e.Queue.Stream = m.Stream
	}
	require.NoError(t, f.db.Update(t.Context(), func(tx kv.Tx) error { return f.PutTx(tx, m, nil, envs, nil) }))
	f.Added(envs, nil)
	f.settle(f.lease(10), spool.Result{Outcome: spool.Delivered, Reply: accepted})
	for _, e := range envs {
		got := f.history(spool.HistoryQuery{MessageID: e.ID.String() + "@relay.example.com"}, 10)
		require.Len(t, got, 1)
		require.Equal(t, e.To, got[0].To)
	}
}

func TestNotesTellTheTimeline(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	_, envs := f.commit("b", "a@x.example")
	id := envs[0].ID
	for i := range 5 {
		l := f.lease(1)
		require.Equal(t, f.now(), f.LeasedSince(id))
		f.settle(l, spool.Result{
			Outcome: spool.Deferred, Reply: busy, Host: fmt.Sprintf("mx%d", i), Presented: true, NextAttempt: f.now().Add(time.Minute),
		})
		f.advance(time.Minute)
	}
	_, err := f.Act(t.Context(), spool.ActionHold, spool.Selector{}, "ann", "ticket 7", false)
	require.NoError(t, err)
	f.reopen()
	notes, err := f.Notes(t.Context(), id, 3)
	require.NoError(t, err)
	require.Len(t, notes, 3)
	require.Equal(t, "mx3", notes[0].Host)
	require.Equal(t, 4, notes[0].Attempt)
	require.Equal(t, busy, notes[1].Reply)
	require.Equal(t, spool.Note{At: f.now(), Event: "held", Attempt: 5, Who: "ann", Why: "ticket 7"}, notes[2])
	require.Zero(t, f.LeasedSince(id))
	require.Zero(t, f.QueueWait(envs[0].Queue).Paused)
	f.PauseStream("transactional", true)
	require.Equal(t, f.now(), f.QueueWait(envs[0].Queue).Paused)
	f.PauseStream("transactional", false)
	f.Take(f.now(), 1)
	f.Return(envs[0].Queue, f.now().Add(time.Hour))
	require.Equal(t, f.now().Add(time.Hour), f.QueueWait(envs[0].Queue).NotBefore)
}

func TestStoreOfVersionOneIsMigrated(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for i := range 3 {
		f.commit("b", fmt.Sprintf("a%d@x.example", i))
		f.settle(f.lease(1), spool.Result{Outcome: spool.Delivered, Reply: accepted})
	}
	live, _ := f.commit("b", "live@x.example")
	require.NoError(t, f.db.Update(t.Context(), func(tx kv.Tx) error { // what version 1 did not have
		var keys [][]byte
		err := tx.Scan("settled", nil, nil, func(k, _ []byte) (bool, error) {
			keys = append(keys, append([]byte(nil), k...))
			return true, nil
		})
		for _, k := range keys {
			err = tx.Delete("settled", k)
		}
		if err != nil {
			return err
		}
		return tx.Put("spool", []byte("schema"), []byte{1})
	}))
	require.Empty(t, f.history(spool.HistoryQuery{Recipient: "a1@x.example"}, 10))
	f.reopen()
	require.Len(t, f.history(spool.HistoryQuery{Recipient: "a1@x.example"}, 10), 1)
	require.EqualValues(t, 1, f.stats().Queued)
	require.Equal(t, live.ID, f.lease(10).Envelopes[0].ID.Message)
	require.NoError(t, f.db.View(t.Context(), func(tx kv.Tx) error {
		v, err := tx.Get("spool", []byte("schema"))
		require.Equal(t, []byte{2}, v)
		return err
	}))
	require.NotEqual(t, mail.QueueID{}, live.ID)
}
