package smtpd

import (
	"context"
	"crypto/sha256"
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
	cfg     *Config
	now     func() time.Time
	hurry   atomic.Bool
	mu      sync.Mutex
	open    int
	inbound int // of open
	source  map[netip.Prefix]int
	account map[string]int
	failed  failures[netip.Prefix]
	guessed failures[[sha256.Size]byte] // by hash of the user name, which may be long and is the client's choice
}

func newLimits(cfg *Config, now func() time.Time) *limits {
	return &limits{
		cfg: cfg, now: now, source: map[netip.Prefix]int{}, account: map[string]int{},
		failed: failures[netip.Prefix]{}, guessed: failures[[sha256.Size]byte]{},
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

// admit counts a new connection to a kind of listener. The reason is not empty when it is one too many. Inbound connections
// get no more than what makes stress: port 25 is open to the world, and must not keep the owner's applications out.
func (l *limits) admit(p netip.Prefix, kind string) (reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.open >= l.cfg.MaxConnections, kind == Inbound && l.inbound >= max(1, l.cfg.MaxConnections*l.cfg.StressPercent/100):
		return "connections"
	case !l.fits(p):
		return "connections_per_ip"
	}
	l.open++
	if kind == Inbound {
		l.inbound++
	}
	l.source[p]++
	l.weigh()
	return ""
}

// fits tells whether a source may have one more. The caller holds mu.
func (l *limits) fits(p netip.Prefix) bool {
	return !p.IsValid() || l.source[p] < l.cfg.MaxConnectionsPerIP // who comes through a proxy is not known at first
}

// move counts an admitted connection under the source that its proxy has named. The reason is not empty when it is one
// too many.
func (l *limits) move(from, to netip.Prefix) (reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.fits(to) {
		return "connections_per_ip"
	}
	l.leave(from)
	l.source[to]++
	return ""
}

// leave takes one from a source. The caller holds mu.
func (l *limits) leave(p netip.Prefix) {
	if l.source[p]--; l.source[p] == 0 {
		delete(l.source, p)
	}
}

// weigh finds out whether the server is overloaded. The caller holds mu.
func (l *limits) weigh() {
	l.hurry.Store(l.open*100 >= l.cfg.MaxConnections*l.cfg.StressPercent)
}

// stressed tells that so many connections are open that the server waits for none of them for long.
func (l *limits) stressed() bool { return l.hurry.Load() }

// login counts a connection of an account; false when it is one too many.
func (l *limits) login(account string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.account[account] >= l.cfg.MaxConnectionsPerAccount {
		return false
	}
	l.account[account]++
	return true
}

// logout forgets what login counted.
func (l *limits) logout(account string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.account[account]--; l.account[account] == 0 {
		delete(l.account, account)
	}
}

// release forgets a connection that was admitted.
func (l *limits) release(p netip.Prefix, kind string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if kind == Inbound {
		l.inbound--
	}
	l.leave(p)
	l.weigh()
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
