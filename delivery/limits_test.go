package delivery

import (
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"relayd/internal/resolver"
	"relayd/internal/resolver/resolvertest"
	"relayd/internal/testutil"
	"relayd/spool"
)

// googleRig has two domains at one provider, with hosts of their own, and one elsewhere, all behind one wire.
func googleRig(t *testing.T, mx *testutil.MX) *rig {
	w := &wire{}
	r := wireRig(t, w, mx, map[string]string{
		"one.example": "aspmx.l.google.com", "two.example": "alt1.aspmx.l.google.com", "dest.example": "mx.dest.example",
	})
	return r
}

// complainedRig is a googleRig whose provider has complained a minute ago, at the 60th of 100 messages. find is the state of
// the provider.
func complainedRig(t *testing.T) (r *rig, mx *testutil.MX, find func() SiteState) {
	t.Helper()
	mx = &testutil.MX{Rule: func(s testutil.Step) testutil.Act {
		if s.Verb == "RCPT" && s.Seen == 60 {
			return testutil.Act{Reply: "421 4.7.28 unusual rate of mail", Drop: true}
		}
		return testutil.Act{}
	}}
	mx.Received = func(*testutil.Mail) { <-time.After(200 * time.Millisecond) }
	r = googleRig(t, mx)
	r.start()
	for range 100 {
		r.send("a@one.example")
	}
	<-time.After(time.Minute)
	return r, mx, func() SiteState {
		states := r.sched.SiteStates()
		i := indexOf(states, "provider:google")
		require.GreaterOrEqual(t, i, 0)
		return states[i]
	}
}

// wireRig is a rig on a fake clock; each domain has one MX host, and all are the same.
func wireRig(t testing.TB, w *wire, mx *testutil.MX, domains map[string]string) *rig {
	w.accepts, w.closed = make(chan net.Conn), make(chan struct{})
	mx.Listen = func() (net.Listener, error) { return w, nil }
	mx.Start(t)
	fake := &resolvertest.Fake{MX: map[string][]resolver.MX{}, IP: map[string][]netip.Addr{}}
	for domain, host := range domains {
		fake.MX[domain] = []resolver.MX{{Host: host, Pref: 10}}
		fake.IP[host] = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	}
	r := newRigOn(t, fake)
	r.network = w
	return r
}

// restart runs a new scheduler on the same store.
func (r *rig) restart() {
	r.shutdown()
	r.reg = prometheus.NewRegistry()
	r.deps.Metrics = r.reg
	r.start()
}

func (r *rig) queued() (ready, deferred, leased int64) {
	r.t.Helper()
	st, err := r.store.Stats(r.t.Context())
	require.NoError(r.t, err)
	return st.Ready, st.Deferred, st.Leased
}

func TestRateHolds(t *testing.T) {
	t.Parallel()
	for name, limits := range map[string]Limits{
		"of_the_site":     {Site: map[string]Limit{"mx.dest.example": {Rate: "60/h"}}},
		"of_each_site":    {Site: map[string]Limit{"default": {Rate: "60/h"}}},
		"of_the_account":  {Account: map[string]Limit{"default": {Rate: "60/h"}}},
		"of_the_campaign": {Campaign: map[string]Limit{"transactional": {Rate: "60/h"}}},
		"of_the_source":   {Source: map[string]Limit{"default": {Rate: "60/h"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				mx := &testutil.MX{}
				r := googleRig(t, mx)
				r.cfg.Limits = limits
				r.start()
				for range 30 {
					r.send("a@dest.example")
				}
				<-time.After(10*time.Minute + 30*time.Second)
				require.Len(t, mx.Mails(), 11, "one a minute, the first at once")
				ready, deferred, leased := r.queued()
				require.EqualValues(t, 19, ready, "waits in its queue, no attempt spent")
				require.Zero(t, deferred)
				require.Zero(t, leased)
				require.Zero(t, r.logs.count("attempt.deferred"))
				w := r.sched.Waiting(t.Context(), spool.Queue{Account: "default", Stream: "transactional", Domain: "dest.example"})
				require.Equal(t, waitRate, w.Reason)
				require.Equal(t, w, r.known("dest.example", 0))
				require.Contains(t, w.Text, "60/h")
				require.NotEmpty(t, w.Limit)
				require.WithinDuration(t, time.Now(), w.Until, time.Minute)
				<-time.After(20 * time.Minute)
				require.Len(t, mx.Mails(), 30)
			})
		})
	}
}

