package delivery

import (
	"slices"
	"time"

	"relayd/spool"
)

// flow is what one account sends in one stream, or one campaign, to one site: the unit of fairness. The scheduler's lock
// holds every field.
type flow struct {
	key      flowKey
	account  *limiter
	campaign *limiter
	weight   int

	lane    int           // of its last lease: where its next one is expected
	queues  []spool.Queue // taken from the spool, to be leased from
	ready   [lanes][]*bundle
	leased  int       // envelopes under lease and not settled
	batch   int       // envelopes per lease
	refill  time.Time // when the last full lease came
	hungry  bool      // stands in the site's list
	parked  bool      // its account's or campaign's limit holds it
	leasing bool      // a lease for it is under way

	deficit [lanes]int
	inRing  [lanes]bool
}

type flowKey struct{ account, stream string }

// ring is deficit round robin over flows: each in its turn may send what its deficit allows.
type ring struct {
	flows []*flow
	at    int
}

// quantum is how many recipients a flow of weight 1 sends in its turn.
const quantum = 4

// push adds bundles behind those that are ready.
func (st *site) push(f *flow, list []*bundle) {
	for _, b := range list {
		lane := laneOf(b.class)
		f.ready[lane] = append(f.ready[lane], b)
		st.ready[lane]++
		st.enter(f, lane)
	}
}

// pushFront gives back what a worker could not send.
func (st *site) pushFront(b *bundle) {
	lane := laneOf(b.class)
	f := b.flow
	f.ready[lane] = slices.Insert(f.ready[lane], 0, b)
	st.ready[lane]++
	st.enter(f, lane)
}

// enter puts a flow in the ring of a lane.
func (st *site) enter(f *flow, lane int) {
	if f.inRing[lane] || f.parked || len(f.ready[lane]) == 0 {
		return
	}
	f.inRing[lane] = true
	st.rings[lane].flows = append(st.rings[lane].flows, f)
}

// drop takes a flow out of the ring of a lane; whose turn it is stays.
func (r *ring) drop(f *flow, lane int) {
	i := slices.Index(r.flows, f)
	if i < 0 {
		return
	}
	f.inRing[lane], f.deficit[lane] = false, 0
	r.flows = slices.Delete(r.flows, i, i+1)
	if i < r.at {
		r.at--
	}
}

// park takes a flow out of the rings until unpark: its account or campaign is at its limit.
func (st *site) park(f *flow) {
	f.parked = true
	for lane := range st.rings {
		st.rings[lane].drop(f, lane)
	}
}

func (st *site) unpark(f *flow) {
	f.parked = false
	for lane := range st.rings {
		st.enter(f, lane)
	}
	st.feed(f)
}

// pop takes the next bundle, urgent before transactional before bulk, and inside a lane by weight. A flow that may not
// send is parked.
func (st *site) pop(bulk bool, may func(*flow) bool) *bundle {
	for lane := range st.rings {
		if lane == laneBulk && !bulk {
			break
		}
		if b := st.popLane(lane, may); b != nil {
			return b
		}
	}
	return nil
}

func (st *site) popLane(lane int, may func(*flow) bool) *bundle {
	r := &st.rings[lane]
	for len(r.flows) > 0 {
		if r.at >= len(r.flows) {
			r.at = 0
		}
		f := r.flows[r.at]
		if !may(f) {
			st.park(f)
			continue
		}
		b := f.ready[lane][0]
		if f.deficit[lane] < len(b.envs) {
			f.deficit[lane] += quantum * f.weight
			if f.deficit[lane] < len(b.envs) {
				r.at++
				continue
			}
		}
		f.deficit[lane] -= len(b.envs)
		f.ready[lane][0] = nil
		f.ready[lane] = f.ready[lane][1:]
		st.ready[lane]--
		if len(f.ready[lane]) == 0 {
			f.ready[lane] = nil
			r.drop(f, lane)
		} else if f.deficit[lane] < len(f.ready[lane][0].envs) {
			r.at++ // its turn is over
		}
		st.feed(f)
		return b
	}
	return nil
}

// takeReady takes out all that is ready of a flow.
func (st *site) takeReady(f *flow) []*bundle {
	var out []*bundle
	for lane := range f.ready {
		out = append(out, f.ready[lane]...)
		st.ready[lane] -= len(f.ready[lane])
		f.ready[lane] = nil
		st.rings[lane].drop(f, lane)
	}
	return out
}

// wants tells whether the flow should lease: it has queues, and too little is ready or under way.
func (f *flow) wants(window int) bool {
	if len(f.queues) == 0 || f.parked || f.leased > 2*f.batch {
		return false
	}
	n := 0
	for lane := range f.ready {
		n += len(f.ready[lane])
	}
	return n <= 2*window
}

// feed puts the flow in line for a lease, if it wants one.
func (st *site) feed(f *flow) {
	if f.hungry || !f.wants(st.window()) {
		return
	}
	f.hungry = true
	st.hungry[f.lane] = append(st.hungry[f.lane], f)
}

// nextHungry takes the flow that leases next out of the line, nil for none.
func (st *site) nextHungry() *flow {
	for lane := range st.hungry {
		for len(st.hungry[lane]) > 0 {
			f := st.hungry[lane][0]
			st.hungry[lane][0] = nil
			st.hungry[lane] = st.hungry[lane][1:]
			f.hungry = false
			if f.wants(st.window()) {
				return f
			}
		}
		st.hungry[lane] = nil
	}
	return nil
}

// adapt grows leases that are used up at once and shrinks those that last.
func (f *flow) adapt(now time.Time) {
	switch last := now.Sub(f.refill); {
	case last < 250*time.Millisecond:
		f.batch = min(2*f.batch, maxLease)
	case last > 2*time.Second:
		f.batch = max(f.batch/2, minLease)
	}
	f.refill = now
}

// done tells that nothing of the flow is left at the site.
func (f *flow) done() bool {
	return f.leased == 0 && len(f.queues) == 0 && !f.hungry && !f.parked && !f.leasing
}
