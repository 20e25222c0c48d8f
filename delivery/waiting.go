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
	if w, limited := s.waitOf(st, q, s.now()); limited {
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
