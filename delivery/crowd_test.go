package delivery

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/resolver"
	"relayd/internal/resolver/resolvertest"
	"relayd/internal/testutil"
	"relayd/spool"
)

// crowd is a network in memory with a host at each address, of which some are dead.
type crowd struct {
	*wire
	silent func(addr netip.Addr) bool // never answers
	down   func(addr netip.Addr) bool // refuses

	mu       sync.Mutex
	dialling int // of what is down or silent
	most     int
}

func (c *crowd) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	addr := netip.MustParseAddrPort(address).Addr()
	down := c.down != nil && c.down(addr)
	if !down && (c.silent == nil || !c.silent(addr)) {
		return c.wire.DialContext(ctx, network, address)
	}
	c.mu.Lock()
	c.dialling++
	c.most = max(c.most, c.dialling)
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.dialling--
		c.mu.Unlock()
	}()
	patience := 30 * time.Second
	if down {
		patience = time.Second
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(patience):
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	}
}

// slowNames answers after some milliseconds, not the same for all.
type slowNames struct{ *resolvertest.Fake }

func (n slowNames) LookupMX(ctx context.Context, domain string) ([]resolver.MX, error) {
	<-time.After(time.Duration(len(domain)+int(domain[2])%7) * time.Millisecond)
	return n.Fake.LookupMX(ctx, domain)
}

// crowdRig has n destinations at hosts of their own: d0.example at 10.0.0.0 and so on.
func crowdRig(t *testing.T, c *crowd, mx *testutil.MX, n int) *rig {
	c.wire = &wire{}
	fake := &resolvertest.Fake{MX: map[string][]resolver.MX{}, IP: map[string][]netip.Addr{}}
	r := wireRig(t, c.wire, mx, nil)
	for i := range n {
		host := fmt.Sprintf("mx.d%d.example", i)
		fake.MX[fmt.Sprintf("d%d.example", i)] = []resolver.MX{{Host: host, Pref: 10}}
		fake.IP[host] = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}
	}
	r.deps.Resolver = slowNames{fake}
	r.cfg.AllowPrivateMX = true
	r.network = c
	return r
}

// number is which of the destinations an address belongs to.
func number(a netip.Addr) int {
	b := a.As4()
	return int(b[2])<<8 | int(b[3])
}

// toAll submits one message to each of n destinations.
func (r *rig) toAll(n int) {
	r.t.Helper()
	for i := range n {
		r.submit(submission{to: []string{fmt.Sprintf("a@d%d.example", i)}, class: spool.Bulk})
	}
}

// brief ends each look-up at once.
type brief struct{ resolvertest.Fake }

func (*brief) LookupMX(context.Context, string) ([]resolver.MX, error) { return nil, context.Canceled }

// TestMoreQueuesThanLookUpsAreTakenWithoutAPause has look-ups end while the scheduler takes more queues: each time that it
// counts on one of them to wake it, one does.
func TestMoreQueuesThanLookUpsAreTakenWithoutAPause(t *testing.T) {
	t.Parallel()
	r := newRigOn(t, &brief{})
	to := make([]string, 4*maxLookups)
	for i := range to {
		to[i] = fmt.Sprintf("a@d%d.example", i)
	}
	r.submit(submission{to: to})
	s, err := New(r.cfg, r.deps)
	require.NoError(t, err)
	defer s.giveUp()
	s.abandon() // queues that were looked up are due again
	for range 300 {
		require.Zero(t, s.take(r.deps.Now()), "as many as there may be")
		<-s.wake // one has ended, and others do now
		require.Zero(t, s.take(r.deps.Now()), "as many as there may be once more: it counts on those that run")
		s.wg.Wait()
		require.Len(t, s.wake, 1, "nobody would take the others before a minute is over")
		<-s.wake
		require.Zero(t, s.lookups)
	}
}

