package delivery

import (
	"time"

	"relayd/internal/mail"
	"relayd/spool"
)

// site is a set of MX hosts, or a smarthost, with what waits for it. The scheduler's lock holds every field.
type site struct {
	key   string // never changes, as name
	name  string
	route *route // as of the last look-up

	queues  [2][]spool.Queue // taken from the spool, to be leased from: bulk and the rest
	ready   [2][]*bundle     // leased, in the order in which workers take them
	leased  [2]int           // envelopes under lease and not settled
	batch   [2]int           // envelopes per lease
	filling bool             // a goroutine leases
	refill  [2]time.Time     // when the last lease came

	running  int       // workers
	bulk     int       // of them, those that send bulk
	window   int       // workers allowed now
	proven   bool      // a session was opened since the last failure
	starved  bool      // waits for a connection in all
	failures int       // pauses in a row
	paused   time.Time // when the first of them began
	resume   time.Time
	reply    mail.Reply // of the pause
	host     string
	used     time.Time
}

// The lanes of a site: bulk never stands before the rest.
const (
	laneFast = iota
	laneBulk
)

func laneOf(c spool.Class) int {
	if c == spool.Bulk {
		return laneBulk
	}
	return laneFast
}

// Sizes of leases. Small enough that a crash leaves few in doubt, large enough that the durable record costs little.
const (
	minLease      = 100
	maxLease      = 800
	leaseQueues   = 64 // queues of one lease
	initialWindow = 5  // workers of a site once one session was opened; each success allows one more
)

func newSite(r *route) *site {
	return &site{key: r.key, name: r.name, route: r, window: 1, batch: [2]int{minLease, minLease}}
}

// wanted picks the queues to lease from next, none when enough is ready or under way.
func (s *site) wanted() (lane int, queues []spool.Queue) {
	for lane := range s.queues {
		n := len(s.queues[lane])
		if n == 0 || len(s.ready[lane]) > 2*s.window || s.leased[lane] > 2*s.batch[lane] {
			continue
		}
		n = min(n, leaseQueues)
		queues := s.queues[lane][:n:n]
		s.queues[lane] = s.queues[lane][n:]
		return lane, queues
	}
	return 0, nil
}

// adapt grows leases that are used up at once and shrinks those that last.
func (s *site) adapt(lane int, now time.Time) {
	switch last := now.Sub(s.refill[lane]); {
	case last < 250*time.Millisecond:
		s.batch[lane] = min(2*s.batch[lane], maxLease)
	case last > 2*time.Second:
		s.batch[lane] = max(s.batch[lane]/2, minLease)
	}
	s.refill[lane] = now
}

// push adds bundles in class order: urgent ones go before all that are not.
func (s *site) push(list []*bundle) {
	for _, b := range list {
		lane := laneOf(b.class)
		if b.class == spool.Urgent {
			i := 0
			for i < len(s.ready[lane]) && s.ready[lane][i].class == spool.Urgent {
				i++
			}
			s.ready[lane] = append(s.ready[lane], nil)
			copy(s.ready[lane][i+1:], s.ready[lane][i:])
			s.ready[lane][i] = b
			continue
		}
		s.ready[lane] = append(s.ready[lane], b)
	}
}

// pushFront gives back what a worker could not send.
func (s *site) pushFront(b *bundle) {
	lane := laneOf(b.class)
	s.ready[lane] = append([]*bundle{b}, s.ready[lane]...)
}

// isSuspended tells whether the site of a route is paused now.
func (s *Scheduler) isSuspended(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.sites[key]
	return st != nil && s.now().Before(st.resume)
}

// pop takes the next bundle, of bulk only where that may be sent.
func (s *site) pop(bulk bool) *bundle {
	for lane := range s.ready {
		if len(s.ready[lane]) == 0 || lane == laneBulk && !bulk {
			continue
		}
		b := s.ready[lane][0]
		s.ready[lane][0] = nil
		s.ready[lane] = s.ready[lane][1:]
		return b
	}
	return nil
}

// bulkWindow is how many workers may send bulk: one in ten is kept free, so that a code overtakes a campaign.
func bulkWindow(window int) int {
	if window < 2 {
		return window
	}
	return window - max(1, window/10)
}

// idle tells that the scheduler may forget the site.
func (s *site) idle(now time.Time, memory time.Duration) bool {
	return s.running == 0 && !s.filling && len(s.queues[0])+len(s.queues[1])+len(s.ready[0])+len(s.ready[1])+s.leased[0]+s.leased[1] == 0 &&
		now.Sub(s.used) > memory
}
