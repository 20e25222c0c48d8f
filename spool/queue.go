package spool

import (
	"cmp"
	"math"
	"slices"
	"sync"
	"time"

	"relayd/internal/mail"
)

// never is the due time of a queue in which nothing waits.
const never = math.MaxInt64

// place is where a live envelope stands. The table of queues counts envelopes by place.
type place uint8

const (
	nowhere  place = iota // not accepted yet, or finished
	inReady               // in tableDue, first wait
	inLater               // in tableDue, deferred or scheduled
	inHeld                // in tableHeld
	inFlight              // under lease
	places
)

func waitingPlace(deferred bool) place {
	if deferred {
		return inLater
	}
	return inReady
}

// move is one envelope going from one place to another, after its transaction is durable.
type move struct {
	id       mail.EnvelopeID
	queue    Queue
	class    Class
	from, to place
	next     time.Time // where to is a waiting place
	lease    *Lease    // where to is inFlight
}

// queue is what memory knows of one queue: counts, and the earliest due time of each class. The due times are never
// later than the truth; a lease that finds nothing corrects one that is earlier.
type queue struct {
	name      Queue
	count     [places]int
	next      [classes]int64
	ages      []age
	version   uint64 // of the table when an envelope was last added to wait
	taken     bool
	notBefore int64
	future    [classes]int // positions in the heaps, -1 for none
	ready     [classes]int
}

// age counts the live envelopes accepted in one minute.
type age struct {
	minute int64
	n      int
}

// queueTable is the in-memory index of the queues, rebuilt from the store at Open. Each class has a heap of queues by
// due time, and one of due queues by turn, so that a long queue cannot starve the others.
type queueTable struct {
	mu      sync.Mutex
	queues  map[Queue]*queue
	streams map[string]map[*queue]struct{}
	paused  map[string]time.Time // since when
	leased  map[mail.EnvelopeID]*Lease
	total   [places]int
	future  [classes]queueHeap
	ready   [classes]queueHeap
	turn    int64
	version uint64
	changed chan struct{}
}

func newQueueTable() *queueTable {
	t := &queueTable{
		queues: map[Queue]*queue{}, streams: map[string]map[*queue]struct{}{}, paused: map[string]time.Time{},
		leased: map[mail.EnvelopeID]*Lease{}, changed: make(chan struct{}, 1),
	}
	for c := range classes {
		t.future[c].position = func(q *queue) *int { return &q.future[c] }
		t.ready[c].position = func(q *queue) *int { return &q.ready[c] }
	}
	return t
}

func (t *queueTable) signal() {
	select {
	case t.changed <- struct{}{}:
	default: // a wake-up is waiting already
	}
}

// get returns the queue, made where it was not known. The caller holds mu.
func (t *queueTable) get(name Queue) *queue {
	q := t.queues[name]
	if q == nil {
		q = &queue{name: name}
		for c := range classes {
			q.next[c], q.future[c], q.ready[c] = never, -1, -1
		}
		t.queues[name] = q
		of := t.streams[name.Stream]
		if of == nil {
			of = map[*queue]struct{}{}
			t.streams[name.Stream] = of
		}
		of[q] = struct{}{}
	}
	return q
}

// apply brings the table up to date with moves that are durable. Moves of one envelope may be applied in another order
// than they happened in: counts add up all the same, and a due time is early at worst.
func (t *queueTable) apply(moves []move) {
	if len(moves) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var q *queue
	added := false
	for i := range moves {
		m := &moves[i]
		if q == nil || q.name != m.queue {
			t.settleQueue(q)
			q = t.get(m.queue)
		}
		if t.applyOne(q, m) {
			added = true
		}
	}
	t.settleQueue(q)
	if added {
		t.signal()
	}
}

// applyOne counts one move and tells whether there is more to do than before.
func (t *queueTable) applyOne(q *queue, m *move) (added bool) {
	q.count[m.from]--
	q.count[m.to]++
	t.total[m.from]--
	t.total[m.to]++
	q.count[nowhere], t.total[nowhere] = 0, 0
	switch {
	case m.from == nowhere:
		q.accepted(m.id.Message.Time(), 1)
	case m.to == nowhere:
		q.accepted(m.id.Message.Time(), -1)
	}
	if m.from == inFlight {
		delete(t.leased, m.id)
	}
	switch m.to {
	case inFlight:
		t.leased[m.id] = m.lease
	case inReady, inLater:
		t.version++
		q.version = t.version
		q.next[m.class] = min(q.next[m.class], nanos(m.next))
		return true
	case nowhere, inHeld, places:
	}
	return false
}

// accepted counts n envelopes accepted at a time, or takes them off.
func (q *queue) accepted(at time.Time, n int) {
	minute := at.Unix() / 60
	i, found := slices.BinarySearchFunc(q.ages, minute, func(a age, m int64) int { return cmp.Compare(a.minute, m) })
	if !found {
		q.ages = slices.Insert(q.ages, i, age{minute, n})
		return
	}
	if q.ages[i].n += n; q.ages[i].n == 0 {
		q.ages = slices.Delete(q.ages, i, i+1)
	}
}

