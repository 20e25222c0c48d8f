package delivery

import "time"

// This file shares the connections in all among the sites: who may have one more, who waits for one, and who gives way.

// room tells whether one more worker fits in all; when not, the site is noted. The idle sessions of others that have to make
// room are for the worker to close before it connects. The caller holds mu.
func (s *Scheduler) room(st *site) (old []*Session, fits bool) {
	fits = s.fits(st)
	if fits {
		if p := st.provider; p != nil && p.most > 0 {
			if idle, own := s.pool.sizeOf(p.name, st.key); own == 0 && idle > 0 && p.running+idle >= p.most {
				old = append(old, s.pool.evictOf(p.name, st.key))
			}
		}
		idle, own := s.pool.size(st.key)
		if own == 0 && s.workers+idle >= s.cfg.MaxConnections {
			other := s.pool.evict(st.key)
			if fits = other != nil; fits {
				old = append(old, other)
			}
		}
	}
	if !fits {
		s.starve(st)
	}
	return old, fits
}

// fits tells whether the number of workers allows one more at the site. The caller holds mu.
func (s *Scheduler) fits(st *site) bool {
	taken := s.workers + s.called
	if st.called {
		taken--
	}
	return taken < s.cfg.MaxConnections && s.open(st.standing())
}

// open tells whether the number of workers at sites of that standing allows one more: dead sites must not take all there
// is, and those that failed last time little of it. The caller holds mu.
func (s *Scheduler) open(k standing) bool {
	switch k {
	case unknown:
		return s.unproven < max(1, s.cfg.MaxConnections/2)
	case failed:
		return s.suspects < max(1, s.cfg.MaxConnections/8)
	}
	return true
}

// starve notes that the site waits for a connection in all. The caller holds mu.
func (s *Scheduler) starve(st *site) {
	if !st.starved {
		st.starved = true
		st.stands = st.standing()
		s.starved[st.stands] = append(s.starved[st.stands], st)
		if st.own.running == 0 {
			s.bare[st.stands]++
		}
	}
}

// relieve lets sites that wait for a connection, or for one for bulk, try again, as long as there are any: first those that
// have none. The caller holds mu.
func (s *Scheduler) relieve() {
	s.first = (s.first + 1) % standings
	for i := range standings { // nobody is asked in vain: there may be thousands
		k := (s.first + i) % standings
		for n := len(s.starved[k]); n > 0 && s.workers+s.called < s.cfg.MaxConnections && s.open(k); n-- {
			st := s.starved[k][0]
			s.starved[k][0] = nil
			s.starved[k] = s.starved[k][1:]
			if st.own.running > 0 && s.bareWaits() > 0 { // its workers ask again
				s.starved[k] = append(s.starved[k], st)
				continue
			}
			st.starved = false
			if st.own.running == 0 {
				s.bare[k]--
			}
			s.kick(st)
			s.keepPlace(st)
		}
	}
	for n := len(s.crowded); n > 0 && s.workers+s.called < s.cfg.MaxConnections && s.bulk < bulkWindow(s.cfg.MaxConnections); n-- {
		st := s.crowded[0]
		s.crowded[0] = nil
		s.crowded = s.crowded[1:]
		if s.bareBulk > 0 && st.bulk > 0 {
			s.crowded = append(s.crowded, st)
			continue
		}
		st.crowded = false
		if st.bulk == 0 {
			s.bareBulk--
		}
		s.kick(st)
	}
}

// bareWaits tells how many sites without any connection wait for one that their standing allows. The caller holds mu.
func (s *Scheduler) bareWaits() (n int) {
	for k, of := range s.bare {
		if of > 0 && s.open(standing(k)) {
			n += of
		}
	}
	return n
}

// keepPlace keeps a place for a site that was called, has no connection and leases now: in all, and with its provider and
// source. The caller holds mu.
func (s *Scheduler) keepPlace(st *site) {
	if st.filling && st.own.running == 0 && !st.called {
		st.called = true
		s.called++
		for _, l := range st.limiters() {
			l.called++
		}
	}
}

// uncall gives up the place that is kept for a site. The caller holds mu.
func (s *Scheduler) uncall(st *site) {
	if st.called {
		st.called = false
		s.called--
		for _, l := range st.limiters() {
			l.called--
		}
	}
}

// callLines calls those who wait for the site's provider or source, or the site itself. The caller holds mu.
func (s *Scheduler) callLines(st *site) {
	for _, l := range st.limiters() {
		if len(l.line) > 0 {
			s.call(l)
		}
	}
}

// The turn of a worker: after so many transactions, or so long, it gives way where others wait who have no connection.
const (
	turnLength = 20
	turnTime   = 2 * time.Second
)

// givesWay tells whether a worker that has just sent bulk, or something else, ends although its site may have more for it:
// all connections are taken, in all or of its provider or source, its turn is over, and a site that has none could use its
// place. One gives way for each of those. The caller holds mu.
func (s *Scheduler) givesWay(w *worker, bulk bool, now time.Time) bool {
	if w.sent < turnLength && now.Sub(w.began) < turnTime {
		return false
	}
	if s.workers+s.called >= s.cfg.MaxConnections && s.bareWaits() > s.yielding {
		w.yield(&s.yielding)
		return true
	}
	for _, l := range w.site.limiters() {
		if l.full(l.running+l.called) != nil && l.bareWaits() {
			w.yield(&l.yielding)
			return true
		}
	}
	if bulk && s.bareBulk > s.yieldingBulk && s.bulk+1 >= bulkWindow(s.cfg.MaxConnections) { // it was counted off
		w.yield(&s.yieldingBulk)
		return true
	}
	return false
}

// yield counts the worker among those that end to give way, until it has ended. The caller holds mu.
func (w *worker) yield(of *int) {
	*of++
	w.yields = of
}

func (s *Scheduler) closeLater(old []*Session) {
	if len(old) > 0 {
		s.wg.Go(func() { closeAll(old) })
	}
}

// slowConnect is how long a host that nobody knows may take to answer while others wait for a connection. It is then tried
// again, with all the time of the configuration, among those that failed.
const slowConnect = 2 * time.Second

// hurry ends connecting that takes too long while new sites wait. It tells whether to come back soon.
func (s *Scheduler) hurry(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.starved[proven])+len(s.starved[unknown])+len(s.starved[failed]) == 0 || s.unproven < max(1, s.cfg.MaxConnections/2) {
		return false
	}
	for w := range s.fresh {
		if now.Sub(w.began) >= slowConnect && w.cancel != nil && !w.suspect && !w.hurried {
			w.hurried = true
			w.cancel()
		}
	}
	return true
}