// TestBulkAtItsBoundGoesOn has one message more at each of many sites than connections that bulk may have: each site gets its
// turn.
func TestBulkAtItsBoundGoesOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const all, each = 60, 10
		mx := &testutil.MX{}
		mx.Received = func(*testutil.Mail) { <-time.After(100 * time.Millisecond) }
		r := crowdRig(t, &crowd{}, mx, all)
		r.cfg.MaxConnections = 20
		for range each {
			r.toAll(all)
		}
		r.start()
		<-time.After(10 * time.Second)
		require.Len(t, mx.Mails(), all*each)
	})
}

// TestSilentHostsLetOthersPass has more new hosts that never answer than connections: healthy ones do not wait for their
// time-outs.
func TestSilentHostsLetOthersPass(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const all = 120 // every second is silent
		mx := &testutil.MX{}
		r := crowdRig(t, &crowd{silent: func(a netip.Addr) bool { return number(a)%2 == 0 }}, mx, all)
		r.cfg.MaxConnections = 20
		r.toAll(all)
		r.start()
		<-time.After(25 * time.Second)
		require.Len(t, mx.Mails(), all/2, "six rounds of ten silent ones, two seconds each, and none had its time-out")
	})
}

// TestSilentHostsKeepTheirTimeWhereNobodyWaits has connections enough for all: a slow host gets all the time of the
// configuration.
func TestSilentHostsKeepTheirTimeWhereNobodyWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &crowd{silent: func(netip.Addr) bool { return true }}
		r := crowdRig(t, c, &testutil.MX{}, 5)
		r.cfg.MaxConnections = 20
		r.toAll(5)
		r.start()
		<-time.After(25 * time.Second)
		c.mu.Lock()
		defer c.mu.Unlock()
		require.Equal(t, 5, c.dialling)
	})
}

// TestHostsThatFailedLastTimeGetAnEighth has many dead hosts whose pauses end together.
func TestHostsThatFailedLastTimeGetAnEighth(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const all, connections = 200, 40
		c := &crowd{down: func(netip.Addr) bool { return true }}
		r := crowdRig(t, c, &testutil.MX{}, all)
		r.cfg.MaxConnections, r.cfg.ConnectTries = connections, 1
		r.toAll(all)
		r.start()
		<-time.After(20 * time.Second)
		c.mu.Lock()
		require.Equal(t, connections/2, c.most, "new ones get half")
		c.most = 0
		c.mu.Unlock()
		<-time.After(20 * time.Minute)
		c.mu.Lock()
		defer c.mu.Unlock()
		require.Equal(t, connections/8, c.most)
	})
}

// TestTheEndDoesNotWaitForHostsThatNeverAnswer stops while connecting: nothing was presented, so nothing is waited for.
func TestTheEndDoesNotWaitForHostsThatNeverAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := crowdRig(t, &crowd{silent: func(netip.Addr) bool { return true }}, &testutil.MX{}, 5)
		r.toAll(5)
		r.start()
		<-time.After(2 * time.Second)
		began := time.Now()
		r.shutdown()
		require.Less(t, time.Since(began), time.Second) // of virtual time
		ready, deferred, leased := r.queued()
		require.EqualValues(t, 5, ready)
		require.Zero(t, deferred)
		require.Zero(t, leased)
	})
}

// TestNobodyWhoWaitsIsAskedInVain has thousands of sites wait for one of the connections that unknown hosts may have: while
// all of those are taken the end of a worker asks none of them, but those that stand better or worse.
func TestNobodyWhoWaitsIsAskedInVain(t *testing.T) {
	t.Parallel()
	s := newRig(t, 1, nil).start().sched
	s.mu.Lock()
	defer s.mu.Unlock()
	s.workers, s.unproven = s.cfg.MaxConnections/2, s.cfg.MaxConnections/2
	defer func() { s.workers, s.unproven = 0, 0 }()
	wait := func(n int, stand func(*site)) {
		for i := range n {
			st := s.newSite(&route{key: fmt.Sprint("site ", i), name: "mx.example"})
			stand(st)
			s.starve(st)
		}
	}
	wait(5000, func(*site) {})
	wait(3, func(st *site) { st.proven = true })
	wait(3, func(st *site) { st.own.gov.failures = 1 })
	first := s.starved[unknown][0]
	s.relieve()
	require.Len(t, s.starved[unknown], 5000)
	require.Same(t, first, s.starved[unknown][0], "their order is what it was: none was asked")
	require.Empty(t, s.starved[proven])
	require.Empty(t, s.starved[failed])
	s.unproven--
	s.relieve()
	require.Empty(t, s.starved[unknown], "there is room again, and these have nothing to send")
}

