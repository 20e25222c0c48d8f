package app

import (
	"net/netip"
	"sync"
	"time"
)

// What strangers may leave behind in an hour, all together; one source (an IPv4 address, an IPv6 /64) gets a quarter. It is
// durable, and nothing but their word asks for it.
const (
	operatorPerHour = 64 << 20  // octets of mail for the operator, each message at least leastForward
	leastForward    = 64 << 10  // so that there are a thousand in an hour at most
	eventsPerHour   = 10_000    // of reports and unsubscribe mail that come again
	sourcePart      = 4         // one source's part is one in so many
	allowanceWindow = time.Hour // what may be used at once, and is then earned again
)

// allowance counts what strangers use of something. Its methods may be called from many goroutines; the zero value is not
// usable.
type allowance struct {
	perHour int64

	mu     sync.Mutex
	all    time.Time // when everything will have been earned again
	source map[netip.Prefix]time.Time
}

func newAllowance(perHour int64) *allowance {
	return &allowance{perHour: perHour, source: map[netip.Prefix]time.Time{}}
}

// pass takes cost for a source, and tells whether there was as much.
func (a *allowance) pass(p netip.Prefix, cost int64, now time.Time) bool {
	cost = min(cost, a.perHour/sourcePart) // nothing is too large for an allowance that is whole
	a.mu.Lock()
	defer a.mu.Unlock()
	all, one := debt(a.all, now), debt(a.source[p], now)
	moreAll, moreOne := share(cost, a.perHour), share(cost, a.perHour/sourcePart)
	ok := all+moreAll <= allowanceWindow && one+moreOne <= allowanceWindow
	if ok {
		all, one = all+moreAll, one+moreOne
		a.forget(now)
	}
	if a.all = now.Add(all); one > 0 {
		a.source[p] = now.Add(one)
	}
	return ok
}

// forget drops the sources that have earned all again, where there are many. Each of the others has used something within
// the hour, so that they are few enough.
func (a *allowance) forget(now time.Time) {
	if len(a.source) < eventsPerHour {
		return
	}
	for p, until := range a.source {
		if !until.After(now) {
			delete(a.source, p)
		}
	}
}

// debt is how long it takes from now until all will have been earned again. A clock that was set back costs an hour at most.
func debt(until, now time.Time) time.Duration {
	return min(max(0, until.Sub(now)), allowanceWindow)
}

// share is the part of the window in which cost is earned.
func share(cost, perHour int64) time.Duration {
	return time.Duration(float64(cost) / float64(perHour) * float64(allowanceWindow))
}
