package delivery

import (
	"container/heap"
	"time"
)

// limiter is what one of a scope may use: a site, a provider, a source address, an account, a campaign. Who is denied waits
// in its line without a goroutine, and is called when there is room or the time has come. The scheduler's lock holds every
// field.
type limiter struct {
	scope, name string
	key         string                // of its record
	most        int                   // connections at a time, 0: any number
	asked       func(name string) int // the owner's own figure, asked each time; 0: none. nil: nobody to ask
	rate        *gcra                 // nil: any
	spec        string                // of the rate, for people
	weight      int                   // of the account's or campaign's share
	gov         *governor             // what was learned; nil for source, account and campaign
	hold        *Hold                 // an operator's suspension, nil for none

	running int // connections, or for accounts and campaigns transactions
	called  int // sites that lease for a connection that is kept for them

	yielding int // workers that end to give way to sites in the line

	line    []waiter
	inLine  map[waiter]bool
	calling bool
	booked  time.Time // due time of the last queue that was sent away
	used    time.Time

	alarm time.Time // when the line is called; zero: not by time
	place int       // in the alarm heap, -1 for none
}

// waiter is a site, or one flow of it, that was denied.
type waiter struct {
	site *site
	flow *flow // nil: the whole site
}

func newLimiter(scope, name string, l Limit) *limiter {
	m := &limiter{scope: scope, name: name, most: l.Connections, weight: max(1, l.Weight), place: -1}
	if r, err := ParseRate(l.Rate); err == nil { // Validate has seen it
		m.rate, m.spec = newGCRA(r), l.Rate
	}
	return m
}

// set puts other figures into force. What was taken counts on, in messages.
func (l *limiter) set(now time.Time, to Limit) {
	l.most, l.weight = to.Connections, max(1, to.Weight)
	if to.Rate == l.spec {
		return
	}
	r, err := ParseRate(to.Rate)
	switch {
	case err != nil: // none, as Validate has seen it
		l.rate, l.spec = nil, ""
	case l.rate == nil:
		l.rate, l.spec = newGCRA(r), to.Rate
	default:
		l.rate.become(now, r)
		l.spec = to.Rate
	}
	l.booked = time.Time{}
}

// idle tells that nothing depends on the limiter, so that it may be forgotten once its rate has forgotten too.
func (l *limiter) idle(now time.Time) bool {
	return l.running == 0 && len(l.line) == 0 && (l.rate == nil || l.rate.due.Before(now))
}

// denial is why something may not leave now.
type denial struct {
	by     *limiter
	reason string    // closed set, see Wait
	until  time.Time // zero: until there is room
}

// Reasons of a denial, the words of Wait.
const (
	waitOperator    = "suspended_by_operator"
	waitSuspended   = "suspended"
	waitRate        = "rate"
	waitPace        = "pace"
	waitConnections = "connections"
	waitWindow      = "window"
)

// closed tells what keeps all of a scope from sending, whatever the number of connections; nil when nothing does.
func (l *limiter) closed(now time.Time) *denial {
	switch {
	case l.hold.holds(now):
		until := l.hold.Until
		if until.IsZero() {
			until = now.Add(maxBooking) // and then again
		}
		return &denial{l, waitOperator, until}
	case l.gov != nil && now.Before(l.gov.resume):
		return &denial{l, waitSuspended, l.gov.resume}
	}
	if l.rate != nil && l.rate.next().After(now) {
		return &denial{l, waitRate, l.rate.next()}
	}
	if l.gov != nil && l.gov.pace > 0 && l.gov.paced.next().After(now) {
		return &denial{l, waitPace, l.gov.paced.next()}
	}
	return nil
}

// ceiling is the smaller of the configured figure and the owner's own, 0 for none.
func (l *limiter) ceiling() int {
	if l.asked == nil {
		return l.most
	}
	n := l.asked(l.name)
	if l.most > 0 && (n == 0 || l.most < n) {
		return l.most
	}
	return n
}

// full tells whether one more beside the running ones is too many.
func (l *limiter) full(running int) *denial {
	most := l.ceiling()
	switch {
	case most > 0 && running >= most:
		return &denial{by: l, reason: waitConnections}
	case l.gov != nil && running >= l.gov.allowed():
		return &denial{by: l, reason: waitWindow}
	}
	return nil
}

// take counts n messages that leave.
func (l *limiter) take(now time.Time, n int) {
	l.used = now
	if l.rate != nil {
		l.rate.take(now, n)
	}
	if l.gov != nil && l.gov.pace > 0 {
		l.gov.paced.take(now, n)
	}
}

// refund takes n messages back that did not leave.
func (l *limiter) refund(n int) {
	if l.rate != nil {
		l.rate.refund(n)
	}
	if l.gov != nil && l.gov.pace > 0 {
		l.gov.paced.refund(n)
	}
}

