package spool_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/event"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/spool"
)

var (
	accepted = mail.Reply{Code: 250, Status: mail.Status{Class: 2}, Text: "OK"}
	busy     = mail.Reply{Code: 451, Status: mail.Status{Class: 4, Subject: 7, Detail: 1}, Text: "Try later"}
	unknown  = mail.Reply{Code: 550, Status: mail.Status{Class: 5, Subject: 1, Detail: 1}, Text: "No such user"}
)

func TestMessageIsLeasedAsItWasCommitted(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	m, envs := f.commit("the body", "a@x.example", "b@y.example")
	l := f.lease(10)
	require.Len(t, l.Envelopes, 2)
	require.ElementsMatch(t, []mail.EnvelopeID{envs[0].ID, envs[1].ID}, []mail.EnvelopeID{l.Envelopes[0].ID, l.Envelopes[1].ID})
	got := l.Messages[m.ID]
	require.Equal(t, m.Header, got.Header)
	require.Equal(t, m.AcceptedAt, got.AcceptedAt)
	require.Equal(t, m.ReversePath, got.ReversePath)
	body, err := f.body(m.ID)
	require.NoError(t, err)
	require.Equal(t, "the body", body)
	require.Empty(t, f.lease(10).Envelopes, "what is leased is not due")
	f.settle(l, spool.Result{Outcome: spool.Delivered, Reply: accepted, Presented: true, Host: "mx.example", TLS: "TLS1.3"})
	for _, table := range []kv.Table{"message", "body", "envelope", "due", "lease", "held"} {
		require.Zero(t, f.records(table), table)
	}
	outcomes, err := f.ListOutcomes(t.Context(), m.ID, ^uint64(0), 10)
	require.NoError(t, err)
	require.Len(t, outcomes, 2)
	require.Equal(t, spool.OutcomeRecord{
		ID: envs[0].ID, Queue: envs[0].Queue, To: envs[0].To, Outcome: spool.Delivered, Reply: accepted, Host: "mx.example",
		TLS: "TLS1.3", Attempts: 1, AcceptedAt: m.AcceptedAt, SettledAt: f.now(), From: m.ReversePath, MessageID: m.MessageID,
		Subject: m.Subject,
	}, outcomes[0])
	rest, err := f.ListOutcomes(t.Context(), m.ID, 0, 10)
	require.NoError(t, err)
	require.Equal(t, outcomes[1:], rest)
	require.Equal(t, []string{"message.accepted", "message.delivered", "message.delivered"}, f.eventsSorted(m.ID))
	_, infos, err := f.Get(t.Context(), m.ID)
	require.NoError(t, err)
	require.Len(t, infos, 2)
	require.Equal(t, spool.StateFinished, infos[0].State)
	require.Equal(t, spool.Delivered, infos[0].Outcome.Outcome)
}

// eventsSorted is the order of time, whatever order the log lists in.
func (f *fixture) eventsSorted(id mail.QueueID) []string {
	types := f.events(id)
	if len(types) > 1 && types[len(types)-1] == "message.accepted" {
		for i, j := 0, len(types)-1; i < j; i, j = i+1, j-1 {
			types[i], types[j] = types[j], types[i]
		}
	}
	return types
}

func TestBodyStaysUntilTheLastEnvelope(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	m, _ := f.commit("the body", "a@x.example", "b@x.example")
	f.settle(f.lease(1), spool.Result{Outcome: spool.Bounced, Reply: unknown})
	body, err := f.body(m.ID)
	require.NoError(t, err)
	require.Equal(t, "the body", body)
	f.settle(f.lease(1), spool.Result{Outcome: spool.Delivered, Reply: accepted})
	_, err = f.body(m.ID)
	require.ErrorIs(t, err, spool.ErrNotFound)
}

func TestDeferredEnvelopeWaitsForItsTime(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	m, _ := f.commit("b", "a@x.example")
	next := f.now().Add(15 * time.Minute)
	f.settle(f.lease(1), spool.Result{Outcome: spool.Deferred, Reply: busy, Presented: true, Host: "mx", NextAttempt: next})
	require.Equal(t, next, f.NextDue())
	require.Empty(t, f.Take(f.now(), 10))
	f.advance(15 * time.Minute)
	l := f.lease(1)
	require.Len(t, l.Envelopes, 1)
	e := l.Envelopes[0]
	require.Equal(t, 1, e.Attempts)
	require.Equal(t, busy, e.LastReply)
	require.Equal(t, "mx", e.LastHost)
	require.Equal(t, epoch, e.LastAt)
	require.Equal(t, []string{"message.accepted", "message.deferred"}, f.eventsSorted(m.ID))
}

