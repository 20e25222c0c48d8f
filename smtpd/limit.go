package smtpd

import (
	"context"
	"net/netip"
	"sync"
	"time"
)

const (
	maxSources    = 16384 // whose failures are remembered
	forgetFailure = 10 * time.Minute
)

// limits counts connections and failed AUTH commands by source. Its memory is bounded: connections by their own limit,
// failures by maxSources.
type limits struct {
	cfg    *Config
	now    func() time.Time
	mu     sync.Mutex
	open   int
	source map[netip.Prefix]int
	failed map[netip.Prefix]failures
}

type failures struct {
	count int
	last  time.Time
}

func newLimits(cfg *Config, now func() time.Time) *limits {
	return &limits{cfg: cfg, now: now, source: map[netip.Prefix]int{}, failed: map[netip.Prefix]failures{}}
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

// admit counts a new connection. The reason is not empty when it is one too many.
func (l *limits) admit(p netip.Prefix) (reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.open >= l.cfg.MaxConnections:
		return "connections"
	case l.source[p] >= l.cfg.MaxConnectionsPerIP:
		return "connections_per_ip"
	}
	l.open++
	l.source[p]++
	return ""
}

// release forgets a connection that was admitted.
func (l *limits) release(p netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.source[p]--; l.source[p] == 0 {
		delete(l.source, p)
	}
}

// failure remembers a failed AUTH and returns by how much its answer is to be held back.
func (l *limits) failure(p netip.Prefix) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	f, known := l.failed[p]
	if now.Sub(f.last) > forgetFailure {
		f.count = 0
	}
	if !known && len(l.failed) >= maxSources {
		l.forget()
	}
	f.count++
	f.last = now
	l.failed[p] = f
	return min(l.cfg.AuthDelay, l.cfg.AuthDelay/32<<min(f.count-1, 5))
}

// forget makes room for a source: the longest silent of a few that chance picks goes.
func (l *limits) forget() {
	var victim netip.Prefix
	var last time.Time
	looked := 0
	for p, f := range l.failed {
		if looked == 0 || f.last.Before(last) {
			victim, last = p, f.last
		}
		if looked++; looked == 8 {
			break
		}
	}
	delete(l.failed, victim)
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
