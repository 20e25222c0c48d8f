package spool

import "strings"

// Queue is tenant/stream-or-campaign@domain: the unit in which work waits, is counted and is leased.
type Queue struct {
	Account string
	Stream  string // stream, or campaign ID
	Domain  string // recipient domain
}

// String returns account/stream@domain.
func (q Queue) String() string { return q.Account + "/" + q.Stream + "@" + q.Domain }

// The domain of a queue may begin with what keeps its envelopes apart from others to the same domain: no domain holds a
// colon.
const (
	fromSender = "from:" // the sender's domain, where a rule asks for it
	viaRoute   = "via:"  // the route that the queue is bound to
)

// RouteMX is the one route whose queues keep the recipient's domain: it is looked up there.
const RouteMX = "mx"

// QueueDomain names the queue in which envelopes to domain wait: apart from those of other senders' domains, unless sender
// is "", and for a route: a smarthost, RouteMX, or "" for the one that is found when they are due.
func QueueDomain(sender, route, domain string) string {
	switch route {
	case "":
	case RouteMX:
		domain = viaRoute + RouteMX + ":" + domain
	default:
		domain = viaRoute + route
	}
	if sender == "" {
		return domain
	}
	return fromSender + sender + ":" + domain
}

// Sender returns the domain of the senders whose mail the queue holds, "" where it holds everybody's.
func (q Queue) Sender() string {
	sender, _, _ := q.parts()
	return sender
}

// Via returns the route that the queue is bound to, "" for none.
func (q Queue) Via() string {
	_, route, _ := q.parts()
	return route
}

// Recipient returns the recipients' domain, "" where the queue is bound to a route that takes all domains.
func (q Queue) Recipient() string {
	_, _, domain := q.parts()
	return domain
}

// parts is the inverse of QueueDomain.
func (q Queue) parts() (sender, route, domain string) {
	domain = q.Domain
	if rest, ok := strings.CutPrefix(domain, fromSender); ok {
		sender, domain, _ = strings.Cut(rest, ":")
	}
	if rest, ok := strings.CutPrefix(domain, viaRoute); ok {
		route, domain, _ = strings.Cut(rest, ":")
	}
	return sender, route, domain
}
