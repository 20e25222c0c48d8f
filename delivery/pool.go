package delivery

import (
	"context"
	"net"
	"sync"
	"time"
)

// pool keeps open sessions of sites that have nothing to send right now. Safe for concurrent use.
type pool struct {
	mu     sync.Mutex
	idle   map[string][]*Session // by site, the last used at the end
	groups map[string]string     // provider of each site that has idle sessions, where it has one
	counts map[string]int        // idle sessions by provider
	count  int
	closed bool
	keep   time.Duration // idle time, 0: none
	now    func() time.Time
}

// home is where a session belongs.
type home struct {
	site     string // key
	provider string // name, "" for none
	messages int    // that a session may send
}

// home is where the site's sessions belong.
func (st *site) home() home {
	t := st.terms.Load()
	return home{site: st.key, provider: t.provider, messages: t.messages}
}

func newPool(cfg Config, now func() time.Time) *pool {
	return &pool{
		idle: map[string][]*Session{}, groups: map[string]string{}, counts: map[string]int{}, keep: cfg.IdleTimeout, now: now,
	}
}

// take returns the session of the site that was used last, or nil.
func (p *pool) take(site string) *Session {
	s, worn := p.pop(site)
	if worn != nil {
		worn.Close()
	}
	return s
}

// pop is take, which leaves it to the caller to close one that was idle for too long.
func (p *pool) pop(site string) (s, worn *Session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.idle[site]
	if len(list) == 0 {
		return nil, nil
	}
	s = list[len(list)-1]
	list[len(list)-1] = nil
	p.set(site, list[:len(list)-1])
	if p.now().Sub(s.lastUsed) > p.keep {
		return nil, s
	}
	return s, nil
}

// put takes a session back. One that is broken or worn out is closed.
func (p *pool) put(h home, s *Session) {
	if !p.usable(s, h.messages) || p.keep == 0 {
		s.Close()
		return
	}
	s.lastUsed = p.now()
	p.mu.Lock()
	if !p.closed {
		p.set(h.site, append(p.idle[h.site], s))
		p.regroup(h.site, h.provider)
		s = nil
	}
	p.mu.Unlock()
	if s != nil {
		s.Close()
	}
}

// usable tells whether one more transaction may go over the session, of which there may be most.
func (p *pool) usable(s *Session, most int) bool { return !s.broken && s.sent < most }

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
func (p *pool) evict(but string) *Session { return p.evictOf("", but) }

// evictOf is evict among the sites of a provider, of all for "".
func (p *pool) evictOf(provider, but string) *Session {
	p.mu.Lock()
	defer p.mu.Unlock()
	var oldest *Session
	var of string
	for site, list := range p.idle {
		if site != but && (provider == "" || p.groups[site] == provider) && (oldest == nil || list[0].lastUsed.Before(oldest.lastUsed)) {
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

// join counts the idle sessions of a site to another provider, "" for none.
func (p *pool) join(site, provider string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.regroup(site, provider)
}

// regroup is join. The caller holds mu.
func (p *pool) regroup(site, provider string) {
	list := p.idle[site]
	if p.groups[site] == provider || len(list) == 0 {
		return
	}
	p.set(site, nil) // off the old account
	if provider != "" {
		p.groups[site] = provider
	}
	p.set(site, list)
}

// set replaces the list of a site. The caller holds mu.
func (p *pool) set(site string, list []*Session) {
	more := len(list) - len(p.idle[site])
	p.count += more
	if g := p.groups[site]; g != "" {
		if p.counts[g] += more; p.counts[g] == 0 {
			delete(p.counts, g)
		}
	}
	if len(list) == 0 {
		delete(p.idle, site)
		delete(p.groups, site)
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

// sizeOf is the number of idle sessions of a provider, and of one site.
func (p *pool) sizeOf(provider, site string) (all, ofSite int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts[provider], len(p.idle[site])
}

// rebind lets the session live as long as another context than the one that it was opened under.
func (s *Session) rebind(ctx context.Context) {
	if s == nil || !s.unwatch() {
		return // it is closed already
	}
	s.ctx = ctx
	conn := s.conn
	if inner, ok := conn.(interface{ NetConn() net.Conn }); ok { // TLS would want to say goodbye
		conn = inner.NetConn()
	}
	s.unwatch = context.AfterFunc(ctx, func() { _ = conn.Close() })
}

func closeAll(list []*Session) {
	for _, s := range list {
		s.Close()
	}
}
