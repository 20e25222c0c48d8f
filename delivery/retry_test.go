package delivery

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/mail"
	"relayd/spool"
)

func TestRetrySchedule(t *testing.T) {
	t.Parallel()
	r := newRetrier(DefaultConfig())
	r.jitter = func() float64 { return 0.5 }
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	m := &spool.Message{AcceptedAt: now, ExpiresAt: now.Add(24 * time.Hour), Class: spool.Transactional}
	e := &spool.Envelope{}
	reply := mail.Reply{Code: 451, Text: "later"}

	res := r.presented(m, e, reply, now)
	require.Equal(t, spool.Deferred, res.Outcome)
	require.True(t, res.Presented)
	require.WithinDuration(t, now.Add(15*time.Minute), res.NextAttempt, time.Second)
	e.Attempts = 1
	require.WithinDuration(t, now.Add(4*time.Hour), r.presented(m, e, reply, now).NextAttempt, time.Second)
	e.Attempts = 2
	res = r.presented(m, e, reply, now)
	require.Equal(t, spool.Expired, res.Outcome)
	require.Equal(t, reasonAttempts, res.Reason)
	require.Equal(t, reply, res.Reply)
}

func TestJitterIsTenPercent(t *testing.T) {
	t.Parallel()
	r := newRetrier(DefaultConfig())
	low, high := time.Hour, time.Duration(0)
	for range 10_000 {
		d := r.delay(r.policies.Load().standard, 1)
		low, high = min(low, d), max(high, d)
	}
	require.GreaterOrEqual(t, low, 15*time.Minute*9/10)
	require.LessOrEqual(t, high, 15*time.Minute*11/10)
	require.Greater(t, high-low, 2*time.Minute)
}

func TestPolicyIsChosen(t *testing.T) {
	t.Parallel()
	cfg := DefaultConfig()
	cfg.Policies = map[string]Retry{"urgent": {Attempts: 5, FirstDelay: time.Second, Multiplier: 2, MaxAge: time.Minute}, "invoices": {Attempts: 9, FirstDelay: time.Hour, Multiplier: 1, MaxAge: time.Hour}}
	r := newRetrier(cfg)
	require.Equal(t, 3, r.policy(&spool.Message{Class: spool.Bulk}).Attempts)
	require.Equal(t, 5, r.policy(&spool.Message{Class: spool.Urgent}).Attempts)
	require.Equal(t, 9, r.policy(&spool.Message{Class: spool.Urgent, Stream: "invoices"}).Attempts)
	require.Equal(t, 7, r.policy(&spool.Message{Stream: "invoices", Retry: spool.RetryPolicy{Attempts: 7}}).Attempts)
	at := time.Unix(1e9, 0)
	require.Equal(t, at.Add(time.Minute), r.expires(&spool.Message{Class: spool.Urgent, AcceptedAt: at}))
}

func TestDelayHints(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"Greylisted, please try again in 300 seconds": 5 * time.Minute,
		"come back in 10 minutes":                     10 * time.Minute,
		"try again after 2 hours":                     2 * time.Hour,
		"retry in 99999 hours":                        24 * time.Hour,
		"try again later":                             0,
		"you have 300 seconds":                        0,
		"":                                            0,
	} {
		require.Equal(t, want, delayHint(text), text)
	}
	r := newRetrier(DefaultConfig())
	r.jitter = func() float64 { return 0.5 }
	now := time.Unix(1e9, 0)
	m := &spool.Message{AcceptedAt: now, ExpiresAt: now.Add(24 * time.Hour)}
	next := func(text string) time.Duration {
		return r.presented(m, &spool.Envelope{}, mail.Reply{Code: 451, Text: text}, now).NextAttempt.Sub(now).Round(time.Second)
	}
	require.Equal(t, 15*time.Minute, next("try again in 60 seconds")) // never sooner than the policy
	require.Equal(t, 40*time.Minute, next("try again in 40 minutes"))
	require.Equal(t, time.Hour, next("try again in 20 hours")) // heard within bounds
}

func TestBackoffGrowsToItsCap(t *testing.T) {
	t.Parallel()
	var got []time.Duration
	for n := 1; n <= 8; n++ {
		got = append(got, backoff(30*time.Second, 30*time.Minute, n, 0.5))
	}
	s, m := time.Second, time.Minute
	require.Equal(t, []time.Duration{30 * s, m, 2 * m, 4 * m, 8 * m, 16 * m, 30 * m, 30 * m}, got)
	require.Equal(t, 30*m, backoff(30*s, 30*m, 1_000_000, 0.5))
}

func TestWaitsWithinAnAttemptDouble(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		require.NoError(t, sleep(t.Context(), time.Second))
		require.NoError(t, sleep(t.Context(), 2*time.Second))
		require.Equal(t, 3*time.Second, time.Since(began))
	})
}