func TestReleaseCountsNoAttempt(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	m, _ := f.commit("b", "a@x.example", "b@x.example")
	l := f.lease(2)
	require.NoError(t, f.Settle(t.Context(), l, all(l, spool.Result{Outcome: spool.Delivered})[:1]))
	require.NoError(t, f.Release(t.Context(), l, f.now()))
	require.NoError(t, f.Release(t.Context(), l, f.now()), "nothing is left to release")
	l = f.lease(2)
	require.Len(t, l.Envelopes, 1)
	require.Zero(t, l.Envelopes[0].Attempts)
	require.Zero(t, l.Envelopes[0].InDoubt)
	require.Equal(t, []string{"message.accepted", "message.delivered"}, f.eventsSorted(m.ID))
}

func TestLargeLeaseIsInDoubtInTheRestThatWasNotSettled(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	to := make([]string, 2300) // more records than one transaction of Open takes
	for i := range to {
		to[i] = fmt.Sprintf("u%d@x.example", i)
	}
	f.commit("b", to...)
	l := f.lease(len(to))
	require.Len(t, l.Envelopes, len(to))
	results := all(l, spool.Result{Outcome: spool.Delivered})
	left := map[mail.EnvelopeID]bool{}
	var done []spool.Result
	for i, r := range results {
		if i%3 == 0 || i < 200 || i == len(results)-1 { // some whole records, and something of each
			done = append(done, r)
		} else {
			left[r.ID] = true
		}
	}
	slices.Reverse(done)
	for part := range slices.Chunk(done, 150) {
		require.NoError(t, f.Settle(t.Context(), l, part))
	}
	require.ErrorIs(t, f.Settle(t.Context(), l, results[300:301]), spool.ErrLeaseLost)
	f.reopen()
	require.Equal(t, len(left), f.InDoubt())
	l = f.lease(len(to))
	require.Len(t, l.Envelopes, len(left))
	for _, e := range l.Envelopes {
		require.True(t, left[e.ID])
		require.Equal(t, 1, e.InDoubt)
	}
	f.settle(l, spool.Result{Outcome: spool.Delivered})
	f.reopen()
	require.Zero(t, f.InDoubt())
}

func TestSettleOfWhatIsNotLeasedIsLost(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.commit("b", "a@x.example", "b@x.example")
	l := f.lease(2)
	results := all(l, spool.Result{Outcome: spool.Delivered})
	require.NoError(t, f.Settle(t.Context(), l, results[:1]))
	require.ErrorIs(t, f.Settle(t.Context(), l, results), spool.ErrLeaseLost)
	require.Equal(t, int64(1), f.stats().Leased, "nothing of it is settled")
	require.ErrorIs(t, f.Settle(t.Context(), l, []spool.Result{results[1], results[1]}), spool.ErrLeaseLost)
	require.ErrorIs(t, f.Settle(t.Context(), &spool.Lease{}, results), spool.ErrLeaseLost)
	require.ErrorIs(t, f.Settle(t.Context(), l, []spool.Result{{ID: results[1].ID, Outcome: 99}}), spool.ErrInvalid)
	require.NoError(t, f.Settle(t.Context(), l, results[1:]))
}

func TestOutcomeEventHooksAndExtraAreOneTransaction(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.OnSettle(func(tx kv.Tx, settled []spool.Settled) error {
		require.Len(t, settled, 1)
		require.Equal(t, 1, settled[0].Envelope.Attempts)
		require.Equal(t, unknown, settled[0].Envelope.LastReply)
		return tx.Put("hook", []byte("k"), nil)
	})
	m, _ := f.commit("b", "a@x.example")
	l := f.lease(1)
	results := all(l, spool.Result{Outcome: spool.Bounced, Reply: unknown, Presented: true})
	refused := errors.New("refused")
	err := f.Settle(t.Context(), l, results, func(kv.Tx) error { return refused })
	require.ErrorIs(t, err, refused)
	require.Zero(t, f.records("hook"))
	require.Zero(t, f.records("outcome"))
	require.Equal(t, []string{"message.accepted"}, f.events(m.ID))
	require.Equal(t, int64(1), f.stats().Leased, "the lease goes on")
	err = f.Settle(t.Context(), l, results, func(tx kv.Tx) error { return tx.Put("extra", []byte("k"), nil) })
	require.NoError(t, err)
	require.Equal(t, 1, f.records("hook"))
	require.Equal(t, 1, f.records("extra"))
	require.Equal(t, 1, f.records("outcome"))
}

