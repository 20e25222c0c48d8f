package delivery

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/testutil"
	"relayd/internal/tlspolicy"
	"relayd/spool"
)

// TestWorkInMemoryIsBounded has 10,000 messages wait for a host that does not answer: a bounded part of them is under lease,
// and none has a goroutine. Not parallel: it counts goroutines.
func TestWorkInMemoryIsBounded(t *testing.T) { //nolint:paralleltest // as said
	stall := make(chan struct{})
	mx := (&testutil.MX{Rule: on("DOT", testutil.Act{Stall: stall})}).Start(t)
	r := newRig(t, mx.PortNumber(), zone())
	r.cfg.MaxConnectionsPerSite, r.cfg.Grace = 5, time.Millisecond
	r.deps.Composer = composeFunc(func(*spool.Envelope) ([]byte, error) { return []byte("Subject: x\r\n\r\nx\r\n"), nil })
	r.fill(10_000, spool.Bulk, []string{"dest.example", "other.example"})
	before := runtime.NumGoroutine()
	r.start()
	mx.WaitCommands(t, "DOT", bulkWindow(5))
	s := r.sched
	s.mu.Lock()
	require.Len(t, s.sites, 1)
	for _, st := range s.sites {
		require.Positive(t, st.leased)
		require.LessOrEqual(t, st.leased, maxSiteLeased)
		require.Equal(t, s.leased, st.leased)
		for _, f := range st.flows {
			require.LessOrEqual(t, f.leased, 3*maxLease, "two leases, and one more")
		}
	}
	s.mu.Unlock()
	require.LessOrEqual(t, runtime.NumGoroutine()-before, 100, "for a few connections, both ends of them")
	close(stall)
	r.shutdown()
}

// TestLeasesInAllAreBounded: once very much is under lease each site gets little more.
func TestLeasesInAllAreBounded(t *testing.T) {
	t.Parallel()
	s := newRig(t, 1, nil).start().sched
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.newSite(&route{key: "site", name: "mx.example"})
	require.Equal(t, maxSiteLeased, s.roomAt(st, s.now()))
	s.leased = maxLeased
	defer func() { s.leased = 0 }()
	require.Equal(t, fewLeased, s.roomAt(st, s.now()))
	st.leased = fewLeased
	require.Zero(t, s.roomAt(st, s.now()))
}

// TestDefaultWaitsAreThoseOfTheRFC: RFC 5321 section 4.5.3.2.
func TestDefaultWaitsAreThoseOfTheRFC(t *testing.T) {
	t.Parallel()
	d := Timeouts{}.withDefaults()
	for name, w := range map[string]struct{ got, least time.Duration }{
		"greeting": {d.Greeting, 5 * time.Minute}, "MAIL and RCPT": {d.Command, 5 * time.Minute}, "DATA": {d.DataInit, 2 * time.Minute},
		"block": {d.DataBlock, 3 * time.Minute}, "final dot": {d.DataDone, 10 * time.Minute},
	} {
		require.GreaterOrEqual(t, w.got, w.least, name)
	}
}

// TestSizeIsDeclaredAndHeard: RFC 1870.
func TestSizeIsDeclaredAndHeard(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{Extensions: []string{"PIPELINING", "SIZE 4000"}}).Start(t)
	r := newRig(t, mx.PortNumber(), zone())
	r.deps.Door = nil
	r.start()
	got := r.outcome(r.submit(submission{to: []string{"a@dest.example"}, size: 5000}), 0)
	require.Equal(t, spool.Bounced, got.Result.Outcome)
	require.Equal(t, reasonSize, got.Result.Reason)
	require.Equal(t, 552, got.Result.Reply.Code)
	require.Empty(t, mx.Mails())
	got = r.outcome(r.submit(submission{to: []string{"a@dest.example"}, size: 1000}), 0)
	require.Equal(t, spool.Delivered, got.Result.Outcome)
	require.Contains(t, mx.Mails()[0].MailArg, fmt.Sprintf(" SIZE=%d", got.Message.Size))
}

// TestBrokenSessionHandsItsWorkBack has the connection break at each step of a transaction: what was not answered goes over
// another one, once, in the same attempt.
func TestBrokenSessionHandsItsWorkBack(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"EHLO", "MAIL", "RCPT", "DATA"} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			mx := (&testutil.MX{Rule: func(s testutil.Step) testutil.Act {
				return testutil.Act{Reset: s.Verb == verb && s.Seen == 1}
			}}).Start(t)
			r := newRig(t, mx.PortNumber(), zone()).sleepless()
			r.cfg.MaxConnectionsPerSite, r.cfg.ConnectTries, r.cfg.MaxMessagesPerConnection = 1, 3, 2
			to := map[string]int{}
			var done []spool.Settled
			for i := range 6 {
				to[fmt.Sprintf("u%d@dest.example", i)] = 1
			}
			r.start()
			for a := range to {
				done = append(done, r.outcome(r.send(a), 0))
			}
			for _, d := range done {
				require.Equal(t, spool.Delivered, d.Result.Outcome)
				require.Equal(t, 1, d.Envelope.Attempts)
			}
			got := map[string]int{}
			for _, m := range mx.Mails() {
				got[m.To[0]]++
			}
			require.Equal(t, to, got)
		})
	}
}

