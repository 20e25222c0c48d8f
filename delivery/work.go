package delivery

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"time"

	"relayd/internal/mail"
	"relayd/spool"
)

// This file is what a site does with its queues: lease, start workers, send, pause.

// join hands a taken queue to its site, or returns it until the end of the site's pause.
func (s *Scheduler) join(q spool.Queue, r *route) {
	now := s.now()
	s.mu.Lock()
	st := s.sites[r.key]
	if st == nil {
		st = newSite(r)
		s.sites[r.key] = st
	}
	st.route, st.used = r, now
	s.remember(q.Domain, st.name)
	if s.stopping || now.Before(st.resume) {
		until := st.resume
		if r.fallback != "" && !s.stopping { // it was suspended since place looked
			until = time.Time{}
		}
		s.mu.Unlock()
		s.store.Return(q, until)
		return
	}
	lane := s.streams[streamKey{q.Account, q.Stream}] // a stream that nobody has seen goes fast
	st.queues[lane] = append(st.queues[lane], q)
	s.kick(st)
	s.mu.Unlock()
}

// kick starts what the site can use: a lease, and workers. The caller holds mu.
func (s *Scheduler) kick(st *site) {
	now := s.now()
	if s.stopping || now.Before(st.resume) {
		return
	}
	if !st.filling {
		if lane, queues := st.wanted(); len(queues) > 0 {
			st.filling = true
			if s.lookups > 1 && st.running == 0 { // queues of the same message may be on their way: let them share it
				st.queues[lane] = append(queues, st.queues[lane]...)
				queues = nil
			}
			s.wg.Go(func() { s.fill(st, lane, queues) })
		}
	}
	for st.running < min(st.window, s.cfg.MaxConnectionsPerSite) && len(st.ready[laneFast])+len(st.ready[laneBulk]) > 0 {
		if !s.room(st) {
			return
		}
		b := s.next(st)
		if b == nil {
			return
		}
		s.hire(st, b)
	}
}

// room tells whether one more worker fits in all; when not, the site is noted. The caller holds mu.
func (s *Scheduler) room(st *site) bool {
	fits := st.proven || s.unproven < max(1, s.cfg.MaxConnections/2) // dead sites must not take all there is
	if fits {
		idle, own := s.pool.size(st.key)
		if own == 0 && s.workers+idle >= s.cfg.MaxConnections {
			old := s.pool.evict(st.key)
			if fits = fits && old != nil; old != nil {
				s.wg.Go(old.Close)
			}
		}
		fits = fits && s.workers < s.cfg.MaxConnections
	}
	if !fits && !st.starved {
		st.starved = true
		s.starved = append(s.starved, st)
	}
	return fits
}

// next takes the bundle that a worker of the site sends next, nil for none. The caller holds mu.
func (s *Scheduler) next(st *site) *bundle {
	if s.stopping || s.now().Before(st.resume) {
		return nil
	}
	bulk := st.bulk < bulkWindow(min(st.window, s.cfg.MaxConnectionsPerSite)) && s.bulk < bulkWindow(s.cfg.MaxConnections)
	return st.pop(bulk)
}

// hire starts a worker with its first bundle. The caller holds mu.
func (s *Scheduler) hire(st *site, b *bundle) {
	st.running++
	s.workers++
	if !st.proven {
		s.unproven++
	}
	s.count(st, b, 1)
	w := &worker{site: st, proven: st.proven}
	s.wg.Go(func() { s.work(w, b) })
}

// count keeps track of the workers that send bulk. The caller holds mu.
func (s *Scheduler) count(st *site, b *bundle, n int) {
	if b.class == spool.Bulk {
		st.bulk += n
		s.bulk += n
	}
}

// worker is one connection's goroutine: it ends when its site has nothing for it.
type worker struct {
	site    *site
	session *Session
	proven  bool // as it was counted
}

// work sends bundles until there are none.
func (s *Scheduler) work(w *worker, b *bundle) {
	st := w.site
	w.session = s.pool.take(st.key)
	for b != nil {
		rep := s.attempt(w, b)
		s.settler.add(b.batch, rep.done)
		if w.session != nil && !s.pool.usable(w.session) {
			w.session.Close()
			w.session = nil
		}
		s.mu.Lock()
		s.count(st, b, -1)
		s.learn(st, w, b, rep)
		next := s.next(st)
		if next != nil && st.running > min(st.window, s.cfg.MaxConnectionsPerSite) {
			st.pushFront(next)
			next = nil
		}
		if next != nil {
			s.count(st, next, 1)
			s.kick(st)
		}
		s.mu.Unlock()
		s.settler.wait()
		b = next
	}
	if w.session != nil {
		s.pool.put(st.key, w.session)
	}
	s.mu.Lock()
	st.running--
	st.used = s.now()
	s.workers--
	if !w.proven {
		s.unproven--
	}
	s.kick(st)
	starved := s.starved
	s.starved = nil
	for _, other := range starved {
		other.starved = false
		s.kick(other)
	}
	s.mu.Unlock()
	s.poke() // there may be an idle session to watch
}