func TestLeasesFoundAtOpenAreInDoubt(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.commit("b", "a@x.example", "b@x.example", "c@x.example")
	l := f.lease(2)
	require.NoError(t, f.Settle(t.Context(), l, all(l, spool.Result{Outcome: spool.Delivered})[:1]))
	old := f.Store
	f.reopen()
	require.Equal(t, 1, f.InDoubt())
	doubts := 0
	l2 := f.lease(10)
	require.Len(t, l2.Envelopes, 2)
	for _, e := range l2.Envelopes {
		doubts += e.InDoubt
		require.Zero(t, e.Attempts)
	}
	require.Equal(t, 1, doubts)
	require.Equal(t, l.Messages[l.Envelopes[0].ID.Message].MessageID, l2.Messages[l2.Envelopes[0].ID.Message].MessageID)
	require.Error(t, old.Settle(t.Context(), l, all(l, spool.Result{Outcome: spool.Delivered})[1:]))
}

func TestOnlyTheLatestOpenerSettles(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.commit("b", "a@x.example")
	l := f.lease(1)
	log, err := event.Open(f.db, f.now)
	require.NoError(t, err)
	second, err := spool.Open(t.Context(), f.db, log, spool.Config{Now: f.now})
	require.NoError(t, err)
	require.ErrorIs(t, f.Settle(t.Context(), l, all(l, spool.Result{Outcome: spool.Delivered})), spool.ErrDeposed)
	_, err = f.Lease(t.Context(), []spool.Queue{l.Envelopes[0].Queue}, f.now(), 1)
	require.ErrorIs(t, err, spool.ErrDeposed)
	require.Equal(t, 1, second.InDoubt())
}

func TestNewerSchemaIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	require.NoError(t, f.db.Update(t.Context(), func(tx kv.Tx) error { return tx.Put("spool", []byte("schema"), []byte{99}) }))
	_, err := spool.Open(t.Context(), f.db, f.log, spool.Config{})
	require.ErrorIs(t, err, spool.ErrSchema)
	require.ErrorContains(t, err, "version 99")
}

func TestLargeBodyIsWrittenAheadInChunks(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	want := strings.Repeat("0123456789abcdef", 1<<16) + "tail" // 1 MiB and a little
	m, envs := f.message("a@x.example")
	w := f.NewBody(t.Context(), m.ID)
	for at := 0; at < len(want); at += 10_007 {
		_, err := w.Write([]byte(want[at:min(at+10_007, len(want))]))
		require.NoError(t, err)
	}
	require.Equal(t, 32, f.records("body"))
	require.Equal(t, 1, f.records("draft"))
	require.NoError(t, f.Commit(t.Context(), m, w, envs, nil))
	require.Zero(t, f.records("draft"))
	w.Abort()
	got, err := f.body(m.ID)
	require.NoError(t, err)
	require.Equal(t, want, got)
	f.settle(f.lease(1), spool.Result{Outcome: spool.Delivered})
	require.Zero(t, f.records("body"))
}

func TestBodyWithoutMessageIsRemoved(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for range 2 {
		w := f.NewBody(t.Context(), mail.NewQueueID(f.now()))
		_, err := w.Write(make([]byte, 600_000))
		require.NoError(t, err)
		if f.records("draft") == 2 {
			w.Abort()
			w.Abort()
			_, err = w.Write([]byte("more"))
			require.Error(t, err)
		}
	}
	require.Equal(t, 1, f.records("draft"), "one was aborted")
	require.Equal(t, 16, f.records("body"))
	f.reopen()
	require.Zero(t, f.records("draft"), "the other is swept at open")
	require.Zero(t, f.records("body"))
}

func TestCommitThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m, envs := f.message("a@x.example")
	require.ErrorIs(t, f.Commit(ctx, m, nil, envs, nil), context.Canceled)
	for name, spoil := range map[string]func(){
		"other_message": func() { envs[0].ID.Message = mail.NewQueueID(f.now()) },
		"nul_in_queue":  func() { envs[0].Queue.Account = "a\x00b" },
		"no_domain":     func() { envs[0].Queue.Domain = "" },
		"class":         func() { envs[0].Class = 3 },
		"twice":         func() { envs = append(envs, envs[0]) },
		"huge_data":     func() { envs[0].Data = make([]byte, 1<<20) },
		"no_id":         func() { m.ID = mail.QueueID{} },
	} {
		m, envs = f.message("a@x.example")
		spoil()
		require.ErrorIs(t, f.Commit(t.Context(), m, nil, envs, nil), spool.ErrInvalid, name)
	}
	m, envs = f.message("a@x.example")
	require.ErrorIs(t, f.Commit(t.Context(), m, nil, envs, []spool.Result{{ID: envs[0].ID}}), spool.ErrInvalid)
	require.Zero(t, f.records("message"))
	require.Zero(t, f.stats().Queued)
}

func TestAllDoneAtTheDoor(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	m, envs := f.message("a@x.example", "b@x.example")
	w := f.NewBody(t.Context(), m.ID)
	_, err := w.Write(make([]byte, 600_000))
	require.NoError(t, err)
	done := []spool.Result{
		{ID: envs[0].ID, Outcome: spool.Suppressed, Reason: "hard_bounce"}, {ID: envs[1].ID, Outcome: spool.Suppressed},
	}
	require.NoError(t, f.Commit(t.Context(), m, w, envs, done))
	require.Zero(t, f.records("body"))
	require.Zero(t, f.records("message"))
	require.Equal(t, int64(2), f.stats().Outcomes["suppressed"])
	require.Equal(t, int64(2), f.stats().Accepted)
	require.Equal(t, []string{"message.accepted", "message.suppressed", "message.suppressed"}, f.eventsSorted(m.ID))
}

func TestCampaignPageMeetsItsOwnEnvelopes(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	m, envs := f.campaign(nil, "cmp_1", "a@x.example", "b@x.example")
	l := f.lease(1)
	f.settle(l, spool.Result{Outcome: spool.Delivered})
	require.Equal(t, "data of "+l.Envelopes[0].To.String(), string(l.Envelopes[0].Data))
	f.reopen()
	_, again := f.campaign(m, "cmp_1", "a@x.example", "b@x.example", "c@x.example")
	require.True(t, again[0].Known())
	require.True(t, again[1].Known())
	require.False(t, again[2].Known())
	require.Equal(t, int64(3), f.stats().Accepted)
	require.Equal(t, int64(2), f.stats().Queued)
	require.Empty(t, f.events(envs[0].ID.Message)[1:], "no event for each envelope of a page")
	f.settle(f.lease(10), spool.Result{Outcome: spool.Delivered})
	require.Equal(t, 1, f.records("message"), "kept")
	require.NoError(t, f.db.Update(t.Context(), func(tx kv.Tx) error { return f.RemoveMessageTx(tx, m.ID) }))
	require.Zero(t, f.records("message"))
}

func TestPutTxStoresBodies(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, size := range []int{0, 1, 262143, 262144, 1 << 20} {
		m, envs := f.message("a@x.example")
		body := []byte(strings.Repeat("x", size))
		require.NoError(t, f.db.Update(t.Context(), func(tx kv.Tx) error { return f.PutTx(tx, m, body, envs, nil) }))
		f.Added(envs, nil)
		got, err := f.body(m.ID)
		require.NoError(t, err)
		require.Len(t, got, size)
		f.settle(f.lease(1), spool.Result{Outcome: spool.Delivered})
		require.Zero(t, f.records("body"), size)
	}
	m, envs := f.message("a@x.example")
	err := f.db.Update(t.Context(), func(tx kv.Tx) error { return f.PutTx(tx, m, make([]byte, 1<<20+1), envs, nil) })
	require.ErrorIs(t, err, spool.ErrInvalid)
}

