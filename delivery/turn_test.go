package delivery

import (
	"fmt"
	"maps"
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

// TestABusySiteGivesWayAtItsProvider has more busy sites than connections that their provider, or the source, may have, all
// with mail for hours: each has a turn, and a site that comes later gets its first message after a bounded number of the
// others' transactions. Others than the provider's do not wait.
func TestABusySiteGivesWayAtItsProvider(t *testing.T) {
	t.Parallel()
	for name, class := range map[string]spool.Class{"transactional": spool.Transactional, "bulk": spool.Bulk, "source": spool.Transactional} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "providers.txt")
			require.NoError(t, os.WriteFile(file, []byte("provider crowd connections=4\nmx crowd .example\n"), 0o600))
			synctest.Test(t, func(t *testing.T) {
				const connections, busy, each = 4, 7, 200
				var mu sync.Mutex
				sent := map[string]int{}
				running, most := 0, 0
				mx := &testutil.MX{}
				mx.Received = func(m *testutil.Mail) {
					_, domain, _ := strings.Cut(m.To[0], "@")
					mu.Lock()
					sent[domain]++
					running++
					most = max(most, running)
					mu.Unlock()
					<-time.After(100 * time.Millisecond)
					mu.Lock()
					running--
					mu.Unlock()
				}
				r := crowdRig(t, &crowd{}, mx, busy+1)
				if name == "source" {
					r.cfg.Limits.Source = map[string]Limit{defaultName: {Connections: connections}}
				} else {
					r.cfg.ProvidersFile = file
				}
				r.start()
				for range each {
					for i := range busy {
						r.submit(submission{to: []string{fmt.Sprintf("a@d%d.example", i)}, class: class, stream: name})
					}
				}
				<-time.After(10 * time.Second)
				mu.Lock()
				turns := maps.Clone(sent)
				mu.Unlock()
				require.Len(t, turns, busy, "each has had a turn: %v", turns)
				before := len(mx.Mails())
				id := r.submit(submission{to: []string{fmt.Sprintf("a@d%d.example", busy)}, class: class, stream: name})
				require.Equal(t, spool.Delivered, r.outcome(id, 0).Result.Outcome)
				require.Less(t, len(mx.Mails())-before, (busy+connections)*turnLength, "a turn of each that runs, and of each that waits before it")
				<-time.After(time.Hour)
				require.Len(t, mx.Mails(), busy*each+1)
				require.LessOrEqual(t, most, connections)
				s := r.sched
				s.mu.Lock()
				defer s.mu.Unlock()
				require.Zero(t, s.workers+s.called+s.bareBulk+s.bulk+s.unproven+s.suspects)
				require.Equal(t, [standings]int{}, s.bare)
				for _, st := range s.sites {
					for _, l := range st.limiters() {
						require.Zero(t, l.running+l.called+l.yielding, l.label())
						require.Empty(t, l.line, l.label())
					}
				}
			})
		})
	}
}

// TestOneWorkerGivesWayToOneSite has two workers end their turns at a time while one site waits: one goes on.
func TestOneWorkerGivesWayToOneSite(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, nil)
	r.cfg.Limits.Source = map[string]Limit{defaultName: {Connections: 2}}
	s := r.start().sched
	s.mu.Lock()
	defer s.mu.Unlock()
	busy := s.newSite(&route{key: "busy", name: "mx.busy.example"})
	l := busy.source
	for _, own := range []*limiter{busy.own, l} {
		own.running = 2
		defer func() { own.running = 0 }()
	}
	now := s.now()
	one, two := &worker{site: busy, began: now, sent: turnLength}, &worker{site: busy, began: now, sent: turnLength}
	require.False(t, s.givesWay(one, false, now), "nobody waits")
	for i, name := range []string{"first", "second"} {
		s.wait(&denial{by: l, reason: waitConnections}, waiter{site: s.newSite(&route{key: name, name: "mx.example"})}, now)
		require.True(t, s.givesWay([]*worker{one, two}[i], false, now))
		require.False(t, s.givesWay(two, false, now), "who waits gets the place of the other")
	}
	require.False(t, s.givesWay(&worker{site: busy, began: now, sent: turnLength - 1}, false, now), "its turn is not over")
	l.line, l.inLine, l.yielding = nil, nil, 0
}

// TestOneWorkerGivesWayForOneOfAllConnections: likewise in the line for the connections in all, and for those that bulk may
// have.
func TestOneWorkerGivesWayForOneOfAllConnections(t *testing.T) {
	t.Parallel()
	for _, bulk := range []bool{false, true} {
		r := newRig(t, 1, nil)
		r.cfg.MaxConnections = 10
		s := r.start().sched
		s.mu.Lock()
		busy := s.newSite(&route{key: "busy", name: "mx.busy.example"})
		now := s.now()
		s.workers = 10
		if bulk {
			s.workers, s.bulk = 9, bulkWindow(10)-1
		}
		done := func() *worker { return &worker{site: busy, began: now, sent: turnLength} }
		require.False(t, s.givesWay(done(), bulk, now), "nobody waits")
		for _, name := range []string{"first", "second"} {
			if bulk {
				s.bareBulk++
			} else {
				st := s.newSite(&route{key: name, name: "mx.example"})
				st.proven = true
				s.starve(st)
			}
			require.True(t, s.givesWay(done(), bulk, now))
			require.False(t, s.givesWay(done(), bulk, now), "who waits gets the place of the other")
		}
		s.workers, s.bulk, s.bareBulk, s.starved, s.bare = 0, 0, 0, [standings][]*site{}, [standings]int{}
		s.mu.Unlock()
	}
}
