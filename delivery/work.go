package delivery

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"relayd/internal/mail"
	"relayd/spool"
)

// This file is what a site does with what is ready: start workers, send, learn. fill.go gets it ready, suspend.go gives it
// back.

// join hands a taken queue to its site, or returns it until what keeps the site from sending is over.
func (s *Scheduler) join(q spool.Queue, r *route) {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.siteFor(r, now)
	s.remember(q.Domain, st.name, st.key)
	if s.stopping {
		s.store.Return(q, time.Time{})
		return
	}
	f := s.flowFor(st, q, now)
	d := st.closed(now)
	if d == nil {
		d = f.closed(now)
	}
	if d.lasts(now) {
		if r.fallback != "" && st.stops(now) { // it was suspended since place looked
			s.store.Return(q, time.Time{})
		} else {
			s.store.Return(q, d.by.book(d, now))
		}
		s.tidy(st, f)
		return
	}
	f.queues = append(f.queues, q)
	st.feed(f)
	s.kick(st)
}

// siteFor returns the site of a route as it is remembered, or a new one. The caller holds mu.
func (s *Scheduler) siteFor(r *route, now time.Time) *site {
	st := s.sites[r.key]
	if st == nil {
		st = s.newSite(r)
		s.sites[r.key] = st
	}
	st.route, st.used = r, now
	return st
}

// flowFor returns the flow of a queue at a site. The caller holds mu.
func (s *Scheduler) flowFor(st *site, q spool.Queue, now time.Time) *flow {
	key := flowKey{q.Account, q.Stream}
	f := st.flows[key]
	if f == nil {
		f = &flow{
			key: key, account: s.limiterOf(scopeAccount, q.Account), campaign: s.limiterOf(scopeCampaign, q.Stream),
			batch: minLease, lane: laneTransactional, // a stream that nobody has seen goes fast
		}
		if lane, ok := s.streams[key]; ok {
			f.lane = lane
		}
		f.weight = f.account.weight * f.campaign.weight
		st.flows[key] = f
	}
	f.account.used, f.campaign.used = now, now
	return f
}

// tidy forgets a flow of which nothing is left. The caller holds mu.
func (s *Scheduler) tidy(st *site, f *flow) {
	if f.done() {
		delete(st.flows, f.key)
	}
}

// kick starts what the site can use: a lease, and workers. The caller holds mu.
func (s *Scheduler) kick(st *site) {
	now := s.now()
	if s.stopping {
		return
	}
	if d := st.closed(now); d != nil {
		s.denied(st, d, now)
		return
	}
	if !st.filling {
		if o := s.wanted(st, now); o.flow != nil {
			st.filling = true
			if s.lookups > 1 && st.own.running == 0 { // queues of the same message may be on their way: let them share it
				s.putOff(st, o)
				o = errand{}
			}
			s.wg.Go(func() { s.fill(st, o) })
		}
	}
	for st.waiting() > 0 {
		if d := st.full(); d != nil {
			if d.by != st.own { // else one of its workers will ask
				s.wait(d, waiter{site: st}, now)
			}
			return
		}
		old, fits := s.room(st)
		if !fits {
			s.closeLater(old)
			return
		}
		b := s.next(st, now)
		if b == nil {
			s.closeLater(old)
			return
		}
		s.hire(st, b, now, old)
	}
}

// next takes the bundle that a worker of the site sends next and counts it, nil for none. The caller holds mu.
func (s *Scheduler) next(st *site, now time.Time) *bundle {
	if s.stopping {
		return nil
	}
	if d := st.closed(now); d != nil {
		s.denied(st, d, now)
		return nil
	}
	var away []*denial
	var flows []*flow
	bulk := st.bulk < bulkWindow(st.window()) && s.bulk < bulkWindow(s.cfg.MaxConnections)
	b := st.pop(bulk, func(f *flow) bool {
		d := f.denied(now)
		if d == nil {
			return true
		}
		s.wait(d, waiter{st, f}, now)
		if d.lasts(now) {
			away, flows = append(away, d), append(flows, f)
		}
		return false
	})
	for i, f := range flows {
		s.sendAway(st, f, away[i], now)
	}
	if b != nil {
		s.begin(st, b, now)
	} else if !bulk && st.ready[laneBulk] > 0 && !st.crowded && s.bulk >= bulkWindow(s.cfg.MaxConnections) {
		st.crowded = true
		s.crowded = append(s.crowded, st)
		if st.bulk == 0 {
			s.bareBulk++
		}
	}
	return b
}