// TestABusySiteGivesWay has more busy sites than connections, all with mail for hours: a site that comes later gets its first
// message after a bounded number of the others' transactions, whatever its class, and nobody is forgotten.
func TestABusySiteGivesWay(t *testing.T) {
	t.Parallel()
	for name, class := range map[string]spool.Class{"transactional": spool.Transactional, "bulk": spool.Bulk} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const connections, busy, each = 10, 14, 120
				var mu sync.Mutex
				sent := map[string]int{}
				before := 0
				mx := &testutil.MX{}
				mx.Received = func(m *testutil.Mail) {
					mu.Lock()
					_, domain, _ := strings.Cut(m.To[0], "@")
					sent[domain]++
					mu.Unlock()
					<-time.After(100 * time.Millisecond)
				}
				r := crowdRig(t, &crowd{}, mx, busy+1)
				r.cfg.MaxConnections = connections
				r.start()
				for range each {
					for i := range busy {
						r.submit(submission{to: []string{fmt.Sprintf("a@d%d.example", i)}, class: class, stream: name})
					}
				}
				<-time.After(5 * time.Second)
				mu.Lock()
				before = len(mx.Mails())
				require.Len(t, sent, busy, "each has had a turn")
				mu.Unlock()
				id := r.submit(submission{to: []string{fmt.Sprintf("a@d%d.example", busy)}, class: class, stream: name})
				require.Equal(t, spool.Delivered, r.outcome(id, 0).Result.Outcome)
				require.Less(t, len(mx.Mails())-before, (busy+connections)*turnLength, "a turn of each that runs, and of each that waits before it")
				<-time.After(time.Hour)
				require.Len(t, mx.Mails(), busy*each+1)
				s := r.sched
				s.mu.Lock()
				defer s.mu.Unlock()
				require.Zero(t, s.workers+s.called+s.bareBulk+s.bulk+s.unproven+s.suspects)
				require.Equal(t, [standings]int{}, s.bare)
			})
		})
	}
}

// deadNames does not answer for a time about domains that begin with "dead".
type deadNames struct{ resolvertest.Fake }

func (n *deadNames) LookupMX(ctx context.Context, domain string) ([]resolver.MX, error) {
	if !strings.HasPrefix(domain, "dead") {
		return n.Fake.LookupMX(ctx, domain)
	}
	select {
	case <-time.After(6 * time.Second):
		return nil, &resolver.Error{Name: domain, Type: "MX", Err: resolver.ErrTemporary}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// TestDeadNameServersLetOthersPass has a campaign meet hundreds of domains whose name servers do not answer: a code to another
// domain does not wait for them.
func TestDeadNameServersLetOthersPass(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &wire{}
		r := wireRig(t, w, &testutil.MX{}, nil)
		r.deps.Resolver = &deadNames{resolvertest.Fake{
			MX: map[string][]resolver.MX{"d.example": {{Host: "mx.d.example", Pref: 10}}},
			IP: map[string][]netip.Addr{"mx.d.example": {netip.MustParseAddr("192.0.2.1")}},
		}}
		for i := range maxLookups + maxSlow - 1 {
			r.submit(submission{to: []string{fmt.Sprintf("a@dead%d.example", i)}, class: spool.Bulk})
		}
		r.start()
		<-time.After(time.Second)
		began := time.Now()
		id := r.submit(submission{to: []string{"a@d.example"}, class: spool.Urgent})
		require.Equal(t, spool.Delivered, r.outcome(id, 0).Result.Outcome)
		require.Less(t, time.Since(began), slowLookup, "by a clock of its own")
		<-time.After(time.Minute)
		r.shutdown()
		require.Zero(t, r.sched.slow+r.sched.lookups)
	})
}
