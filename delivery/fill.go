package delivery

import (
	"slices"
	"time"

	"relayd/spool"
)

// This file gets work ready for a site: what is leased next, and how much of it.

// errand is a lease to make: of which flow, from which queues, and how many envelopes at most.
type errand struct {
	flow   *flow
	queues []spool.Queue
	most   int
}

// holdTime is how long leased work may wait in memory for a rate. What has to wait longer goes back to its queue, and no
// more is leased than may leave within it.
const holdTime = 2 * time.Second

// lasts tells that a denial is no matter of moments.
func (d *denial) lasts(now time.Time) bool {
	return d != nil && !d.until.IsZero() && d.until.Sub(now) > holdTime
}

// limiters are those of the account and of the campaign.
func (f *flow) limiters() [2]*limiter { return [2]*limiter{f.account, f.campaign} }

// closed tells what keeps the flow from sending, whatever the number of transactions.
func (f *flow) closed(now time.Time) *denial {
	for _, l := range f.limiters() {
		if d := l.closed(now); d != nil {
			return d
		}
	}
	return nil
}

// denied tells what keeps the flow from one more transaction.
func (f *flow) denied(now time.Time) *denial {
	for _, l := range f.limiters() {
		if d := l.closed(now); d != nil {
			return d
		}
		if d := l.full(l.running); d != nil {
			return d
		}
	}
	return nil
}

// waiting is the number of bundles that are ready.
func (st *site) waiting() int {
	return st.ready[laneUrgent] + st.ready[laneTransactional] + st.ready[laneBulk]
}

// wanted decides what to lease next, nothing when enough is ready or under way. Flows take turns. The caller holds mu.
func (s *Scheduler) wanted(st *site, now time.Time) errand {
	if st.leased >= maxSiteLeased || !slices.ContainsFunc(st.hungry[:], func(l []*flow) bool { return len(l) > 0 }) {
		return errand{}
	}
	if st.own.running == 0 && st.waiting() == 0 { // nothing is leased for which there is no connection
		if d := st.full(); d != nil {
			s.wait(d, waiter{site: st}, now)
			return errand{}
		}
		if !s.fits(st) {
			s.starve(st)
			return errand{}
		}
	}
	room := s.roomAt(st, now)
	for f := st.nextHungry(); f != nil; f = st.nextHungry() {
		if room <= 0 { // whatever is settled at the site makes room: until then it stays first in line
			f.hungry = true
			st.hungry[f.lane] = append([]*flow{f}, st.hungry[f.lane]...)
			return errand{}
		}
		if d := f.closed(now); d != nil {
			s.wait(d, waiter{st, f}, now)
			st.park(f)
			if d.lasts(now) {
				s.sendAway(st, f, d, now)
			}
			continue
		}
		most := s.share(st, f, room, now)
		if most <= 0 {
			continue // it is fed again when what it has is settled
		}
		f.leasing = true
		n := min(len(f.queues), leaseQueues, most)
		o := errand{f, f.queues[:n:n], most}
		f.queues = f.queues[n:]
		return o
	}
	return errand{}
}

// roomAt is how many envelopes more may be under lease at a site: what its limits let leave soon.
func (s *Scheduler) roomAt(st *site, now time.Time) int {
	most := maxSiteLeased - st.leased
	if s.leased >= maxLeased {
		most = min(most, fewLeased-st.leased)
	}
	for _, l := range st.limiters() {
		if n := l.allows(now, holdTime, most+st.leased); n < most+st.leased {
			most = n - st.leased
		}
	}
	return most
}

// share is how many envelopes a flow may lease of the room at its site: what its own limits let leave soon, and its part
// where many share the site.
func (s *Scheduler) share(st *site, f *flow, room int, now time.Time) int {
	most := f.batch
	if n := len(st.flows); n > 1 {
		most = max(sharedLease, f.batch/n)
	}
	most = min(most, room)
	for _, l := range f.limiters() {
		if n := l.allows(now, holdTime, most+f.leased); n < most+f.leased {
			most = n - f.leased
		}
	}
	return most
}

// putOff takes an errand back. The caller holds mu.
func (s *Scheduler) putOff(st *site, o errand) {
	o.flow.leasing = false
	o.flow.queues = append(o.queues, o.flow.queues...)
	st.feed(o.flow)
}

// gatherTime is how long an idle site waits for the queues that are being looked up, so that the recipients of one
// message at several of its domains go in one transaction.
const gatherTime = time.Millisecond

// fill leases for a site until it has enough. Without an errand it waits for more queues to join first.
func (s *Scheduler) fill(st *site, o errand) {
	if o.flow == nil {
		_ = sleep(s.working, gatherTime)
		o = s.another(st)
	}
	for o.flow != nil {
		l, err := s.store.Lease(s.working, o.queues, s.now(), o.most)
		now := s.now()
		if err != nil {
			if s.working.Err() == nil {
				s.log.Error("lease.failed", "site", st.name, "err", err)
			}
			for _, q := range o.queues {
				s.store.Return(q, now.Add(time.Second))
			}
			s.mu.Lock()
			st.filling, o.flow.leasing = false, false
			s.pass(st)
			s.mu.Unlock()
			return
		}
		s.arrived(st, o, l, now)
		for _, q := range o.queues { // offered again in turn, as long as it has due work
			s.store.Return(q, time.Time{})
		}
		o = s.another(st)
	}
}

// another is the next errand of a site that is being filled; without one the filling ends.
func (s *Scheduler) another(st *site) errand {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	st.used = now
	o := errand{}
	if !s.stopping && st.closed(now) == nil {
		o = s.wanted(st, now)
	}
	if o.flow == nil {
		st.filling = false
		s.kick(st)
		if !st.filling {
			s.pass(st)
		}
	}
	return o
}

// pass hands on the connection that was kept for a site which has no use for it. The caller holds mu.
func (s *Scheduler) pass(st *site) {
	if st.called {
		s.uncall(st)
		s.relieve()
		s.callLines(st)
	}
}

// arrived makes bundles of a lease and puts workers on them.
func (s *Scheduler) arrived(st *site, o errand, l *spool.Lease, now time.Time) {
	f := o.flow
	if len(l.Envelopes) == 0 {
		s.mu.Lock()
		f.leasing = false
		st.feed(f)
		s.tidy(st, f)
		s.mu.Unlock()
		return
	}
	b := s.track(l, st)
	b.flow = f
	list := bundles(b, st.terms.Load().recipients, now)
	s.mu.Lock()
	n := 0
	for _, x := range list {
		n += len(x.envs)
	}
	f.leasing = false
	st.leased += n
	f.leased += n
	s.leased += n
	f.lane = laneOf(l.Envelopes[0].Class)
	s.observe(f)
	if len(l.Envelopes) == o.most {
		f.adapt(now)
	}
	if !s.stopping { // else drain gives it back
		st.push(f, s.withoutAskers(st, list, now))
		st.feed(f)
		s.kick(st) // which gives it back where the site is paused by now
	}
	s.mu.Unlock()
}

// observe remembers the lane of a stream. The caller holds mu.
func (s *Scheduler) observe(f *flow) {
	if len(s.streams) >= maxStreams {
		clear(s.streams)
	}
	s.streams[f.key] = f.lane
}