// begin counts a bundle that is about to be sent. The caller holds mu.
func (s *Scheduler) begin(st *site, b *bundle, now time.Time) {
	for _, l := range st.limiters() {
		l.take(now, len(b.envs))
	}
	for _, l := range b.flow.limiters() {
		l.take(now, len(b.envs))
		l.running++
	}
	if b.class == spool.Bulk {
		if st.crowded && st.bulk == 0 {
			s.bareBulk--
		}
		st.bulk++
		s.bulk++
	}
}

// end counts a bundle off, and takes back the allowance of what was not presented. The caller holds mu.
func (s *Scheduler) end(st *site, b *bundle, unsent int) {
	if b.class == spool.Bulk {
		st.bulk--
		s.bulk--
		if st.crowded && st.bulk == 0 {
			s.bareBulk++
		}
	}
	if unsent > 0 {
		for _, l := range st.limiters() {
			l.refund(unsent)
		}
	}
	for _, l := range b.flow.limiters() {
		l.running--
		if unsent > 0 {
			l.refund(unsent)
		}
	}
}

// goOn gives the flow of a bundle that was counted off its place again where it is first in the line for it: the worker
// that is at hand takes it up. The caller holds mu.
func (s *Scheduler) goOn(st *site, f *flow, now time.Time) {
	for _, l := range f.limiters() {
		if len(l.line) > 0 && l.line[0] == (waiter{st, f}) && l.full(l.running) == nil && l.closed(now) == nil {
			l.leave()
			st.unpark(f)
			s.tidy(st, f)
		}
	}
}

// callFor calls those who wait in the lines of a flow's account and campaign. The caller holds mu.
func (s *Scheduler) callFor(f *flow) {
	for _, l := range f.limiters() {
		if len(l.line) > 0 {
			s.call(l)
		}
	}
}

// hire starts a worker with its first bundle, in the place of old sessions. The caller holds mu.
func (s *Scheduler) hire(st *site, b *bundle, now time.Time, old []*Session) {
	s.uncall(st)
	if st.starved && st.own.running == 0 {
		s.bare[st.stands]--
	}
	for _, l := range st.limiters() {
		l.running++
	}
	s.workers++
	w := &worker{site: st, proven: st.proven, suspect: st.own.gov.failures > 0, began: now}
	var worn *Session
	if w.session, worn = s.pool.pop(st.key); worn != nil { // now: who counts idle sessions next must not count on this one
		old = append(old, worn)
	}
	w.old = old
	switch {
	case w.proven:
	case w.suspect:
		s.suspects++
		s.fresh[w] = struct{}{}
	default:
		s.unproven++
		s.fresh[w] = struct{}{}
	}
	s.wg.Go(func() { s.work(w, b) })
}

// worker is one connection's goroutine: it ends when its site has nothing for it.
type worker struct {
	site    *site
	session *Session
	old     []*Session // to be closed first
	proven  bool       // was counted as such, or is by now
	suspect bool       // the site failed last time
	began   time.Time
	sent    int                // transactions
	cancel  context.CancelFunc // of its first connection
	hurried bool               // that took too long while others waited
	yields  *int               // counts it among those that end to give way; nil when it does not
}

// prove counts a worker as one that has a session, or needs none any more. The caller holds mu.
func (s *Scheduler) prove(w *worker) {
	if w.proven {
		return
	}
	w.proven = true
	delete(s.fresh, w)
	if w.suspect {
		s.suspects--
	} else {
		s.unproven--
	}
}

