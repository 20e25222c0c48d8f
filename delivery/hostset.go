package delivery

import (
	"sync"
	"time"
)

// hostSet remembers hosts for a time, within bounds. Safe for concurrent use.
type hostSet struct {
	mu    sync.Mutex
	until map[string]time.Time
}

const (
	brokenTLSFor  = 24 * time.Hour
	brokenConnFor = 10 * time.Minute
	knownTLSFor   = 7 * 24 * time.Hour
	maxHostSet    = 10_000
)

func newHostSet() *hostSet { return &hostSet{until: map[string]time.Time{}} }

func (h *hostSet) has(host string, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	t, ok := h.until[host]
	if ok && !now.Before(t) {
		delete(h.until, host)
		return false
	}
	return ok
}

func (h *hostSet) add(host string, until time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.until) >= maxHostSet { // forgetting costs a failed handshake each
		clear(h.until)
	}
	h.until[host] = until
}
