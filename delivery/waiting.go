package delivery

import (
	"context"
	"fmt"
	"time"

	"relayd/internal/mail"
	"relayd/spool"
)

// Wait says what delivery makes a queue wait for. The zero Wait: nothing.
type Wait struct {
	Reason string     // suspended_by_operator, suspended, rate, pace, connections, window, dns, turn
	Limit  string     // that holds: "site mx.example.com", "provider google", "account acme", "delivery.max_connections"
	Site   string     // "" where the domain has none
	Since  time.Time  // zero: not known
	Until  time.Time  // zero: until there is room
	Reply  mail.Reply // that suspended the site
	Host   string     // that gave Reply
	Text   string     // a remark for people

	Scope     string  // of Limit: site, provider, source, account or campaign; "" for none of them
	Own       bool    // Limit is the campaign's own figure, not one of delivery.limits
	PerSecond float64 // messages that the site or its provider may get now, 0: any number
}

// waitingLookup bounds the look-up of the domain's site.
const waitingLookup = 3 * time.Second

// Waiting tells why due envelopes of a queue are not attempted now. It looks the domain's MX hosts up, as a rule from
// the resolver's cache.
func (s *Scheduler) Waiting(ctx context.Context, q spool.Queue) Wait {
	ctx, cancel := context.WithTimeout(ctx, waitingLookup)
	defer cancel()
	r, err := s.router.resolve(ctx, q)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil && q.Via() != "" && q.Via() != RouteMX:
		return Wait{Reason: "dns", Text: fmt.Sprintf("there is no smarthost %s in the configuration", q.Via())}
	case err != nil:
		return Wait{Reason: "dns", Text: fmt.Sprintf("the MX hosts of %s cannot be looked up", q.Recipient())}
	case r.refusal != nil:
		return Wait{Reason: "turn", Text: r.refusal.reply.String()}
	}
	st := s.sites[r.key]
	if st == nil {
		return Wait{Reason: "turn", Site: r.name}
	}
	return s.waitAt(st, q, s.now())
}

// WaitingKnown is Waiting for many queues from memory alone, for those who look often: one after another, in their order.
// A queue of which nothing is known yet gets the zero Wait.
func (s *Scheduler) WaitingKnown(queues []spool.Queue) []Wait {
	waits := make([]Wait, len(queues))
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, q := range queues {
		if s.domains[q.Domain] > 0 {
			waits[i] = Wait{Reason: "dns", Text: fmt.Sprintf("the MX hosts of %s cannot be looked up", q.Recipient())}
		} else if st := s.sites[s.known[q.Domain].key]; st != nil {
			waits[i] = s.waitAt(st, q, now)
			waits[i].PerSecond = st.perSecond()
		}
	}
	return waits
}

// waitAt is what a site makes a queue wait for. The caller holds mu.
func (s *Scheduler) waitAt(st *site, q spool.Queue, now time.Time) Wait {
	if w, limited := s.waitOf(st, q, now); limited {
		return w
	}
	if (st.starved || st.crowded) && st.own.running == 0 {
		return Wait{
			Reason: waitConnections, Site: st.name, Limit: "delivery.max_connections",
			Text: fmt.Sprintf("all connections are in use (delivery.max_connections = %d)", s.cfg.MaxConnections),
		}
	}
	return Wait{Reason: "turn", Site: st.name}
}

// perSecond is the least that is configured or was learned for the whole of a site, 0 for no bound.
func (st *site) perSecond() (least float64) {
	bound := func(f float64) {
		if f > 0 && (least == 0 || f < least) {
			least = f
		}
	}
	for _, l := range st.limiters() {
		if l.rate != nil {
			bound(float64(time.Second) / float64(l.rate.interval))
		}
		if l.gov != nil {
			bound(l.gov.pace)
		}
	}
	return least
}