// TestTheLastReplyIsTold: an envelope whose attempts are used up settles with what the host said last.
func TestTheLastReplyIsTold(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{Rule: func(s testutil.Step) testutil.Act {
		if s.Verb == "RCPT" {
			return testutil.Act{Reply: fmt.Sprintf("451 4.2.1 try %d", s.Seen+1)}
		}
		return testutil.Act{}
	}}).Start(t)
	r := newRig(t, mx.PortNumber(), zone())
	r.deps.Door = nil
	r.start()
	got := r.outcome(r.submit(submission{to: []string{"a@dest.example"}, retry: spool.RetryPolicy{Attempts: 3, First: 10 * time.Millisecond, Multiplier: 1}}), 0)
	require.Equal(t, spool.Expired, got.Result.Outcome)
	require.Equal(t, reasonAttempts, got.Result.Reason)
	require.Equal(t, "451 4.2.1 try 3", got.Result.Reply.String())
}

// TestPolicyOfADomainComesBeforeItsSite has two domains with the same host, of which one must be reached with a valid
// certificate: it shares no session with the other.
func TestPolicyOfADomainComesBeforeItsSite(t *testing.T) {
	t.Parallel()
	ca := testutil.NewCA(t)
	mx := (&testutil.MX{TLS: ca.Server(t, "somebody.else")}).Start(t)
	r := newRig(t, mx.PortNumber(), zone())
	r.deps.Roots = ca.Pool()
	r.cfg.Rules = []Rule{{RecipientDomains: []string{"dest.example"}, TLS: tlspolicy.Verify}}
	r.sleepless().start()
	require.Equal(t, "TLS1.3", r.outcome(r.send("a@other.example"), 0).Result.TLS, "its session is open and idle now")
	require.Eventually(t, func() bool { // told first, put back then
		idle, _ := r.sched.pool.size("")
		return idle == 1
	}, time.Minute, time.Millisecond)
	require.Zero(t, r.deferred(r.send("a@dest.example"), 0).Attempts)
	require.Len(t, mx.Mails(), 1)
	states := map[string]bool{}
	r.sched.mu.Lock()
	for key, st := range r.sched.sites {
		states[key] = st.own.gov.failures > 0
		require.Equal(t, "mx.dest.example", st.name)
	}
	r.sched.mu.Unlock()
	require.Equal(t, map[string]bool{"mx.dest.example": false, "mx.dest.example tls verify": true}, states, "and no pause")
}

// TestWhatWasLearnedSurvivesARestart: a provider's pace is the same in the next process, and its pause goes on.
func TestWhatWasLearnedSurvivesARestart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, mx, find := complainedRig(t)
		before := find()
		require.NotZero(t, before.Pace)
		sent := len(mx.Mails())
		r.restart()
		<-time.After(time.Minute)
		after := find()
		require.InDelta(t, before.Pace, after.Pace, 1e-9)
		require.WithinDuration(t, before.Resume, after.Resume, 0)
		require.Equal(t, before.LastReply, after.LastReply)
		require.Len(t, mx.Mails(), sent)
		<-time.After(24 * time.Hour)
		require.Len(t, mx.Mails(), 100)
	})
}

// TestAPauseIsVisibleInTheNextProcess has nothing due for the paused site when the next process begins: it is listed all the
// same, and an operator may end the pause.
func TestAPauseIsVisibleInTheNextProcess(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var open atomic.Bool
		mx := &testutil.MX{Rule: func(s testutil.Step) testutil.Act {
			if s.Verb == "CONNECT" && !open.Load() {
				return testutil.Act{Reply: "421 4.7.0 too much", Drop: true}
			}
			return testutil.Act{}
		}}
		r := googleRig(t, mx)
		r.start()
		r.send("a@dest.example")
		<-time.After(90 * time.Minute)
		before := r.sched.SiteStates()
		require.Len(t, before, 1)
		r.restart()
		synctest.Wait()
		after := r.sched.SiteStates()
		require.Len(t, after, 1)
		for _, x := range []*SiteState{&before[0], &after[0]} {
			require.Equal(t, "mx.dest.example", x.Name)
			require.Equal(t, statePaused, x.State)
			require.WithinDuration(t, before[0].Resume, x.Until, 0)
			require.Equal(t, before[0].Failures, x.Failures)
			require.Equal(t, before[0].LastReply, x.LastReply)
			require.Equal(t, before[0].Hosts, x.Hosts)
		}
		open.Store(true)
		changed, err := r.sched.ResumeSite(t.Context(), "MX.dest.example", "ops", "")
		require.NoError(t, err)
		require.True(t, changed)
		require.Empty(t, r.sched.SiteStates())
		r.restart()
		require.Empty(t, r.sched.SiteStates(), "for good")
		require.Equal(t, 1, r.outcome(r.send("b@dest.example"), 0).Envelope.Attempts)
		require.Positive(t, time.Until(before[0].Resume), "before the pause would have been over")
	})
}

// TestAPauseHeedsTheHint: a host that says when to come back is asked again then, not before, and within suspend_max.
func TestAPauseHeedsTheHint(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"too busy": 30 * time.Second, "try again in 10 minutes": 10 * time.Minute, "try again in 20 hours": 30 * time.Minute,
		"try again in 2 seconds": 30 * time.Second,
	} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				mx := &testutil.MX{Rule: on("CONNECT", testutil.Act{Reply: "421 4.3.2 " + text, Drop: true})}
				r := googleRig(t, mx)
				require.Equal(t, 30*time.Second, r.cfg.SuspendFirst)
				require.Equal(t, 30*time.Minute, r.cfg.SuspendMax)
				r.start()
				r.send("a@dest.example")
				synctest.Wait()
				state := r.sched.SiteStates()[0]
				require.Equal(t, statePaused, state.State)
				require.Equal(t, 1, state.Failures)
				require.InDelta(t, want.Seconds(), state.Resume.Sub(state.Paused).Seconds(), want.Seconds()/10)
			})
		})
	}
}