// attempt runs one bundle; a panic costs the bundle an hour, not the process its life.
func (s *Scheduler) attempt(w *worker, b *bundle) (rep Report) {
	st := w.site
	a := &Attempt{engine: s.engine, session: w.session, bundle: b, opened: func() { s.opened(w) }}
	s.mu.Lock()
	a.route = st.route
	s.mu.Unlock()
	began := s.now()
	defer func() {
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
	if w.session == nil { // one may have become idle meanwhile
		a.session = s.pool.take(st.key)
	}
	return a.Run(s.working)
}

// opened notes that a worker has a session: its site is alive, and more workers may start.
func (s *Scheduler) opened(w *worker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := w.site
	if !s.now().Before(st.resume) {
		st.proven = true
		if st.failures == 0 {
			st.window = max(st.window, min(initialWindow, s.cfg.MaxConnectionsPerSite))
		}
	}
	if !w.proven {
		w.proven = true
		s.unproven--
	}
	s.kick(st)
}

// learn draws the conclusions of an attempt for its site. The caller holds mu.
func (s *Scheduler) learn(st *site, w *worker, b *bundle, rep Report) {
	if rep.settled && rep.suspend == nil {
		st.window = min(st.window+1, s.cfg.MaxConnectionsPerSite)
		if st.failures > 0 {
			st.failures = 0
			s.suspended--
			s.metrics.suspended.Set(float64(s.suspended))
			s.log.Info("site.resumed", "site", st.name)
		}
	}
	if rep.suspend == nil {
		if len(rep.again) > 0 {
			if s.stopping {
				return // drain gives the lease back
			}
			st.pushFront(b.with(rep.again))
		}
		return
	}
	if s.shrink(st, rep.suspend) {
		st.pushFront(b.with(rep.again))
		return
	}
	s.suspend(st, rep.suspend)
	s.defers(st, b.with(rep.again))
}

// shrink answers a host that takes no more connections beside those that it has: with fewer, not with a pause.
func (s *Scheduler) shrink(st *site, p *pause) bool {
	if p.phase != PhaseConnect || p.cause == causeAuth || st.running < 2 || !st.proven || s.stopping {
		return false
	}
	st.window = max(1, st.running-1)
	return true
}

// suspend pauses a site and gives back what is ready for it. The caller holds mu.
func (s *Scheduler) suspend(st *site, p *pause) {
	now := s.now()
	if now.Before(st.resume) || s.stopping { // another worker was first
		return
	}
	if st.failures++; st.failures == 1 {
		st.paused = now
		s.suspended++
		s.metrics.suspended.Set(float64(s.suspended))
	}
	first := s.cfg.SuspendFirst
	if p.cause == causeThrottled {
		if hint := delayHint(p.reply.Text); hint > first {
			first = min(hint, s.cfg.SuspendMax)
		}
	}
	delay := backoff(first, s.cfg.SuspendMax, st.failures, rand.Float64())
	st.resume, st.window, st.proven = now.Add(delay), 1, false
	st.reply, st.host = p.reply, p.host
	s.metrics.suspensions.WithLabelValues(p.cause).Inc()
	attrs := []any{
		"site", st.name, "reason", p.cause, "mx", p.host, "delay", delay.Round(time.Second).String(),
		"code", p.reply.Code, "status", p.reply.Status.String(), "attempt", st.failures,
	}
	if p.err != nil {
		attrs = append(attrs, "err", p.err)
	} else {
		attrs = append(attrs, "err", p.reply.Text)
	}
	switch {
	case p.cause == causeAuth:
		s.metrics.authRefused.Inc()
		s.log.Error("route.auth_refused", attrs...)
	case st.route.smart != nil:
		s.log.Warn("site.suspended", attrs...)
	default:
		s.log.Info("site.suspended", attrs...)
	}
	for lane := range st.ready {
		for _, b := range st.ready[lane] {
			s.defers(st, b)
		}
		st.ready[lane] = nil
	}
	queues := slices.Concat(st.queues[laneFast], st.queues[laneBulk])
	st.queues = [2][]spool.Queue{}
	if len(queues) > 0 {
		s.wg.Go(func() { s.park(st, queues) })
	}
}

// park returns queues of a paused site, after what is too old has expired.
func (s *Scheduler) park(st *site, queues []spool.Queue) {
	s.mu.Lock()
	reply, host, until, stood := st.reply, st.host, st.resume, st.route.fallback != ""
	s.mu.Unlock()
	if stood { // another route takes them at once
		for _, q := range queues {
			s.store.Return(q, time.Time{})
		}
		return
	}
	for chunk := range slices.Chunk(queues, leaseQueues) {
		s.setAside(chunk, reply, host, until)
		for _, q := range chunk {
			s.store.Return(q, until)
		}
	}
}

// defers gives a bundle back until its site resumes; no attempt is counted. The caller holds mu.
func (s *Scheduler) defers(st *site, b *bundle) {
	if s.stopping {
		return
	}
	done := make([]settlement, 0, len(b.envs))
	for _, e := range b.envs {
		next := st.resume
		if st.route.fallback != "" { // another route takes them at once
			next = s.now()
		}
		res := s.retrier.unpresented(b.message, e, st.reply, s.now(), next)
		res.Host = st.host
		done = append(done, settlement{message: b.message, envelope: e, result: res})
	}
	s.settler.add(b.batch, done)
}

// gatherTime is how long an idle site waits for the queues that are being looked up, so that the recipients of one
// message at several of its domains go in one transaction.
const gatherTime = time.Millisecond

// fill leases for a site until it has enough. Without queues it waits for more to join first.
func (s *Scheduler) fill(st *site, lane int, queues []spool.Queue) {
	if len(queues) == 0 {
		_ = sleep(s.working, gatherTime)
		s.mu.Lock()
		if !s.stopping && !s.now().Before(st.resume) {
			lane, queues = st.wanted()
		}
		st.filling = len(queues) > 0
		s.mu.Unlock()
	}
	for len(queues) > 0 {
		s.mu.Lock()
		most := st.batch[lane]
		s.mu.Unlock()
		l, err := s.store.Lease(s.working, queues, s.now(), most)
		now := s.now()
		if err != nil {
			if s.working.Err() == nil {
				s.log.Error("lease.failed", "site", st.name, "err", err)
			}
			for _, q := range queues {
				s.store.Return(q, now.Add(time.Second))
			}
			s.mu.Lock()
			st.filling = false
			s.mu.Unlock()
			return
		}
		s.arrived(st, lane, l, most, now)
		for _, q := range queues { // offered again in turn, as long as it has due work
			s.store.Return(q, time.Time{})
		}
		s.mu.Lock()
		st.used = now
		queues = nil
		if !s.stopping && !now.Before(st.resume) {
			lane, queues = st.wanted()
		}
		if len(queues) == 0 {
			st.filling = false
			s.kick(st)
		}
		s.mu.Unlock()
	}
}

// arrived makes bundles of a lease and puts workers on them.
func (s *Scheduler) arrived(st *site, lane int, l *spool.Lease, most int, now time.Time) {
	if len(l.Envelopes) == 0 {
		return
	}
	b := s.track(l, st)
	list := bundles(b, s.cfg.MaxRecipients, now)
	s.mu.Lock()
	for _, x := range list {
		st.leased[laneOf(x.class)] += len(x.envs)
		s.observe(x.envs[0])
	}
	if len(l.Envelopes) == most {
		st.adapt(lane, now)
	}
	switch {
	case s.stopping: // drain gives it back
	case now.Before(st.resume):
		for _, x := range list {
			s.defers(st, x)
		}
	default:
		st.push(list)
		s.kick(st)
	}
	s.mu.Unlock()
}

// observe remembers the lane of a stream. The caller holds mu.
func (s *Scheduler) observe(e *spool.Envelope) {
	if len(s.streams) >= maxStreams {
		clear(s.streams)
	}
	s.streams[streamKey{e.Queue.Account, e.Queue.Stream}] = laneOf(e.Class)
}

// sweepSites forgets sites that have not been used for long, and shows what is open.
func (s *Scheduler) sweepSites(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	idle, _ := s.pool.size("")
	s.metrics.connections.WithLabelValues("active").Set(float64(s.workers))
	s.metrics.connections.WithLabelValues("idle").Set(float64(idle))
	if now.Sub(s.swept) < time.Minute {
		return
	}
	s.swept = now
	for key, st := range s.sites {
		if st.idle(now, 2*s.cfg.SuspendMax) {
			if st.failures > 0 {
				s.suspended--
				s.metrics.suspended.Set(float64(s.suspended))
			}
			delete(s.sites, key)
		}
	}
}
