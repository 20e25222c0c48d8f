package spool_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/spool"
)

func TestQueueDomainIsRead(t *testing.T) {
	t.Parallel()
	for _, sender := range []string{"", "shop.example"} {
		for _, route := range []string{"", spool.RouteMX, "upstream"} {
			for _, domain := range []string{"dest.example", "[IPv6:2001:db8::1]", "[192.0.2.1]"} {
				q := spool.Queue{Domain: spool.QueueDomain(sender, route, domain)}
				require.Equal(t, sender, q.Sender(), q.Domain)
				require.Equal(t, route, q.Via(), q.Domain)
				if route == "upstream" { // takes all domains
					domain = ""
				}
				require.Equal(t, domain, q.Recipient(), q.Domain)
			}
		}
	}
}

// TestTheLongestQueueNamesAreKept has a queue whose name has every part as long as it may be.
func TestTheLongestQueueNamesAreKept(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	long := func(n int, last string) string {
		b := make([]byte, n-len(last))
		for i := range b {
			b[i] = 'a'
			if i%60 == 59 {
				b[i] = '.'
			}
		}
		return string(b) + last
	}
	m, envs := f.message("a@x.example")
	q := spool.Queue{Account: long(128, ""), Stream: long(255, ""), Domain: spool.QueueDomain(long(255, ".example"), spool.RouteMX, long(255, ".example"))}
	envs[0].Queue = q
	w := f.NewBody(t.Context(), m.ID)
	_, err := w.Write([]byte("b"))
	require.NoError(t, err)
	require.NoError(t, f.Commit(t.Context(), m, w, envs, nil))
	f.settle(f.lease(1), spool.Result{Outcome: spool.Deferred, Reply: busy, NextAttempt: f.now()})
	f.reopen()
	require.Equal(t, q, f.lease(1).Envelopes[0].Queue)
	require.Empty(t, f.check().Findings)
}

// TestMovedMailStaysApart moves mail of one sender's domain: rules for that domain hold after it as before.
func TestMovedMailStaysApart(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	m, envs := f.message("a@x.example")
	envs[0].Queue.Domain = spool.QueueDomain("shop.example", "", "x.example")
	w := f.NewBody(t.Context(), m.ID)
	_, err := w.Write([]byte("b"))
	require.NoError(t, err)
	require.NoError(t, f.Commit(t.Context(), m, w, envs, nil))
	for _, route := range []string{"upstream", spool.RouteMX, ""} {
		res, err := f.Move(t.Context(), route, spool.Selector{}, "ann", "", false)
		require.NoError(t, err)
		require.Equal(t, 1, res.Changed, route)
		require.Equal(t, spool.QueueDomain("shop.example", route, "x.example"), f.QueueStats()[0].Queue.Domain)
	}
}
