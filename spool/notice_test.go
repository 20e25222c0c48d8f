package spool_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/spool"
)

// postman is spool.Notices: one message to the sender for each slice.
type postman struct {
	f         *fixture
	meanwhile func() // runs between the notice and the transaction
	fault     error  // of Put
	about     [][]string
	added     int
	dropped   int
}

func (p *postman) Count(failed []spool.Settled) int { return min(1, len(failed)) }

func (p *postman) Prepare(_ context.Context, failed []spool.Settled) (spool.Notice, error) {
	var to []string
	for _, s := range failed {
		to = append(to, s.Envelope.To.String())
		if s.Envelope.To.Local == "poison" {
			return spool.Notice{}, errors.New("cannot write")
		}
	}
	p.about = append(p.about, to)
	if p.meanwhile != nil {
		p.meanwhile()
	}
	m, envs := p.f.message("sender@example.com")
	m.ReversePath = mail.Path{}
	return spool.Notice{
		Count: p.Count(failed),
		Put: func(tx kv.Tx) error {
			if p.fault != nil || len(failed) == 0 {
				return p.fault
			}
			return p.f.PutTx(tx, m, []byte("notice"), envs, nil)
		},
		Added: func() {
			if p.added++; len(failed) > 0 {
				p.f.Added(envs, nil)
			}
		},
		Drop: func() { p.dropped++ },
	}, nil
}

func (p *postman) fail(t *testing.T, dryRun bool) (spool.ActResult, error) {
	t.Helper()
	return p.f.Fail(t.Context(), spool.Selector{}, p, "alice", "because", dryRun)
}

func TestFailTellsSendersInTheSameTransaction(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	p := &postman{f: f}
	f.commit("b", "a@x.example", "b@y.example")
	got, err := p.fail(t, true)
	require.NoError(t, err)
	require.Equal(t, spool.ActResult{Matched: 2, Changed: 2, Notices: 1}, got)
	require.Empty(t, p.about, "a dry run writes nothing")
	require.Equal(t, int64(2), f.stats().Queued)

	p.fault = errors.New("no space")
	_, err = p.fail(t, false)
	require.ErrorIs(t, err, p.fault)
	require.Equal(t, 1, p.dropped)
	require.Equal(t, int64(2), f.stats().Queued, "without the notice nothing is failed")
	require.Zero(t, f.stats().Outcomes["failed"])

	p.fault = nil
	got, err = p.fail(t, false)
	require.NoError(t, err)
	require.Equal(t, spool.ActResult{Matched: 2, Changed: 2, Notices: 1}, got)
	require.Equal(t, 1, p.added)
	require.Equal(t, int64(2), f.stats().Outcomes["failed"])
	f.reopen()
	l := f.lease(10)
	require.Len(t, l.Envelopes, 1, "the notice is durable, and was not failed with the rest")
	require.Equal(t, "sender@example.com", l.Envelopes[0].To.String())
	require.Empty(t, f.check().Findings)
}

func TestFailTellsOnlyOfWhatItFails(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	p := &postman{f: f}
	f.commit("b", "a@x.example", "b@y.example")
	var l *spool.Lease
	p.meanwhile = func() {
		p.meanwhile = nil
		queues := []spool.Queue{{Account: "default", Stream: "transactional", Domain: "x.example"}}
		var err error
		l, err = f.Lease(t.Context(), queues, f.now(), 10)
		require.NoError(t, err)
		require.Len(t, l.Envelopes, 1)
	}
	got, err := p.fail(t, false)
	require.NoError(t, err)
	require.Equal(t, spool.ActResult{Matched: 2, Changed: 1, InFlight: 1, Notices: 1}, got)
	require.Equal(t, [][]string{{"a@x.example", "b@y.example"}, {"b@y.example"}}, p.about)
	require.Equal(t, 1, p.dropped)
	f.settle(l, spool.Result{Outcome: spool.Delivered, Reply: accepted, Presented: true})
}

func TestFailStopsWhereNoNoticeCanBeWritten(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	p := &postman{f: f}
	f.commit("b", "poison@x.example")
	_, err := p.fail(t, false)
	require.ErrorContains(t, err, "cannot write")
	require.Equal(t, int64(1), f.stats().Queued)
}

func TestFailWithNoticesGoesInSlices(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	p := &postman{f: f}
	to := make([]string, 120)
	for i := range to {
		to[i] = fmt.Sprintf("u%d@x.example", i)
	}
	f.commit("b", to...)
	got, err := p.fail(t, false)
	require.NoError(t, err)
	require.Equal(t, spool.ActResult{Matched: 120, Changed: 120, Notices: 3}, got)
	require.Equal(t, int64(3), f.stats().Queued)
}
