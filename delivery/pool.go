package delivery

import (
	"sync"
	"time"
)

// pool keeps open sessions of sites that have nothing to send right now. Safe for concurrent use.
type pool struct {
	mu     sync.Mutex
	idle   map[string][]*Session // by site, the last used at the end
	count  int
	closed bool
	most   int           // messages per session
	keep   time.Duration // idle time, 0: none
	now    func() time.Time
}

func newPool(cfg Config, now func() time.Time) *pool {
	return &pool{idle: map[string][]*Session{}, most: cfg.MaxMessagesPerConnection, keep: cfg.IdleTimeout, now: now}
}

// take returns the session of the site that was used last, or nil.
func (p *pool) take(site string) *Session {
	p.mu.Lock()
	list := p.idle[site]
	if len(list) == 0 {
		p.mu.Unlock()
		return nil
	}
	s := list[len(list)-1]
	list[len(list)-1] = nil
	p.set(site, list[:len(list)-1])
	p.mu.Unlock()
	if p.now().Sub(s.lastUsed) > p.keep {
		s.Close()
		return nil
	}
	return s
}

// put takes a session back. One that is broken or worn out is closed.
func (p *pool) put(site string, s *Session) {
	if !p.usable(s) || p.keep == 0 {
		s.Close()
		return
	}
	s.lastUsed = p.now()
	p.mu.Lock()
	if !p.closed {
		p.set(site, append(p.idle[site], s))
		s = nil
	}
	p.mu.Unlock()
	if s != nil {
		s.Close()
	}
}

// usable tells whether one more transaction may go over the session.
func (p *pool) usable(s *Session) bool { return !s.broken && s.sent < p.most }

// reap closes what was idle for too long and tells when to come back, zero for never.
func (p *pool) reap() time.Time {
	now := p.now()
	var worn []*Session
	var next time.Time
	p.mu.Lock()
	for site, list := range p.idle {
		n := 0
		for n < len(list) && now.Sub(list[n].lastUsed) >= p.keep {
			n++
		}
		worn = append(worn, list[:n]...)
		p.set(site, list[n:])
		if n < len(list) {
			if t := list[n].lastUsed.Add(p.keep); next.IsZero() || t.Before(next) {
				next = t
			}
		}
	}
	p.mu.Unlock()
	closeAll(worn)
	return next
}

// evict takes out the idle session of another site that was idle for longest, for the caller to close; nil for none.
func (p *pool) evict(but string) *Session {
	p.mu.Lock()
	defer p.mu.Unlock()
	var oldest *Session
	var of string
	for site, list := range p.idle {
		if site != but && (oldest == nil || list[0].lastUsed.Before(oldest.lastUsed)) {
			oldest, of = list[0], site
		}
	}
	if oldest != nil {
		p.set(of, p.idle[of][1:])
	}
	return oldest
}

// close closes all, and whatever is put back later.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	var all []*Session
	for site, list := range p.idle {
		all = append(all, list...)
		p.set(site, nil)
	}
	p.mu.Unlock()
	closeAll(all)
}

// set replaces the list of a site. The caller holds mu.
func (p *pool) set(site string, list []*Session) {
	p.count += len(list) - len(p.idle[site])
	if len(list) == 0 {
		delete(p.idle, site)
	} else {
		p.idle[site] = list
	}
}

// size is the number of idle sessions, in all and of one site.
func (p *pool) size(site string) (all, ofSite int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count, len(p.idle[site])
}

func closeAll(list []*Session) {
	for _, s := range list {
		s.Close()
	}
}
