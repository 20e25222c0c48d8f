package spool_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/spool"
)

func (f *fixture) check() *spool.CheckReport {
	f.tb.Helper()
	r, err := spool.Check(f.tb.Context(), f.db)
	require.NoError(f.tb, err)
	return r
}

// busyStore has an envelope in every place.
func busyStore(t *testing.T) *fixture {
	t.Helper()
	f := newFixture(t)
	f.commit("b", "done@x.example")
	f.settle(f.lease(1), spool.Result{Outcome: spool.Delivered, Reply: accepted})
	f.commit("b", "later@x.example")
	f.settle(f.lease(1), spool.Result{Outcome: spool.Deferred, Reply: busy, NextAttempt: f.now().Add(time.Hour)})
	f.commit("b", "leased@x.example")
	f.lease(1)
	f.commit("b", "held@x.example")
	_, err := f.Act(t.Context(), spool.ActionHold, spool.Selector{Recipient: "held@x.example"}, "ann", "", false)
	require.NoError(t, err)
	f.commit(string(bytes.Repeat([]byte("long "), 200_000)), "ready@x.example", "ready2@x.example")
	return f
}

func TestSoundStorePassesTheCheck(t *testing.T) {
	t.Parallel()
	f := busyStore(t)
	r := f.check()
	require.Empty(t, r.Findings)
	require.Equal(t, spool.CheckReport{
		Messages: 4, Envelopes: 5, Waiting: 3, Held: 1, Leased: 1, Outcomes: 1, Notes: 2, Accepted: 6, Finished: 1,
		Findings: []string{},
	}, *r)
}

func TestCheckFindsWhatDoesNotAgree(t *testing.T) {
	t.Parallel()
	first := func(f *fixture, tx kv.Tx, table kv.Table) (key []byte) {
		require.NoError(f.tb, tx.Scan(table, nil, nil, func(k, _ []byte) (bool, error) {
			key = bytes.Clone(k)
			return false, nil
		}))
		require.NotNil(f.tb, key)
		return key
	}
	remove := func(table kv.Table) func(*fixture, kv.Tx) error {
		return func(f *fixture, tx kv.Tx) error { return tx.Delete(table, first(f, tx, table)) }
	}
	for name, tt := range map[string]struct {
		damage func(*fixture, kv.Tx) error
		want   string
	}{
		"envelope_in_no_queue": {remove("due"), "stands in 0 places"},
		"held_entry_gone":      {remove("held"), "stands in 0 places"},
		"lease_gone":           {remove("lease"), "stands in 0 places"},
		"message_gone":         {remove("message"), "has no message"},
		"envelope_gone":        {remove("envelope"), "envelopes were accepted"},
		"chunk_gone":           {remove("body"), "body is missing"},
		"counter_gone":         {remove("counter"), "envelopes were accepted"},
		"outcome_broken": {func(f *fixture, tx kv.Tx) error {
			return tx.Put("outcome", first(f, tx, "outcome"), []byte{1, 2, 3})
		}, "corrupt"},
		"unknown_version": {func(f *fixture, tx kv.Tx) error {
			return tx.Put("envelope", first(f, tx, "envelope"), []byte{77})
		}, "version is unknown"},
		"body_of_nobody": {func(_ *fixture, tx kv.Tx) error {
			id := mail.NewQueueID(time.Now())
			return tx.Put("body", append(id[:], 0, 0, 0, 0), []byte{0x11})
		}, "has no message"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := busyStore(t)
			require.NoError(t, f.db.Update(t.Context(), func(tx kv.Tx) error { return tt.damage(f, tx) }))
			r := f.check()
			require.Positive(t, r.Problems)
			require.Contains(t, strings.Join(r.Findings, "\n"), tt.want)
		})
	}
}
