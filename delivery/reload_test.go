package delivery

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/testutil"
	"relayd/spool"
)

func TestReloadedRateHoldsAtOnce(t *testing.T) {
	t.Parallel()
	for name, with := range map[string]func(Limit) Limits{
		"site":     func(l Limit) Limits { return Limits{Site: map[string]Limit{"mx.dest.example": l}} },
		"account":  func(l Limit) Limits { return Limits{Account: map[string]Limit{"default": l}} },
		"campaign": func(l Limit) Limits { return Limits{Campaign: map[string]Limit{"transactional": l}} },
		"source":   func(l Limit) Limits { return Limits{Source: map[string]Limit{"default": l}} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				mx := &testutil.MX{}
				r := googleRig(t, mx)
				r.cfg.Limits = with(Limit{Rate: "2/d,max_burst=10"})
				r.start()
				for range 30 {
					r.send("a@dest.example")
				}
				<-time.After(time.Minute)
				require.Len(t, mx.Mails(), 10)

				faulty := r.cfg
				faulty.Limits = with(Limit{Rate: "100 per second"})
				_, err := r.sched.Reload(faulty)
				require.ErrorContains(t, err, "delivery.limits."+name)
				<-time.After(time.Minute)
				require.Len(t, mx.Mails(), 10, "a faulty configuration changes nothing")

				wider := r.cfg
				wider.Limits = with(Limit{Rate: "60/m"})
				kept, err := r.sched.Reload(wider)
				require.NoError(t, err)
				require.False(t, kept, "nothing waits for a restart")
				<-time.After(30 * time.Second)
				require.Len(t, mx.Mails(), 30, "one a second, without the five days of the old rate")

				narrow := r.cfg
				narrow.Limits = with(Limit{Rate: "60/h"})
				_, err = r.sched.Reload(narrow)
				require.NoError(t, err)
				for range 10 {
					r.send("a@dest.example")
				}
				<-time.After(5*time.Minute + 30*time.Second)
				require.InDelta(t, 36, len(mx.Mails()), 1)

				_, err = r.sched.Reload(withoutLimits(r.cfg))
				require.NoError(t, err)
				<-time.After(5 * time.Second)
				require.Len(t, mx.Mails(), 40)
				r.mu.Lock()
				defer r.mu.Unlock()
				for _, s := range r.final {
					require.Equal(t, 1, s.Envelope.Attempts)
				}
			})
		})
	}
}

func withoutLimits(c Config) Config {
	c.Limits = Limits{}
	return c
}

// TestReloadKeepsWhatWasLearned has a receiver complain, and reloads its limit twice while it is paused.
func TestReloadKeepsWhatWasLearned(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, mx, find := complainedRig(t)
		before := find()
		require.Equal(t, statePaused, before.State)
		require.NotZero(t, before.Pace)
		sent := len(mx.Mails())
		for _, connections := range []int{3, 40} {
			next := r.cfg
			next.Limits.Provider = map[string]Limit{"google": {Connections: connections}}
			kept, err := r.sched.Reload(next)
			require.NoError(t, err)
			require.False(t, kept)
			<-time.After(time.Second)
			after := find()
			require.Equal(t, connections, after.Ceiling)
			require.Equal(t, statePaused, after.State)
			require.Equal(t, before.Resume, after.Resume)
			require.InDelta(t, before.Pace, after.Pace, 1e-9)
			require.Equal(t, 1, after.Window, "as the complaint left it, whatever the ceiling")
		}
		require.Len(t, mx.Mails(), sent)
		<-time.After(5 * time.Hour)
		require.Len(t, mx.Mails(), 100)
	})
}

// busyMX takes ten seconds for each message and counts how many it holds at a time.
type busyMX struct {
	testutil.MX
	mu         sync.Mutex
	busy, most int
}

func newBusyMX() *busyMX {
	m := &busyMX{}
	m.Received = func(*testutil.Mail) {
		m.mu.Lock()
		m.busy++
		m.most = max(m.most, m.busy)
		m.mu.Unlock()
		<-time.After(10 * time.Second)
		m.mu.Lock()
		m.busy--
		m.mu.Unlock()
	}
	return m
}

// reset forgets the most so far.
func (m *busyMX) reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.most = m.busy
}

func (m *busyMX) peak() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.most
}