func TestProviderRateHoldsOverItsSites(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		mx := &testutil.MX{}
		r := googleRig(t, mx)
		r.cfg.Limits.Provider = map[string]Limit{"google": {Rate: "60/h", Connections: 1}}
		r.start()
		for range 20 {
			r.send("a@one.example")
			r.send("a@two.example")
			r.send("a@dest.example")
		}
		<-time.After(10*time.Minute + 30*time.Second)
		sent := map[string]int{}
		for _, m := range mx.Mails() {
			_, domain, _ := strings.Cut(m.To[0], "@")
			sent[domain]++
		}
		require.Equal(t, 20, sent["dest.example"])
		require.Equal(t, 11, sent["one.example"]+sent["two.example"])
		require.Equal(t, "provider google", r.known("two.example", 1.0/60).Limit)
		require.InDelta(t, sent["one.example"], sent["two.example"], 2, "sites take turns")
		<-time.After(31 * time.Minute)
		require.Len(t, mx.Mails(), 60)
	})
}

func TestConnectionsOfProviderAndAccountAreBounded(t *testing.T) {
	t.Parallel()
	for name, limits := range map[string]Limits{
		"provider": {Provider: map[string]Limit{"google": {Connections: 2}}},
		"account":  {Account: map[string]Limit{"default": {Connections: 2}}},
		"campaign": {Campaign: map[string]Limit{"transactional": {Connections: 2}}},
		"source":   {Source: map[string]Limit{"default": {Connections: 2}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				busy, most := 0, 0
				mx := &testutil.MX{}
				mx.Received = func(*testutil.Mail) {
					mu.Lock()
					busy++
					most = max(most, busy)
					mu.Unlock()
					<-time.After(time.Second)
					mu.Lock()
					busy--
					mu.Unlock()
				}
				r := googleRig(t, mx)
				count := &counted{network: r.network}
				r.network = count
				r.cfg.Limits = limits
				r.start()
				for range 30 {
					r.send("a@one.example")
					r.send("a@two.example")
				}
				<-time.After(2 * time.Minute)
				require.Len(t, mx.Mails(), 60)
				require.Equal(t, 2, most)
				if name == "provider" {
					require.Equal(t, 2, count.most)
				}
			})
		})
	}
}

func TestGmailQuotaPausesTheProviderForTenMinutes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var mu sync.Mutex
		var asked []time.Time // MAIL to Google after its complaint
		complained := time.Time{}
		mx := &testutil.MX{Rule: func(s testutil.Step) testutil.Act {
			mu.Lock()
			defer mu.Unlock()
			switch {
			case s.Verb != "RCPT" || strings.Contains(s.To, "dest.example"):
			case !complained.IsZero():
				asked = append(asked, time.Now())
			case s.Seen > 60:
				complained = time.Now()
				return testutil.Act{Reply: "421 4.7.28 Gmail has detected an unusual rate of mail", Drop: true}
			}
			return testutil.Act{}
		}}
		mx.Received = func(*testutil.Mail) { <-time.After(200 * time.Millisecond) }
		r := googleRig(t, mx)
		r.start()
		for range 100 {
			r.send("a@one.example")
			r.send("a@two.example")
		}
		<-time.After(5 * time.Minute)
		id := r.send("a@dest.example")
		require.Equal(t, spool.Delivered, r.outcome(id, 0).Result.Outcome, "others go on")
		w := r.sched.Waiting(t.Context(), spool.Queue{Account: "default", Stream: "transactional", Domain: "two.example"})
		require.Equal(t, waitSuspended, w.Reason)
		require.Equal(t, "provider google", w.Limit)
		require.Equal(t, 421, w.Reply.Code)
		require.Equal(t, w, r.known("two.example", 0), "from memory alone")
		require.Equal(t, Wait{}, r.known("never.example", 0))
		<-time.After(5 * time.Hour)
		mu.Lock()
		defer mu.Unlock()
		require.Less(t, complained.Sub(began), time.Minute)
		for _, at := range asked {
			if at.Sub(complained) > time.Second { // what was in flight is in flight
				require.GreaterOrEqual(t, at.Sub(complained), 10*time.Minute)
			}
		}
		require.Len(t, mx.Mails(), 201)
		for _, s := range r.final {
			require.Equal(t, 1, s.Envelope.Attempts)
		}
	})
}