func TestPurgeRemovesOldOutcomes(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for range 5 {
		f.commit("b", "a@x.example")
		f.settle(f.lease(1), spool.Result{Outcome: spool.Delivered})
		f.advance(time.Hour)
	}
	n, err := f.Purge(t.Context(), epoch.Add(150*time.Minute), 2)
	require.NoError(t, err)
	require.Equal(t, 2, n)
	n, err = f.Purge(t.Context(), epoch.Add(150*time.Minute), 100)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Equal(t, 2, f.records("outcome"))
	require.Equal(t, int64(5), f.stats().Outcomes["delivered"], "the counts stay")
}

func TestNothingIsLostBetweenManyGoroutines(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const messages = 400
	var wg, workers sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for range messages / 8 {
				to := []string{"a@x.example", "b@y.example", "c@z.example"}[w%3]
				m, envs := f.message(to)
				body := f.NewBody(context.Background(), m.ID)
				_, _ = body.Write([]byte("b"))
				if err := f.Commit(context.Background(), m, body, envs, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	tally := &tally{seen: map[mail.EnvelopeID]int{}, want: messages, complete: make(chan struct{})}
	for w := range 4 {
		workers.Go(func() { work(ctx, t, f, w, tally) })
	}
	workers.Go(func() { // an operator holds and releases meanwhile
		for ctx.Err() == nil {
			for _, a := range []spool.Action{spool.ActionHold, spool.ActionRelease, spool.ActionRetry} {
				if _, err := f.Act(ctx, a, spool.Selector{}, "op", "", false); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
		}
	})
	wg.Wait()
	<-tally.complete
	cancel()
	workers.Wait()
	s := f.stats()
	require.Zero(t, s.Queued)
	require.Equal(t, int64(messages), s.Outcomes["delivered"])
	for id, n := range tally.seen {
		require.Equal(t, 1, n, "%s was delivered more than once", id)
	}
	require.Empty(t, f.QueueStats())
}

// tally counts deliveries by envelope; complete is closed when as many envelopes as wanted have one.
type tally struct {
	mu       sync.Mutex
	seen     map[mail.EnvelopeID]int
	want     int
	complete chan struct{}
}

func (y *tally) add(results []spool.Result) {
	y.mu.Lock()
	defer y.mu.Unlock()
	for _, r := range results {
		if r.Outcome != spool.Delivered {
			continue
		}
		if y.seen[r.ID]++; y.seen[r.ID] == 1 && len(y.seen) == y.want {
			close(y.complete)
		}
	}
}

// work leases and settles until its context ends; every third envelope is deferred once.
func work(ctx context.Context, t *testing.T, f *fixture, w int, tally *tally) {
	for ctx.Err() == nil {
		queues := f.Take(f.now(), 2)
		if len(queues) == 0 {
			select {
			case <-f.Changed():
			case <-ctx.Done():
			case <-time.After(5 * time.Millisecond): // one signal wakes one of the workers
			}
			continue
		}
		l, err := f.Lease(context.Background(), queues, f.now(), 5)
		if err != nil {
			t.Error(err)
			return
		}
		results := all(l, spool.Result{Outcome: spool.Delivered, Presented: true})
		for i, e := range l.Envelopes {
			if e.Attempts == 0 && (i+w)%3 == 0 {
				results[i].Outcome, results[i].NextAttempt = spool.Deferred, f.now()
			}
		}
		if err := f.Settle(context.Background(), l, results); err != nil {
			t.Error(err)
			return
		}
		tally.add(results)
		for _, q := range queues {
			f.Return(q, time.Time{})
		}
	}
}

// An envelope that is settled while somebody looks is told once: where it was, or how it ended.
func TestWhoLooksWhileItIsSettledSeesItOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for range 100 {
		m, envs := f.commit("the body", "a@x.example", "b@x.example")
		l := f.lease(10)
		var wg sync.WaitGroup
		done := make(chan struct{})
		for range 2 {
			wg.Go(func() {
				for open := true; open; {
					select {
					case <-done:
						open = false // and once more
					default:
					}
					_, infos, err := f.GetEnvelope(t.Context(), envs[0].ID)
					if err != nil || len(infos) != 1 {
						t.Errorf("%+v, %v", infos, err)
					}
					_, infos, err = f.Get(t.Context(), m.ID)
					if err != nil || len(infos) != 2 {
						t.Errorf("%+v, %v", infos, err)
					}
				}
			})
		}
		f.settle(l, spool.Result{Outcome: spool.Delivered, Reply: accepted})
		close(done)
		wg.Wait()
	}
}
