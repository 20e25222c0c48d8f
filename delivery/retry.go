package delivery

import (
	"cmp"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"relayd/internal/mail"
	"relayd/spool"
)

// retrier decides what follows a temporary failure.
type retrier struct {
	policies atomic.Pointer[policies]
	jitter   func() float64 // 0 to 1
}

// policies are those of the configuration.
type policies struct {
	standard spool.RetryPolicy
	named    map[string]spool.RetryPolicy
}

func newRetrier(cfg Config) *retrier {
	r := &retrier{jitter: rand.Float64}
	r.policies.Store(newPolicies(cfg))
	return r
}

func newPolicies(cfg Config) *policies {
	p := &policies{cfg.Retry.Policy(), map[string]spool.RetryPolicy{}}
	for name, named := range cfg.Policies {
		p.named[name] = named.Policy()
	}
	return p
}

// policy returns the message's own, the one named like its stream, the one named like its class, or the default.
func (r *retrier) policy(m *spool.Message) spool.RetryPolicy {
	if m.Retry.Attempts > 0 {
		return m.Retry
	}
	of := r.policies.Load()
	if p, ok := of.named[m.Stream]; ok {
		return p
	}
	if p, ok := of.named[className(m.Class)]; ok {
		return p
	}
	return of.standard
}

// expires is the time after which no attempt is made.
func (r *retrier) expires(m *spool.Message) time.Time {
	if !m.ExpiresAt.IsZero() {
		return m.ExpiresAt
	}
	return m.AcceptedAt.Add(cmp.Or(r.policy(m).MaxAge, r.policies.Load().standard.MaxAge))
}

// presented is for an envelope that was part of a transaction and refused for now: it counts as an attempt. The reply
// may ask for a longer wait; it is heard up to four times the policy's own, and within the mail's time.
func (r *retrier) presented(m *spool.Message, e *spool.Envelope, reply mail.Reply, now time.Time) spool.Result {
	res := spool.Result{ID: e.ID, Outcome: spool.Deferred, Presented: true, Reply: reply, At: now}
	p := r.policy(m)
	if e.Attempts+1 >= p.Attempts {
		res.Outcome, res.Reason = spool.Expired, reasonAttempts
		return res
	}
	delay := r.delay(p, e.Attempts+1)
	res.NextAttempt = now.Add(delay)
	expires := r.expires(m)
	if hint := delayHint(reply.Text); hint > delay && res.NextAttempt.Before(expires) { // a host's wish alone lets nothing expire
		if res.NextAttempt = now.Add(min(hint, 4*delay)); res.NextAttempt.After(expires) {
			res.NextAttempt = expires
		}
	}
	if res.NextAttempt.After(expires) {
		res.Outcome, res.Reason, res.NextAttempt = spool.Expired, reasonAge, time.Time{}
	}
	return res
}

// unpresented is for an envelope whose site, or our side, failed before its turn came: it costs no attempt. Envelopes
// expire here and in presented alone, after a real failure: never because a clock jumped, or because relayd was down for
// long. What is overdue when it is leased gets one more try.
func (r *retrier) unpresented(m *spool.Message, e *spool.Envelope, reply mail.Reply, now, next time.Time) spool.Result {
	res := spool.Result{ID: e.ID, Outcome: spool.Deferred, Reply: reply, NextAttempt: next, At: now}
	if now.After(r.expires(m)) {
		res.Outcome, res.Reason, res.NextAttempt = spool.Expired, reasonAge, time.Time{}
	}
	return res
}

// Reasons of results, a closed set with those of refusals and gates.
const (
	reasonAttempts = "attempts_exhausted"
	reasonAge      = "max_age"
	reasonInDoubt  = "in_doubt"
	reasonRender   = "render_failed"
	reasonNoRoute  = "no_route"
	reasonUTF8     = "needs_smtputf8"
	reasonTLS      = "needs_requiretls"
	reasonEightBit = "needs_8bitmime"
	reasonSize     = "too_large"
)

// delay is the wait after attempt n, ±10 %.
func (r *retrier) delay(p spool.RetryPolicy, n int) time.Duration {
	d := float64(p.First) * math.Pow(max(p.Multiplier, 1), float64(n-1))
	return jittered(d, r.jitter())
}

// jittered spreads d by ±10 %, at most 30 days.
func jittered(d, random float64) time.Duration {
	return time.Duration(min(d*(0.9+0.2*random), float64(30*24*time.Hour)))
}

// backoff is the pause after failure n (from 1) of something that stands for many envelopes.
func backoff(first, most time.Duration, n int, random float64) time.Duration {
	d := min(float64(first)*math.Pow(2, float64(min(n, 40)-1)), float64(most))
	return jittered(d, random)
}
