package smtpd

import (
	"context"
	"crypto/sha256"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxSources    = 16384 // whose failures are remembered; as many user names
	forgetFailure = 10 * time.Minute
)

// limits counts connections by source and account, and failed AUTH commands by source and user name. Its memory is
// bounded: connections by their own limit, failures by maxSources.
type limits struct {
	cfg       *Config
	now       func() time.Time
	displaced func() // told of each connection whose place another one gets
	hurry     atomic.Bool
	pressed   atomic.Bool
	mu        sync.Mutex
	open      int
	inbound   int // of open
	admitted  uint64
	source    map[netip.Prefix]int
	account   map[string]int
	strangers map[*place]struct{}  // connections to submission listeners that have not authenticated
	strange   map[netip.Prefix]int // their number by source
	leaving   int                  // displaced, and not yet gone
	failed    failures[netip.Prefix]
	guessed   failures[[sha256.Size]byte] // by hash of the user name, which may be long and is the client's choice
}

func newLimits(cfg *Config, now func() time.Time) *limits {
	return &limits{
		cfg: cfg, now: now, displaced: func() {}, source: map[netip.Prefix]int{}, account: map[string]int{}, strangers: map[*place]struct{}{},
		strange: map[netip.Prefix]int{}, failed: failures[netip.Prefix]{}, guessed: failures[[sha256.Size]byte]{},
	}
}

// sourceOf groups addresses as they are handed out: one IPv4 address, one IPv6 /64.
func sourceOf(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil { // no address at all: a pipe
		return netip.Prefix{}
	}
	return p
}

// place is what a connection has that was let in. Its fields are the limits'.
type place struct {
	conn    io.Closer
	kind    string // of the listener
	source  netip.Prefix
	number  uint64 // in the order of coming
	account string // that it has authenticated for
	given   bool   // to another connection: this one is closed
}

// admit gives a new connection to a kind of listener its place. The reason is not empty when it is one too many. Inbound
// connections get no more than what makes stress: port 25 is open to the world, and must not keep the owner's applications
// out. No more than that have those on submission listeners that have not authenticated, and they keep nobody out: where there
// is no room, one of them gives its place to the newcomer, who may be an application.
func (l *limits) admit(conn io.Closer, source netip.Prefix, kind string) (at *place, reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	share := max(1, l.cfg.MaxConnections*l.cfg.StressPercent/100)
	switch {
	case kind == Inbound && l.inbound >= share:
		return nil, "connections"
	case !l.fits(source):
		return nil, "connections_per_ip"
	case l.open >= l.cfg.MaxConnections || kind == Submission && len(l.strangers) >= share:
		if l.leaving >= share || !l.displace() {
			return nil, "connections"
		}
	}
	l.admitted++
	at = &place{conn: conn, kind: kind, source: source, number: l.admitted}
	l.open++
	l.source[source]++
	if kind == Inbound {
		l.inbound++
	} else {
		l.strangers[at] = struct{}{}
		l.strange[source]++
	}
	l.weigh()
	return at, ""
}

// displace closes the connection of a stranger: among a few that chance picks, one of the source that has most of them, and
// of these the one that has been here for longest. The caller holds mu.
func (l *limits) displace() bool {
	var victim *place
	looked := 0
	for at := range l.strangers {
		if victim == nil || l.strange[at.source] > l.strange[victim.source] ||
			l.strange[at.source] == l.strange[victim.source] && at.number < victim.number {
			victim = at
		}
		if looked++; looked == 16 {
			break
		}
	}
	if victim == nil {
		return false
	}
	l.forget(victim)
	victim.given = true
	l.leaving++
	_ = victim.conn.Close()
	l.displaced()
	return true
}

// fits tells whether a source may have one more. The caller holds mu.
func (l *limits) fits(p netip.Prefix) bool {
	return !p.IsValid() || l.source[p] < l.cfg.MaxConnectionsPerIP // who comes through a proxy is not known at first
}