// settleQueue puts a queue where it belongs after a change, or drops it when it is empty. The caller holds mu.
func (t *queueTable) settleQueue(q *queue) {
	if q == nil {
		return
	}
	offered := !q.taken && t.paused[q.name.Stream].IsZero()
	idle := true
	for c := range classes {
		idle = idle && q.next[c] == never
		switch {
		case !offered || q.next[c] == never:
			t.future[c].remove(q)
			t.ready[c].remove(q)
		case q.ready[c] < 0:
			t.future[c].set(q, max(q.next[c], q.notBefore))
		}
	}
	if idle && !q.taken && q.count == [places]int{} {
		delete(t.queues, q.name)
		of := t.streams[q.name.Stream]
		if delete(of, q); len(of) == 0 {
			delete(t.streams, q.name.Stream)
		}
	}
}

// Take returns up to most queues that have work due at now, urgent ones first and in turn among equals, and marks them
// taken: they are not returned again before Return.
func (s *Store) Take(now time.Time, most int) []Queue {
	t := s.queues
	t.mu.Lock()
	defer t.mu.Unlock()
	at := nanos(now)
	var taken []Queue
	for c := range classes {
		for len(t.future[c].items) > 0 && t.future[c].items[0].key <= at {
			q := t.future[c].items[0].queue
			t.future[c].remove(q)
			t.turn++
			t.ready[c].set(q, t.turn)
		}
		for len(t.ready[c].items) > 0 && len(taken) < most {
			q := t.ready[c].items[0].queue
			q.taken = true
			t.settleQueue(q)
			taken = append(taken, q.name)
		}
	}
	return taken
}

// Return gives a taken queue back. It is not offered again before notBefore (zero: as soon as it has due work).
func (s *Store) Return(name Queue, notBefore time.Time) {
	t := s.queues
	t.mu.Lock()
	defer t.mu.Unlock()
	q := t.get(name)
	q.taken = false
	q.notBefore = nanos(notBefore)
	t.settleQueue(q)
	t.signal()
}

// Changed receives after work was added or a queue was returned. One receiver at a time; several changes may be one
// signal.
func (s *Store) Changed() <-chan struct{} { return s.queues.changed }

// NextDue is the earliest time at which Take could return a queue, some time in the past when one is due, zero when
// nothing waits.
func (s *Store) NextDue() time.Time {
	t := s.queues
	t.mu.Lock()
	defer t.mu.Unlock()
	first := int64(never)
	for c := range classes {
		if items := t.future[c].items; len(items) > 0 {
			first = min(first, items[0].key)
		}
		if len(t.ready[c].items) > 0 {
			first = 1
		}
	}
	if first == never {
		return time.Time{}
	}
	return time.Unix(0, first).UTC()
}

// PauseStream makes Take pass over the queues of a stream or campaign until it is called with false. It lasts as long
// as the process: the owner of the pause applies it again after a restart. A queue that is taken already is not taken
// back.
func (s *Store) PauseStream(stream string, paused bool) {
	t := s.queues
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case !paused:
		delete(t.paused, stream)
	case t.paused[stream].IsZero():
		t.paused[stream] = s.now()
	}
	for q := range t.streams[stream] {
		t.settleQueue(q)
	}
	t.signal()
}

// versions remembers when work was last added to the queues, for corrected.
func (t *queueTable) versions(names []Queue) []uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	vs := make([]uint64, len(names))
	for i, name := range names {
		if q := t.queues[name]; q != nil {
			vs[i] = q.version
		}
	}
	return vs
}

// corrected sets the due times that a lease has read, -1 for classes it has not looked at. Where work was added since
// the version was read, the transaction may not have seen it: the earlier time stays.
func (t *queueTable) corrected(names []Queue, versions []uint64, next [][classes]int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, name := range names {
		q := t.queues[name]
		if q == nil {
			continue
		}
		for c, due := range next[i] {
			switch {
			case due < 0:
			case q.version != versions[i]:
				q.next[c] = min(q.next[c], due)
			default:
				q.next[c] = due
			}
		}
		t.settleQueue(q)
	}
}

// queueHeap is a binary heap of queues by key, that knows where each queue stands.
type queueHeap struct {
	items    []heapItem
	position func(*queue) *int
}

type heapItem struct {
	key   int64
	queue *queue
}

// set inserts the queue or changes its key.
func (h *queueHeap) set(q *queue, key int64) {
	at := h.position(q)
	if *at < 0 {
		*at = len(h.items)
		h.items = append(h.items, heapItem{key, q})
	}
	h.items[*at].key = key
	h.down(h.up(*at))
}

// remove takes the queue out, if it is in.
func (h *queueHeap) remove(q *queue) {
	at := h.position(q)
	i := *at
	if i < 0 {
		return
	}
	last := len(h.items) - 1
	h.swap(i, last)
	h.items[last] = heapItem{}
	h.items = h.items[:last]
	*at = -1
	if i < last {
		h.down(h.up(i))
	}
}

func (h *queueHeap) swap(i, j int) {
	h.items[i], h.items[j] = h.items[j], h.items[i]
	*h.position(h.items[i].queue) = i
	*h.position(h.items[j].queue) = j
}

func (h *queueHeap) up(i int) int {
	for i > 0 && h.items[i].key < h.items[(i-1)/2].key {
		h.swap(i, (i-1)/2)
		i = (i - 1) / 2
	}
	return i
}

func (h *queueHeap) down(i int) {
	for {
		least := i
		for _, child := range [2]int{2*i + 1, 2*i + 2} {
			if child < len(h.items) && h.items[child].key < h.items[least].key {
				least = child
			}
		}
		if least == i {
			return
		}
		h.swap(i, least)
		i = least
	}
}