func TestOperatorSuspendsAndResumes(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"aspmx.l.google.com", "provider:google"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				mx := &testutil.MX{}
				r := googleRig(t, mx)
				r.start()
				hold := Hold{Since: time.Now(), Who: "ops", Reason: "blocked us"}
				require.NoError(t, r.sched.SuspendSite(t.Context(), name, hold), "before any mail goes there")
				for range 5 {
					r.send("a@one.example")
				}
				<-time.After(90 * time.Minute)
				require.Empty(t, mx.Mails())
				q := spool.Queue{Account: "default", Stream: "transactional", Domain: "one.example"}
				w := r.sched.Waiting(t.Context(), q)
				require.Equal(t, waitOperator, w.Reason)
				require.Contains(t, w.Text, "ops has suspended "+name+" (blocked us)")
				require.Equal(t, w, r.known("one.example", 0))

				r.restart() // and it outlives the process
				<-time.After(time.Minute)
				require.Empty(t, mx.Mails())
				states := r.sched.SiteStates()
				i := indexOf(states, name)
				require.GreaterOrEqual(t, i, 0, "%v", states)
				require.Equal(t, stateSuspended, states[i].State)
				require.Equal(t, "ops", states[i].Hold.Who)

				changed, err := r.sched.ResumeSite(t.Context(), name, "ops", "")
				require.NoError(t, err)
				require.True(t, changed)
				synctest.Wait()
				<-time.After(time.Second)
				require.Len(t, mx.Mails(), 5, "at once")
				changed, err = r.sched.ResumeSite(t.Context(), name, "ops", "")
				require.NoError(t, err)
				require.False(t, changed)
			})
		})
	}
}

func indexOf(states []SiteState, name string) int {
	for i := range states {
		if states[i].Name == name {
			return i
		}
	}
	return -1
}

func TestSuspensionEndsByItself(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		mx := &testutil.MX{}
		r := googleRig(t, mx)
		r.start()
		require.NoError(t, r.sched.SuspendSite(t.Context(), "MX.dest.example", Hold{Since: time.Now(), Until: time.Now().Add(time.Hour), Who: "ops"}))
		r.send("a@dest.example")
		<-time.After(59 * time.Minute)
		require.Empty(t, mx.Mails())
		<-time.After(2 * time.Minute)
		require.Len(t, mx.Mails(), 1)
		for name, want := range map[string]string{
			"nonsense": "neither a host name nor a smarthost", "provider:gogle": "know no", "a b.example": "neither", "": "neither",
		} {
			err := r.sched.SuspendSite(t.Context(), name, Hold{})
			require.ErrorIs(t, err, ErrNoSite)
			require.ErrorContains(t, err, want)
		}
	})
}

func TestPauseSurvivesARestart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		mx := &testutil.MX{Rule: on("CONNECT", testutil.Act{Reply: "421 4.7.0 too much", Drop: true})}
		r := googleRig(t, mx)
		r.start()
		r.send("a@dest.example")
		<-time.After(90 * time.Minute) // the pause is at its longest by now
		before, _ := mx.Sessions()
		state := r.sched.SiteStates()[0]
		require.Equal(t, statePaused, state.State)
		r.restart()
		r.send("b@dest.example")
		<-time.After(time.Until(state.Resume) - time.Second)
		after, _ := mx.Sessions()
		require.Equal(t, before, after, "nothing is dialled before the pause is over")
		again := r.sched.SiteStates()[0]
		require.Equal(t, state.Failures, again.Failures)
		require.Equal(t, state.LastReply, again.LastReply)
		<-time.After(time.Hour)
		after, _ = mx.Sessions()
		require.Greater(t, after, before)
	})
}

