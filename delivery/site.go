package delivery

import (
	"sync/atomic"
	"time"

	"relayd/spool"
)

// site is a set of MX hosts, or a smarthost, with what waits for it. The scheduler's lock holds every field.
type site struct {
	key   string // never changes, as name
	name  string
	route *route // as of the last look-up

	own      *limiter // of the site
	provider *limiter // nil where its hosts belong to none
	rule     *Provider
	source   *limiter              // of the address that mail leaves from
	terms    atomic.Pointer[terms] // also read without the lock

	flows   map[flowKey]*flow
	hungry  [lanes][]*flow // have queues and room for what is leased from them, in turn
	rings   [lanes]ring    // flows that have something ready
	ready   [lanes]int     // bundles that are ready
	leased  int            // envelopes under lease and not settled
	filling bool           // a goroutine leases

	bulk    int      // running workers that send bulk
	proven  bool     // a session was opened since the last failure
	starved bool     // waits for a connection in all
	stands  standing // where it does
	called  bool     // a connection is kept for it while it leases
	crowded bool     // waits for a connection for bulk in all
	used    time.Time
}

// standing is what is known of a site's hosts: it decides how many connections in all may be spent on its like.
type standing uint8

const (
	proven  standing = iota // a session was opened since the last failure
	unknown                 // none yet
	failed                  // the last one failed
	standings
)

func (st *site) standing() standing {
	switch {
	case st.proven:
		return proven
	case st.own.gov.failures > 0:
		return failed
	}
	return unknown
}

// terms are what one session at a site may do, and to whom it counts.
type terms struct {
	messages   int    // over one connection
	recipients int    // in one transaction
	provider   string // name, "" for none
}

// The lanes of a site, one for each class: bulk never stands before the rest.
const (
	laneUrgent = iota
	laneTransactional
	laneBulk
	lanes
)

func laneOf(c spool.Class) int {
	switch c {
	case spool.Urgent:
		return laneUrgent
	case spool.Transactional:
		return laneTransactional
	}
	return laneBulk
}

// Sizes of leases. Small enough that a crash leaves few in doubt, large enough that the durable record costs little.
const (
	minLease      = 100 // where a flow is alone
	maxLease      = 800
	sharedLease   = 20           // where many flows share the site
	leaseQueues   = 64           // queues of one lease
	maxSiteLeased = 4 * maxLease // envelopes under lease at one site
	maxLeased     = 50_000       // and in all; beyond, each site gets few at a time
	fewLeased     = 10
)

// isSuspended tells whether the site of a route is paused now, or an operator has suspended it.
func (s *Scheduler) isSuspended(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.sites[key]
	return st != nil && st.stops(s.now())
}

// stops tells that a pause or a suspension holds the site or its provider, not just a rate.
func (st *site) stops(now time.Time) bool {
	for _, l := range st.limiters() {
		if d := l.closed(now); d != nil && (d.reason == waitSuspended || d.reason == waitOperator) {
			return true
		}
	}
	return false
}

// busy tells that a site holds work of any kind.
func (st *site) busy() bool {
	if st.own.running > 0 || st.filling || st.leased > 0 || st.starved || st.crowded {
		return true
	}
	for _, f := range st.flows {
		if len(f.queues) > 0 {
			return true
		}
	}
	return false
}

// idle tells that the scheduler may forget the site.
func (st *site) idle(now time.Time, memory time.Duration) bool {
	return !st.busy() && now.Sub(st.used) > memory && !st.own.hold.holds(now)
}

// window is how many connections the site may have now.
func (st *site) window() int {
	n := st.own.gov.allowed()
	if st.own.most > 0 {
		n = min(n, st.own.most)
	}
	if p := st.provider; p != nil {
		n = min(n, p.gov.allowed())
		if p.most > 0 {
			n = min(n, p.most)
		}
	}
	return n
}

// limiters are those that hold for all of a site, what has to be over first in front.
func (st *site) limiters() []*limiter {
	if st.provider == nil {
		return []*limiter{st.own, st.source}
	}
	return []*limiter{st.own, st.provider, st.source}
}

// closed tells what keeps the whole site from sending, whatever the number of connections.
func (st *site) closed(now time.Time) *denial {
	for _, l := range st.limiters() {
		if d := l.closed(now); d != nil {
			return d
		}
	}
	return nil
}

// full tells whether one connection more is too many.
func (st *site) full() *denial {
	for _, l := range st.limiters() {
		taken := l.running + l.called
		if st.called {
			taken--
		}
		if d := l.full(taken); d != nil {
			return d
		}
	}
	return nil
}

// over tells whether the site has more connections than it may have now.
func (st *site) over() bool {
	for _, l := range st.limiters() {
		if l.full(l.running-1) != nil {
			return true
		}
	}
	return false
}

// bulkWindow is how many workers may send bulk: one in ten is kept free, so that a code overtakes a campaign.
func bulkWindow(window int) int {
	if window < 2 {
		return window
	}
	return window - max(1, window/10)
}