// TestReloadedProvidersHold moves hosts under a provider, to another and out of all, with connections open.
func TestReloadedProvidersHold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		mx := newBusyMX()
		r := googleRig(t, &mx.MX)
		r.cfg.ProvidersFile = filepath.Join(t.TempDir(), "providers.txt")
		write := func(text string) {
			require.NoError(t, os.WriteFile(r.cfg.ProvidersFile, []byte(text), 0o600))
		}
		write("provider acme connections=3\nmx acme .google.com\n")
		r.start()
		for range 500 {
			r.send("a@one.example")
			r.send("a@two.example")
		}
		<-time.After(time.Minute)
		require.Equal(t, 3, mx.peak())

		write("provider acme connections=3 speed=9\n")
		_, err := r.sched.Reload(r.cfg)
		require.ErrorContains(t, err, "delivery.providers_file: "+r.cfg.ProvidersFile+": line 1")
		unknown := r.cfg
		unknown.Limits.Provider = map[string]Limit{"google": {Connections: 1}}
		write("provider acme connections=7\nmx acme .google.com\n")
		_, err = r.sched.Reload(unknown)
		require.ErrorContains(t, err, `delivery.limits.provider.google: the provider rules know no "google"`)
		<-time.After(time.Minute)
		require.Equal(t, 3, mx.peak(), "faulty files change nothing")

		_, err = r.sched.Reload(r.cfg)
		require.NoError(t, err)
		<-time.After(time.Minute)
		require.Equal(t, 7, mx.peak(), "the file is read again")

		write("provider other connections=2\nmx other .google.com\n")
		_, err = r.sched.Reload(r.cfg)
		require.NoError(t, err)
		<-time.After(11 * time.Second) // what is on its way arrives
		mx.reset()
		<-time.After(time.Minute)
		require.Equal(t, 2, mx.peak(), "connections of the old provider count for the new one")
		states := r.sched.SiteStates()
		require.Negative(t, indexOf(states, "provider:acme"))
		require.Equal(t, 2, states[indexOf(states, "provider:other")].Connections)

		write("# nobody\n")
		_, err = r.sched.Reload(r.cfg)
		require.NoError(t, err)
		<-time.After(time.Minute)
		require.Equal(t, 2*r.cfg.MaxConnectionsPerSite, mx.peak())

		write("provider acme connections=4\nmx acme .google.com\n")
		_, err = r.sched.Reload(r.cfg)
		require.NoError(t, err)
		<-time.After(11 * time.Second)
		mx.reset()
		<-time.After(time.Minute)
		require.Equal(t, 4, mx.peak())

		<-time.After(time.Hour)
		require.Len(t, mx.Mails(), 1000)
		r.sched.mu.Lock()
		defer r.sched.mu.Unlock()
		require.Zero(t, r.sched.workers)
		for _, l := range r.sched.providers {
			require.Zero(t, l.running, l.name)
		}
		require.Zero(t, r.sched.sources[defaultName].running)
		require.Empty(t, r.sched.pool.counts)
	})
}

func TestReloadedConnectionsHold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		mx := newBusyMX()
		r := googleRig(t, &mx.MX)
		r.cfg.MaxConnections, r.cfg.MaxConnectionsPerSite = 30, 20
		r.start()
		for range 600 {
			r.send("a@one.example")
			r.send("a@dest.example")
		}
		<-time.After(time.Minute)
		require.Equal(t, 30, mx.peak())
		for _, step := range []struct{ all, site, want int }{{6, 20, 6}, {30, 2, 4}, {100, 40, 60}} { // google: 20 in all
			next := r.cfg
			next.MaxConnections, next.MaxConnectionsPerSite = step.all, step.site
			kept, err := r.sched.Reload(next)
			require.NoError(t, err)
			require.False(t, kept)
			<-time.After(11 * time.Second)
			mx.reset()
			<-time.After(time.Minute)
			require.Equal(t, step.want, mx.peak(), "%v", step)
		}
		<-time.After(time.Hour)
		require.Len(t, mx.Mails(), 1200)
	})
}

// TestReloadedSiteTermsHold changes what one session may carry.
func TestReloadedSiteTermsHold(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{}).Start(t)
	r := newRig(t, mx.PortNumber(), zone())
	r.start()
	to := strings.Fields("a@dest.example b@dest.example c@dest.example d@dest.example")
	id := r.send(to...)
	for n := range to {
		r.outcome(id, uint64(n)) //nolint:gosec // small
	}
	require.Len(t, mx.Mails(), 1)
	next := r.cfg
	next.MaxRecipients, next.MaxMessagesPerConnection = 2, 1
	_, err := r.sched.Reload(next)
	require.NoError(t, err)
	id = r.send(to...)
	for n := range to {
		require.Equal(t, spool.Delivered, r.outcome(id, uint64(n)).Result.Outcome) //nolint:gosec // small
	}
	require.Len(t, mx.Mails(), 3)
	require.NotEqual(t, mx.Mails()[1].Session, mx.Mails()[2].Session)
}