func TestGovernor(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	g := newGovernor(20, initialWindow)
	for range 30 {
		g.sent(now, 1, g.window)
	}
	require.Equal(t, 20, g.window, "fast until there is a complaint")
	g.refused(11)
	require.Equal(t, 10, g.window, "the first failure of a run takes one at once")
	g.refused(10)
	require.Equal(t, 10, g.window, "the next count by 1/N")
	for range 10 {
		g.refused(10)
	}
	require.Equal(t, 9, g.window)
	for range 8 {
		g.sent(now, 1, g.window)
	}
	require.Equal(t, 9, g.window)
	g.sent(now, 1, g.window)
	g.sent(now, 1, g.window)
	require.Equal(t, 10, g.window, "N successes win one")
	g.window = 20
	for range 1000 {
		g.sent(now, 1, 3)
	}
	require.Equal(t, 20, g.window)

	g = newGovernor(20, 20)
	for range 600 {
		now = now.Add(100 * time.Millisecond)
		g.sent(now, 1, 20)
	}
	delay := g.throttled(now, &pause{cause: causeThrottled, rate: true}, 10*time.Minute, time.Hour)
	require.GreaterOrEqual(t, delay, 10*time.Minute)
	require.Equal(t, 1, g.window)
	require.InDelta(t, 5.4, g.pace, 1, "less than it took")
	pace := g.pace
	now = now.Add(delay + time.Minute)
	g.throttled(now, &pause{cause: causeThrottled, rate: true}, 10*time.Minute, time.Hour)
	require.InDelta(t, pace/2, g.pace, 0.001, "a complaint that comes soon halves it")
	require.False(t, g.sent(now, 1, 1), "under way when the pause began")
	require.Equal(t, 1, g.window)
	require.True(t, g.sent(g.resume, 1, 1))
	require.Zero(t, g.failures)
}

func FuzzSiteRecord(f *testing.F) {
	now := time.Unix(1_800_000_000, 0).UTC()
	f.Add(encodeSite(&siteRecord{At: now, Failures: 3, Paused: now, Resume: now, Cause: "throttled", Host: "mx[192.0.2.1]", Window: 1, Threshold: 2, Pace: 1.5, Complaint: 2}))
	f.Add(encodeHold(&Hold{Since: now, Who: "ops", Reason: "why"}))
	f.Add([]byte{siteVersion + 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decodeSite(b); err == nil {
			again, err := decodeSite(encodeSite(r))
			require.NoError(t, err)
			require.Equal(t, r, again)
		}
		if h, err := decodeHold(b); err == nil {
			again, err := decodeHold(encodeHold(h))
			require.NoError(t, err)
			require.Equal(t, h, again)
		}
	})
}

// known is WaitingKnown for one queue, whose site may get so many messages a second.
func (r *rig) known(domain string, perSecond float64) Wait {
	w := r.sched.WaitingKnown([]spool.Queue{{Account: "default", Stream: "transactional", Domain: domain}})[0]
	if perSecond > 0 {
		require.InDelta(r.t, perSecond, w.PerSecond, 0.001)
	}
	w.PerSecond = 0
	return w
}

// TestRateOfASiteIsSharedByAll has one account lease all that a rate lets leave while its site is slow: single messages of
// others must have their turn, and not be forgotten.
func TestRateOfASiteIsSharedByAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		mx := newBusyMX()
		r := googleRig(t, &mx.MX)
		r.cfg.Limits.Site = map[string]Limit{"mx.dest.example": {Rate: "5/s", Connections: 2}}
		r.start()
		for range 100 {
			r.submit(submission{to: []string{"a@dest.example"}, account: "many"})
		}
		<-time.After(5 * time.Second)
		for _, account := range []string{"one", "two", "three"} {
			r.submit(submission{to: []string{account + "@dest.example"}, account: account})
		}
		<-time.After(2 * time.Minute)
		to := map[string]bool{}
		for _, m := range mx.Mails() {
			to[m.To[0]] = true
		}
		require.Len(t, to, 4, "%v after %d", to, len(mx.Mails()))
		<-time.After(time.Hour)
		require.Len(t, mx.Mails(), 103)
		r.sched.mu.Lock()
		defer r.sched.mu.Unlock()
		for _, st := range r.sched.sites {
			require.Empty(t, st.flows, "nothing is left behind")
		}
	})
}
