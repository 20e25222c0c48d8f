package delivery

import (
	"math/rand/v2"
	"time"

	"relayd/internal/mail"
)

// governor finds out how much one receiver, a site or a provider, takes below the ceilings that are set. The scheduler's
// lock holds every field.
//
// Connections: the window begins small and grows by one for each success until the receiver first complains. From then on
// N successes in a row of N connections win one more, and trouble takes one away: the first of a run of failures at once
// (reverse hysteresis), further ones of the same run by 1/N each. A reply about the rate begins anew with one connection.
//
// Pace: a receiver that complains about the rate is sent less than it took before, and then slowly more, slowest near the
// pace at which it complained.
type governor struct {
	ceiling   int // connections that are allowed at most
	window    int // connections that are allowed now
	threshold int // up to which the window grows fast
	credit    float64
	debt      float64
	failing   bool // the last thing that was heard was trouble

	failures int       // pauses in a row
	paused   time.Time // when the first of them began
	resume   time.Time
	cause    string     // of the pause
	reply    mail.Reply // of the pause
	host     string     // that gave it

	speed     speedometer
	pace      float64   // messages per second that it takes, 0: never complained
	complaint float64   // pace at which it complained last
	paced     *gcra     // holds pace
	grown     time.Time // when pace was last raised
	resumed   time.Time // end of the last pause
}

// initialWindow is how many connections a receiver gets once one session was opened.
const initialWindow = 5

// newGovernor begins with as many connections as start.
func newGovernor(ceiling, start int) *governor {
	return &governor{ceiling: ceiling, window: min(start, ceiling), threshold: ceiling}
}

// bound sets another ceiling; what was learned below it stands.
func (g *governor) bound(ceiling int) {
	if g.threshold >= g.ceiling { // nothing was learned yet, or the ceiling was what held
		g.threshold = ceiling
	}
	g.ceiling = ceiling
	g.window, g.threshold = min(g.window, ceiling), min(g.threshold, ceiling)
}

// allowed is how many connections there may be.
func (g *governor) allowed() int { return min(g.window, g.ceiling) }

// sent notes n messages that were handed over and not answered with trouble, with so many connections busy. It tells
// whether a pause is over for good.
func (g *governor) sent(now time.Time, n, busy int) (recovered bool) {
	g.speed.add(now, n)
	if now.Before(g.resume) { // it was under way when the pause began: that it ended well tells nothing
		return false
	}
	g.failing, g.debt = false, 0
	recovered = g.failures > 0
	g.failures = 0
	g.raise(now)
	if busy+initialWindow < g.window { // as long as they are not used more would tell nothing
		return recovered
	}
	if g.window < g.threshold {
		g.window++
	} else if g.credit += 1 / float64(max(1, g.window)); g.credit >= 1 {
		g.credit = 0
		g.window++
		g.threshold = max(g.threshold, g.window)
	}
	g.window = min(g.window, g.ceiling)
	return recovered
}

// refused notes that a connection beside running others was refused or broke before it was open.
func (g *governor) refused(running int) {
	g.credit = 0
	if !g.failing {
		g.failing, g.debt = true, 0
		g.window = max(1, min(g.window, running)-1)
	} else if g.debt += 1 / float64(max(1, g.window)); g.debt >= 1 {
		g.debt = 0
		g.window = max(1, g.window-1)
	}
	g.threshold = g.window
}

// Figures of the pace. With them a receiver with a fixed rate is used to nine tenths, pauses included.
const (
	paceBack     = 0.85             // of what it took, after a complaint
	paceHalf     = 0.5              // of the pace, after a complaint that came soon
	paceSoon     = 15 * time.Minute // after a pause
	paceFast     = 0.60             // growth per hour far from the last complaint
	paceSlow     = 0.06             // and near it
	paceFree     = 3.00             // and well above it: that complaint was about something else
	paceNear     = 0.90             // of the pace of the last complaint, where near begins
	paceFar      = 1.15             // and where it ends
	paceStep     = time.Minute      // between two raises
	paceFloor    = 1.0 / 60         // messages per second, the least that is tried
	paceMessages = 20               // so many must have been measured
)

// throttled pauses the receiver: first, doubling up to most, ±10 %. A complaint about the rate also lowers the pace.
func (g *governor) throttled(now time.Time, p *pause, first, most time.Duration) (delay time.Duration) {
	if p.rate {
		g.slow(now)
	}
	if g.failures++; g.failures == 1 {
		g.paused = now
	}
	delay = backoff(first, most, g.failures, rand.Float64())
	if p.rate {
		delay = max(delay, first) // less than what was asked for would be a complaint more
	}
	g.resume, g.resumed = now.Add(delay), now.Add(delay)
	g.cause, g.reply, g.host = p.cause, p.reply, p.host
	if p.rate || p.cause != causeUnreachable {
		g.threshold = 1
	} else {
		g.threshold = max(1, g.window)
	}
	g.window, g.credit, g.debt, g.failing = 1, 0, 0, true
	return delay
}

// slow lowers the pace after a complaint.
func (g *governor) slow(now time.Time) {
	measured := g.speed.now(now)
	soon := g.pace > 0 && !g.resumed.IsZero() && now.Sub(g.resumed) < paceSoon
	switch {
	case soon:
		g.complaint = g.pace
		g.pace *= paceHalf
	case g.speed.seen < paceMessages:
		return
	case g.pace > 0:
		g.complaint = g.pace
		g.pace = min(g.pace, max(measured, g.pace*paceHalf)) * paceBack
	default:
		g.complaint = measured
		g.pace = measured * paceBack
	}
	g.pace = max(g.pace, paceFloor)
	g.grown = now
	g.hold()
}

// raise lets the pace grow where it is what holds the mail back.
func (g *governor) raise(now time.Time) {
	passed := now.Sub(g.grown)
	if g.pace == 0 || passed < paceStep {
		return
	}
	g.grown = now
	if g.speed.now(now) < g.pace*0.7 {
		return
	}
	rate := paceFast
	switch share := g.pace / g.complaint; {
	case share >= paceFar:
		rate = paceFree
	case share > paceNear:
		rate = paceSlow
	}
	g.pace *= 1 + rate*min(passed, 10*paceStep).Hours()
	g.hold()
}

// hold makes the pace count.
func (g *governor) hold() {
	if g.paced == nil {
		g.paced = &gcra{}
	}
	g.paced.set(g.pace, g.pace)
}

// forgive ends a pause before its time.
func (g *governor) forgive() {
	g.failures, g.resume, g.failing = 0, time.Time{}, false
}
