package delivery

import (
	"regexp"
	"slices"
	"sync"
	"time"

	"relayd/spool"
)

// This file is how a site or a provider stops for a while, and how work goes back without an attempt.

// aboutConnections tells a complaint about the number of connections from one about the number of messages.
var aboutConnections = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)connection|session|concurren`)
})

// classRate is the class of replies that say "too much, too fast".
const classRate = "rate"

// shrink answers a host that takes no more connections beside those that it has: with fewer, not with a pause. The caller
// holds mu.
func (s *Scheduler) shrink(st *site, p *pause) bool {
	p.rate = p.cause == causeThrottled && s.rules.Load().Classify(p.reply, p.phase).Class == classRate
	if p.phase != PhaseConnect || p.cause == causeAuth || st.own.running < 2 || !st.proven || s.stopping {
		return false
	}
	if p.rate && !aboutConnections().MatchString(p.reply.Text) {
		return false
	}
	st.own.gov.refused(st.own.running)
	if st.provider != nil && !st.rule.PerSite && p.cause == causeThrottled {
		st.provider.gov.refused(st.provider.running)
	}
	return true
}

// suspend pauses a site, or its provider when the reply is about all that we send there, and gives back what is ready for
// it. The caller holds mu.
func (s *Scheduler) suspend(st *site, p *pause) {
	l, now := st.own, s.now()
	first, most := s.cfg.SuspendFirst, s.cfg.SuspendMax
	if p.rate && st.rule != nil {
		first = max(first, st.rule.Pause)
		most = max(most, 4*first)
		if !st.rule.PerSite {
			l = st.provider
		}
	}
	if now.Before(l.gov.resume) || s.stopping { // another worker was first
		return
	}
	if p.cause == causeThrottled {
		if hint := delayHint(p.reply.Text); hint > first {
			first = min(hint, most)
		}
	}
	if l.gov.failures == 0 {
		s.suspended++
		s.metrics.suspended.Set(float64(s.suspended))
	}
	delay := l.gov.throttled(now, p, first, most)
	st.proven = false
	s.keep(l)
	s.metrics.suspensions.WithLabelValues(p.cause).Inc()
	attrs := []any{
		"site", l.label(), "reason", p.cause, "mx", p.host, "delay", delay.Round(time.Second).String(),
		"code", p.reply.Code, "status", p.reply.Status.String(), "attempt", l.gov.failures,
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
	var queues []spool.Queue
	for _, f := range st.flows {
		for _, b := range st.takeReady(f) {
			s.defers(st, b, false)
		}
		queues = append(queues, f.queues...)
		f.queues = nil
	}
	if len(queues) > 0 {
		s.wg.Go(func() { s.park(st, queues) })
	}
	if l == st.provider {
		for _, other := range s.sites {
			if other.provider == l && other != st {
				s.kick(other) // finds the pause and gives back what it has
			}
		}
	}
}

// recovered notes that a pause is over for good. The caller holds mu.
func (s *Scheduler) recovered(l *limiter) {
	s.suspended--
	s.metrics.suspended.Set(float64(s.suspended))
	s.keep(l)
	s.log.Info("site.resumed", "site", l.label())
}

// label is the name of a site or provider for logs and commands.
func (l *limiter) label() string {
	if l.scope == scopeProvider {
		return providerPrefix + l.name
	}
	return l.name
}

// providerPrefix tells a provider's name from a site's.
const providerPrefix = "provider:"

// stopped is what a paused site tells of its pause, its provider's where that is what holds it.
func (st *site) stopped(now time.Time) *governor {
	if st.provider != nil && now.Before(st.provider.gov.resume) && !now.Before(st.own.gov.resume) {
		return st.provider.gov
	}
	return st.own.gov
}

// park returns queues of a paused site, after what is too old has expired.
func (s *Scheduler) park(st *site, queues []spool.Queue) {
	s.mu.Lock()
	g := st.stopped(s.now())
	reply, host, until, stood := g.reply, g.host, g.resume, st.route.fallback != ""
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

// behind is how long at most the others at a site have for themselves after a pause, before those come that were answered with
// the wish for one.
const behind = 10 * time.Second

// othersFirst is until when after a pause the others come before the askers, zero where an operator has ended it.
func (g *governor) othersFirst() time.Time {
	if g.resume.IsZero() {
		return time.Time{}
	}
	return g.resume.Add(min(g.resume.Sub(g.paused)/2, behind))
}

// othersFirst is the same for a site, which its provider's pause stops too.
func (st *site) othersFirst() time.Time {
	until := st.own.gov.othersFirst()
	if st.provider != nil {
		until = later(until, st.provider.gov.othersFirst())
	}
	return until
}

// defers gives a bundle back until its site resumes; no attempt is counted. Who was answered with the wish for the pause, an
// asker, comes later than the others, and the longer it has been asking the later: the wish may be about its mailbox alone,
// and must not hold up all that goes to the site. The caller holds mu.
func (s *Scheduler) defers(st *site, b *bundle, asker bool) {
	now := s.now()
	resume := st.stopped(now).resume
	if asker {
		resume = later(st.othersFirst(), now.Add(min(now.Sub(b.message.AcceptedAt), s.cfg.SuspendMax)))
		for _, e := range b.envs {
			if len(s.asked) >= maxAsked {
				clear(s.asked)
			}
			s.asked[e.ID] = struct{}{}
		}
	}
	if st.route.fallback != "" { // another route takes them at once
		resume = now
	}
	s.giveBack(st, b, resume)
}

// giveBack has a bundle wait for next, or for as long as its mail may. The caller holds mu.
func (s *Scheduler) giveBack(st *site, b *bundle, next time.Time) {
	if s.stopping || len(b.envs) == 0 {
		return
	}
	now := s.now()
	g := st.stopped(now)
	if end := s.retrier.expires(b.message); next.After(end) {
		next = later(g.resume, end)
	}
	done := make([]settlement, 0, len(b.envs))
	for _, e := range b.envs {
		res := s.retrier.unpresented(b.message, e, g.reply, now, next)
		res.Host = g.host
		done = append(done, settlement{message: b.message, envelope: e, result: res})
	}
	s.settler.add(b.batch, done)
}

// withoutAskers gives back the bundles whose envelopes were answered with the wish for a pause when they were presented last,
// for as long as the others come first, and puts them behind the others after that: few mailboxes that always wish for one would
// be first after each pause, and nothing would pass by them. The caller holds mu.
func (s *Scheduler) withoutAskers(st *site, list []*bundle, now time.Time) []*bundle {
	if len(s.asked) == 0 {
		return list
	}
	until := st.othersFirst()
	var askers []*bundle
	others := list[:0:0]
	for _, b := range list {
		switch {
		case !slices.ContainsFunc(b.envs, s.hasAsked):
			others = append(others, b)
		case now.Before(until):
			s.giveBack(st, b, until)
		default:
			askers = append(askers, b)
		}
	}
	return append(others, askers...)
}

func (s *Scheduler) hasAsked(e *spool.Envelope) bool {
	_, has := s.asked[e.ID]
	return has
}

// denied makes what a site has wait for the end of a denial: in memory for moments, in its queues for longer. The caller
// holds mu.
func (s *Scheduler) denied(st *site, d *denial, now time.Time) {
	if !d.lasts(now) {
		if st.waiting() > 0 || slices.ContainsFunc(st.hungry[:], func(l []*flow) bool { return len(l) > 0 }) {
			s.wait(d, waiter{site: st}, now)
		}
		return
	}
	for _, f := range st.flows {
		s.sendAway(st, f, d, now)
	}
}

// sendAway gives back what a flow has, ready or to be leased; no attempt is counted, and nothing is written but the lease's
// end. The caller holds mu.
func (s *Scheduler) sendAway(st *site, f *flow, d *denial, now time.Time) {
	if s.stopping {
		return
	}
	for _, q := range f.queues {
		if st.route.fallback != "" && st.stops(now) { // another route takes it at once
			s.store.Return(q, time.Time{})
		} else {
			s.store.Return(q, d.by.book(d, now))
		}
	}
	f.queues = nil
	back := map[*batch][]*spool.Envelope{}
	for _, b := range st.takeReady(f) {
		back[b.batch] = append(back[b.batch], b.envs...)
	}
	for b, envs := range back {
		s.settler.giveBack(b, envs, now)
	}
	s.tidy(st, f)
}