// allows is how many messages may leave within a time, most at most.
func (l *limiter) allows(now time.Time, within time.Duration, most int) int {
	if l.rate != nil {
		most = min(most, l.rate.allows(now, now.Add(within)))
	}
	if l.gov != nil && l.gov.pace > 0 {
		most = min(most, l.gov.paced.allows(now, now.Add(within)))
	}
	return most
}

// book gives a queue that is sent away the time to come back: the end of the denial, and where a rate denies each queue a
// time of its own, so that not all come for one message.
func (l *limiter) book(d *denial, now time.Time) time.Time {
	var step time.Duration
	switch d.reason {
	case waitRate:
		step = l.rate.interval
	case waitPace:
		step = l.gov.paced.interval
	default:
		return d.until
	}
	if l.booked.Before(d.until) || l.booked.After(now.Add(maxBooking)) {
		l.booked = d.until
	} else {
		l.booked = l.booked.Add(step)
	}
	return l.booked
}

// maxBooking is how far ahead queues are sent away: then the line begins anew.
const maxBooking = time.Hour

// wait puts who was denied in line.
func (s *Scheduler) wait(d *denial, w waiter, now time.Time) {
	l := d.by
	if !l.inLine[w] {
		l.enter(w)
	}
	if d.until.IsZero() {
		return
	}
	at := later(d.until, now.Add(minAlarm))
	if l.place >= 0 && !at.Before(l.alarm) {
		return
	}
	l.alarm = at
	if l.place >= 0 {
		heap.Fix(&s.alarms, l.place)
	} else {
		heap.Push(&s.alarms, l)
	}
	if l.place == 0 {
		s.poke()
	}
}

// minAlarm keeps a fast rate from waking the scheduler for each message.
const minAlarm = 2 * time.Millisecond

// bareWaits tells whether more sites without any connection stand in the line of a provider or source than workers give way
// to. It looks at few more sites than there may be connections: the others in line have one.
func (l *limiter) bareWaits() bool {
	n := 0
	for _, w := range l.line {
		if w.flow == nil && w.site.own.running == 0 && !w.site.called {
			if n++; n > l.yielding {
				return true
			}
		}
	}
	return false
}

// call lets those in line try again, first come first served but for sites that have a connection while others have none, as
// long as there is room. The caller holds mu.
func (s *Scheduler) call(l *limiter) {
	if l.calling || s.stopping {
		return
	}
	l.calling = true
	defer func() { l.calling = false }()
	now := s.now()
	bare := l.scope != scopeAccount && l.scope != scopeCampaign && l.full(l.running+l.called) == nil && l.bareWaits()
	for n := len(l.line); n > 0 && len(l.line) > 0; n-- {
		w := l.line[0]
		if d := l.closed(now); d != nil {
			s.wait(d, w, now) // sets the alarm
			return
		}
		if l.full(l.running+l.called) != nil {
			return
		}
		l.leave()
		switch {
		case w.flow != nil:
			w.site.unpark(w.flow)
			s.kick(w.site)
			s.tidy(w.site, w.flow)
		case bare && w.site.own.running > 0: // its workers ask again
			l.enter(w)
		default:
			s.kick(w.site)
			s.keepPlace(w.site)
		}
	}
	if len(l.line) == 0 {
		l.line = nil
	}
}

// enter puts one who is not there at the end of the line.
func (l *limiter) enter(w waiter) {
	if l.inLine == nil {
		l.inLine = map[waiter]bool{}
	}
	l.inLine[w] = true
	l.line = append(l.line, w)
}

// leave takes the first one out of the line.
func (l *limiter) leave() {
	delete(l.inLine, l.line[0])
	l.line[0] = waiter{}
	l.line = l.line[1:]
}

// ring calls the lines whose time has come, and tells when the next one's does. The caller holds mu.
func (s *Scheduler) ring(now time.Time) time.Time {
	for len(s.alarms) > 0 && !s.alarms[0].alarm.After(now) {
		l := heap.Pop(&s.alarms).(*limiter)
		s.call(l)
	}
	if len(s.alarms) == 0 {
		return time.Time{}
	}
	return s.alarms[0].alarm
}

// alarmHeap orders limiters by their alarm.
type alarmHeap []*limiter

func (h alarmHeap) Len() int           { return len(h) }
func (h alarmHeap) Less(i, j int) bool { return h[i].alarm.Before(h[j].alarm) }
func (h alarmHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

// Push is for container/heap.
func (h *alarmHeap) Push(x any) {
	l := x.(*limiter)
	l.place = len(*h)
	*h = append(*h, l)
}

// Pop is for container/heap.
func (h *alarmHeap) Pop() any {
	old := *h
	l := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	l.place = -1
	return l
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