// move counts an admitted connection under the source that its proxy has named. The reason is not empty when it is one
// too many.
func (l *limits) move(at *place, to netip.Prefix) (reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case at.given:
		return "connections"
	case !l.fits(to):
		return "connections_per_ip"
	}
	stranger := l.known(at)
	subtract(l.source, at.source)
	at.source = to
	l.source[to]++
	if stranger && at.kind == Submission {
		l.strangers[at] = struct{}{}
		l.strange[to]++
	}
	return ""
}

// known takes a connection from the strangers, and tells whether it was one. The caller holds mu.
func (l *limits) known(at *place) bool {
	_, stranger := l.strangers[at]
	if stranger {
		delete(l.strangers, at)
		subtract(l.strange, at.source)
	}
	return stranger
}

// subtract takes one from a count. What has none is not kept.
func subtract[K comparable](m map[K]int, key K) {
	if m[key]--; m[key] <= 0 {
		delete(m, key)
	}
}

// weigh finds out whether the server is overloaded. The caller holds mu.
func (l *limits) weigh() {
	l.hurry.Store(l.open*100 >= l.cfg.MaxConnections*l.cfg.StressPercent)
	l.pressed.Store((l.open-len(l.strangers))*100 >= l.cfg.MaxConnections*l.cfg.StressPercent)
}

// stressed tells that so many connections are open that the server waits for none of them for long: for none that has
// authenticated where those are not counted that would have to give their place anyway.
func (l *limits) stressed(authenticated bool) bool {
	if authenticated {
		return l.pressed.Load()
	}
	return l.hurry.Load()
}

// login counts a connection for an account; false when it is one too many.
func (l *limits) login(at *place, account string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.account[account] >= l.cfg.MaxConnectionsPerAccount {
		return false
	}
	l.account[account]++
	at.account = account
	l.known(at)
	l.weigh()
	return true
}

// forget takes the place of a connection. The caller holds mu.
func (l *limits) forget(at *place) {
	l.open--
	if at.kind == Inbound {
		l.inbound--
	}
	subtract(l.source, at.source)
	l.known(at)
	l.weigh()
}

// release forgets a connection that was admitted and is gone.
func (l *limits) release(at *place) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at.account != "" {
		subtract(l.account, at.account)
	}
	if at.given {
		l.leaving--
		return
	}
	l.forget(at)
}

// gaveWay tells whether the place of a connection was given to another.
func (l *limits) gaveWay(at *place) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return at.given
}

// failure remembers a failed AUTH for a user name, "" for none that could be read, and returns by how much its answer is
// to be held back. A right password is never held back: nobody can lock out another.
func (l *limits) failure(p netip.Prefix, username string) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.failed.add(p, l.now())
	if username != "" {
		n = max(n, l.guessed.add(sha256.Sum256([]byte(username)), l.now()))
	}
	return min(l.cfg.AuthDelay, l.cfg.AuthDelay/32<<min(n-1, 5))
}

// failures counts by key, for at most maxSources keys.
type failures[K comparable] map[K]failed

type failed struct {
	count int
	last  time.Time
}

// add counts one more and returns how many there were of late.
func (m failures[K]) add(key K, now time.Time) int {
	f, known := m[key]
	if now.Sub(f.last) > forgetFailure {
		f.count = 0
	}
	if !known && len(m) >= maxSources {
		m.forget()
	}
	f.count++
	f.last = now
	m[key] = f
	return f.count
}

// forget makes room for a key: the longest silent of a few that chance picks goes.
func (m failures[K]) forget() {
	var victim K
	var last time.Time
	looked := 0
	for key, f := range m {
		if looked == 0 || f.last.Before(last) {
			victim, last = key, f.last
		}
		if looked++; looked == 8 {
			break
		}
	}
	delete(m, victim)
}

// wait sleeps for d or until ctx ends.
func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
