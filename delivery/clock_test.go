package delivery

import (
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/resolver"
	"relayd/internal/resolver/resolvertest"
	"relayd/internal/testutil"
	"relayd/spool"
)

// TestClockJumps sets the clock ten days ahead, and an hour back, while mail waits for a site that cannot be reached.
// Nothing expires without an attempt, nothing is tried in a storm, and new mail flows at once.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	const waiting = 200
	for name, jump := range map[string]time.Duration{
		"ten_days_ahead":     240 * time.Hour, // the site is forgotten meanwhile, and its rate with it
		"half_an_hour_ahead": 30 * time.Minute, "an_hour_back": -time.Hour,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				var commands atomic.Int64
				w := &wire{upAt: began.Add(5 * time.Minute), accepts: make(chan net.Conn), closed: make(chan struct{})}
				mx := &testutil.MX{
					Listen: func() (net.Listener, error) { return w, nil },
					Rule: func(s testutil.Step) testutil.Act {
						if s.Verb == "MAIL" {
							commands.Add(1)
						}
						return testutil.Act{}
					},
				}
				mx.Start(t)
				r := newRigOn(t, &resolvertest.Fake{
					MX: map[string][]resolver.MX{
						"dest.example": {{Host: "mx.dest.example", Pref: 10}}, "new.example": {{Host: "mx.new.example", Pref: 10}},
					},
					IP: map[string][]netip.Addr{
						"mx.dest.example": {netip.MustParseAddr("192.0.2.1")}, "mx.new.example": {netip.MustParseAddr("192.0.2.2")},
					},
				})
				r.cfg = DefaultConfig()
				r.network = w
				r.start()
				for range waiting {
					r.send("a@dest.example")
				}
				<-time.After(5 * time.Minute) // the site is suspended, and is up again when the clock jumps
				r.skew.Store(int64(jump))
				suspensions := r.logs.count("site.suspended")
				<-time.After(5 * time.Minute)
				require.Less(t, r.logs.count("site.suspended")-suspensions, 8, "no storm of attempts at the site")
				id := r.send("b@new.example")
				<-time.After(3 * time.Minute)
				require.Equal(t, spool.Delivered, r.outcome(id, 0).Result.Outcome, "new mail flows")
				<-time.After(2 * time.Hour)
				counts := map[spool.Outcome]int{}
				r.mu.Lock()
				for _, s := range r.final {
					counts[s.Result.Outcome]++
				}
				r.mu.Unlock()
				require.Equal(t, map[spool.Outcome]int{spool.Delivered: waiting + 1}, counts)
				require.EqualValues(t, waiting+1, commands.Load(), "each was tried once")
			})
		})
	}
}

// TestG10_RatesHoldWhenTheClockJumps: no burst follows, and nothing is forgotten. The process itself measures rates with a
// clock that does not jump; here it does.
func TestG10_RatesHoldWhenTheClockJumps(t *testing.T) {
	t.Parallel()
	for name, jump := range map[string]time.Duration{
		"ten_days_ahead":     240 * time.Hour, // the site is forgotten meanwhile, and its rate with it
		"half_an_hour_ahead": 30 * time.Minute, "an_hour_back": -time.Hour,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				mx := &testutil.MX{}
				r := googleRig(t, mx)
				r.cfg.Limits.Site = map[string]Limit{"mx.dest.example": {Rate: "60/h"}}
				r.start()
				for range 30 {
					r.send("a@dest.example")
				}
				<-time.After(5*time.Minute + 30*time.Second)
				before := len(mx.Mails())
				require.Equal(t, 6, before)
				r.skew.Store(int64(jump))
				<-time.After(10 * time.Minute)
				require.LessOrEqual(t, len(mx.Mails())-before, 11, "one a minute, the first at once")
				<-time.After(2 * time.Hour)
				require.Len(t, mx.Mails(), 30)
			})
		})
	}
}

// TestG10_APauseIsAsLongAsItWas, though relayd starts again with a clock that was ten days ahead before.
func TestG10_APauseIsAsLongAsItWas(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var well atomic.Bool
		mx := &testutil.MX{Rule: func(s testutil.Step) testutil.Act {
			if s.Verb == "CONNECT" && !well.Load() {
				return testutil.Act{Reply: "421 4.7.0 too much", Drop: true}
			}
			return testutil.Act{}
		}}
		r := googleRig(t, mx)
		r.skew.Store(int64(240 * time.Hour))
		r.start()
		r.send("a@dest.example")
		<-time.After(90 * time.Minute) // the pause is at its longest by now
		left := r.sched.SiteStates()[0].Resume.Sub(r.deps.Now())
		require.Positive(t, left)
		well.Store(true)
		r.shutdown()
		r.skew.Store(0)
		r.deps.Metrics = nil
		r.start()
		id := r.send("b@dest.example")
		<-time.After(35 * time.Minute)
		require.Equal(t, spool.Delivered, r.outcome(id, 0).Result.Outcome, "not in ten days")
	})
}