// work sends bundles until there are none.
func (s *Scheduler) work(w *worker, b *bundle) {
	st := w.site
	closeAll(w.old)
	w.old = nil
	for b != nil {
		rep := s.attempt(w, b)
		s.settler.add(b.batch, rep.done)
		if w.session != nil && !s.pool.usable(w.session, st.terms.Load().messages) {
			w.session.Close()
			w.session = nil
		}
		s.mu.Lock()
		s.end(st, b, len(rep.again)+len(rep.askers))
		s.learn(st, b, rep)
		s.callLines(st) // what was learned may have made room
		f, bulk, now := b.flow, b.class == spool.Bulk, s.now()
		b = nil
		w.sent++
		if !st.over() && s.workers <= s.cfg.MaxConnections && !s.givesWay(w, bulk, now) {
			s.goOn(st, f, now)
			if b = s.next(st, now); b != nil {
				s.kick(st)
			}
		}
		s.callFor(f)
		s.mu.Unlock()
		s.settler.wait()
	}
	if w.session != nil {
		s.pool.put(st.home(), w.session)
	}
	s.mu.Lock()
	for _, l := range st.limiters() {
		l.running--
	}
	if w.yields != nil {
		*w.yields--
	}
	if st.starved && st.own.running == 0 { // it had its turn
		s.bare[st.stands]++
		list := s.starved[st.stands]
		i := slices.Index(list, st)
		s.starved[st.stands] = append(slices.Delete(list, i, i+1), st)
	}
	st.used = s.now()
	s.workers--
	s.prove(w)
	s.relieve() // before its own site, if it gave way
	s.callLines(st)
	s.kick(st)
	s.mu.Unlock()
	s.poke() // there may be an idle session to watch
}

// attempt runs one bundle; a panic costs the bundle an hour, not the process its life.
func (s *Scheduler) attempt(w *worker, b *bundle) (rep Report) {
	st := w.site
	a := &Attempt{engine: s.engine, session: w.session, bundle: b}
	ctx, cancel := s.working, context.CancelFunc(nil)
	a.opened = func() {
		a.session.rebind(s.working)
		s.opened(w)
	}
	if a.session == nil { // one may have become idle meanwhile
		a.session = s.pool.take(st.key)
	}
	s.mu.Lock()
	a.route = st.route
	if a.session != nil { // there is no connecting to be cut short
		s.prove(w)
	}
	if !w.proven {
		ctx, cancel = context.WithCancel(s.working)
		w.cancel = cancel
		if s.stopping {
			cancel()
		}
	}
	s.mu.Unlock()
	began := s.now()
	defer func() {
		if cancel != nil {
			cancel()
		}
		w.session = a.session
		s.metrics.transaction.Observe(s.now().Sub(began).Seconds())
		if p := recover(); p != nil {
			s.metrics.panics.Inc()
			s.log.Error("attempt.panicked", "queue_id", b.message.ID.String(), "err", fmt.Sprintf("%v\n%s", p, debug.Stack()))
			if a.session != nil {
				a.session.abort()
				w.session = nil
			}
			rep = Report{}
			for _, e := range b.envs {
				res := s.retrier.presented(b.message, e, mail.ReplyOf(nil), s.now())
				rep.done = append(rep.done, settlement{message: b.message, envelope: e, result: res})
			}
		}
	}()
	rep = a.Run(ctx)
	if len(rep.again) > 0 && rep.suspend == nil && ctx.Err() != nil && s.working.Err() == nil { // hurried
		rep.suspend = &pause{cause: causeUnreachable, host: st.name, phase: PhaseConnect, reply: mail.Reply{
			Code: 451, Status: mail.Status{Class: 4, Subject: 4, Detail: 1}, Text: "No host answered in time: others wait for a connection",
		}}
	}
	return rep
}

// opened notes that a worker has a session: its site is alive, and more workers may start.
func (s *Scheduler) opened(w *worker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := w.site
	if g := st.own.gov; !s.now().Before(g.resume) {
		st.proven = true
		if g.failures == 0 { // the first connections are free, as long as the host never complained
			g.window = max(g.window, min(initialWindow, g.threshold))
		}
	}
	s.prove(w)
	s.kick(st)
}

// learn draws the conclusions of an attempt for its site and provider. The caller holds mu.
func (s *Scheduler) learn(st *site, b *bundle, rep Report) {
	if len(s.asked) > 0 {
		for i := range rep.done {
			delete(s.asked, rep.done[i].envelope.ID)
		}
	}
	if rep.settled && rep.suspend == nil {
		now, n := s.now(), len(b.envs)-len(rep.again)
		for _, l := range st.limiters() {
			if l.gov != nil && l.gov.sent(now, n, l.running) {
				s.recovered(l)
			}
		}
	}
	switch {
	case rep.suspend == nil && len(rep.again) == 0:
	case rep.suspend == nil:
		if !s.stopping { // drain gives the lease back
			st.pushFront(b.with(rep.again))
		}
	case s.shrink(st, rep.suspend):
		st.pushFront(b.with(rep.again))
	default:
		s.suspend(st, rep.suspend)
		s.defers(st, b.with(rep.again), false)
		s.defers(st, b.with(rep.askers), true)
	}
}
