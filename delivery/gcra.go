package delivery

import (
	"math"
	"time"
)

// gcra holds a rate (generic cell rate algorithm): one number says when the next message is due if all came evenly, and a
// message may be early by the burst. It keeps no history and needs no timer.
type gcra struct {
	interval time.Duration // between two messages
	early    time.Duration // how far ahead of its time one may come
	due      time.Time     // theoretical arrival time of the next
}

func newGCRA(r Rate) *gcra {
	g := &gcra{}
	g.set(float64(r.Count)/r.Period.Seconds(), float64(r.Burst))
	return g
}

// set changes the rate, in messages per second, and the burst. What was taken stays taken.
func (g *gcra) set(perSecond, burst float64) {
	g.interval = max(1, time.Duration(float64(time.Second)/perSecond))
	g.early = time.Duration((max(1, burst) - 1) * float64(g.interval))
}

// become changes the rate. What was taken counts on as messages, not as the time that they took: up to the new burst.
func (g *gcra) become(now time.Time, r Rate) {
	behind := float64(g.due.Sub(now)) / float64(g.interval)
	g.set(float64(r.Count)/r.Period.Seconds(), float64(r.Burst))
	if behind > 0 {
		g.due = now.Add(time.Duration(min(behind, float64(r.Burst)) * float64(g.interval)))
	}
}

// next is when the next message may leave; not after now when it may at once.
func (g *gcra) next() time.Time { return g.due.Add(-g.early) }

// take counts n messages that leave now. More than may leave at once delay those that follow.
func (g *gcra) take(now time.Time, n int) {
	if g.due.Before(now) {
		g.due = now
	}
	g.due = g.due.Add(time.Duration(n) * g.interval)
}

// refund takes back what did not leave after all.
func (g *gcra) refund(n int) { g.due = g.due.Add(-time.Duration(n) * g.interval) }

// allows is how many messages may leave until a time.
func (g *gcra) allows(now, until time.Time) int {
	from := g.next()
	if g.due.Before(now) {
		from = now.Add(-g.early)
	}
	if until.Before(from) {
		return 0
	}
	return int(min(float64(until.Sub(from))/float64(g.interval)+1, math.MaxInt32))
}

// speedometer measures messages per second, the last minute above all. The zero value stands still.
type speedometer struct {
	rate float64
	at   time.Time
	seen int // messages, up to what makes the figure worth something
}

// speedMemory is the time in which what was measured loses its weight.
const speedMemory = time.Minute

func (s *speedometer) add(now time.Time, n int) {
	s.rate = s.now(now) + float64(n)/speedMemory.Seconds()
	s.at = now
	s.seen = min(s.seen+n, math.MaxInt32)
}

func (s *speedometer) now(now time.Time) float64 {
	if s.at.IsZero() || now.Before(s.at) {
		return s.rate
	}
	return s.rate * math.Exp(-now.Sub(s.at).Seconds()/speedMemory.Seconds())
}
