package delivery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"relayd/internal/mail"
	"relayd/spool"
)

// Hold is an operator's suspension of a site or a provider.
type Hold struct {
	Since  time.Time
	Until  time.Time // zero: until it is resumed
	Who    string
	Reason string
}

// holds tells whether it is in force.
func (h *Hold) holds(now time.Time) bool {
	return h != nil && (h.Until.IsZero() || now.Before(h.Until))
}

// SiteState is what is known of one site, or of one provider over all its sites.
type SiteState struct {
	Name     string // of a provider: provider:NAME
	Kind     string // site, smarthost or provider
	Provider string // of a site, "" for none
	Hosts    string // the MX hosts by preference
	State    string // active, idle, limited, paused or suspended
	// Limit is the reason of the last word but active and idle, in the words of Wait, and LimitedBy the limit's name.
	Limit     string
	LimitedBy string
	Until     time.Time // when that ends; zero: not known

	Connections int // open now, in use
	Idle        int // and waiting for mail
	Window      int // allowed now
	Ceiling     int // allowed at most
	Ready       int // transactions that are ready
	Leased      int // envelopes under lease
	Queues      int // queues that wait for a lease
	Sites       int // of a provider

	Speed     float64 // messages per second, the last minute above all
	Pace      float64 // messages per second that are allowed since a complaint; 0: it never complained
	Rate      string  // that is configured
	Messages  int     // over one connection
	Failures  int     // pauses in a row
	Paused    time.Time
	Resume    time.Time
	Cause     string // of the pause: unreachable, throttled, auth
	LastReply mail.Reply
	LastHost  string
	Hold      *Hold
	Used      time.Time
}

// The states of a site.
const (
	stateActive    = "active"
	stateIdle      = "idle"
	stateLimited   = "limited"
	statePaused    = "paused"
	stateSuspended = "suspended"
)

// ErrNoSite is returned for a name that is neither a known site nor a provider.
var ErrNoSite = errors.New("no such site")

// SiteStates tells what is known of every site and provider, those that hold mail first, then by name.
func (s *Scheduler) SiteStates() []SiteState {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	held := s.memory.held()
	for name := range held {
		if provider, ok := strings.CutPrefix(name, providerPrefix); ok {
			s.providerOf(provider)
		}
	}
	var sites []SiteState
	for key, r := range s.memory.paused(now) { // by an earlier process, and no mail for it was due in this one
		if provider, ok := strings.CutPrefix(key, providerPrefix); ok {
			s.providerOf(provider)
		} else if s.sites[key] == nil {
			name := nameOfKey(key)
			sites = append(sites, SiteState{
				Name: name, Kind: scopeSite, Hosts: hostsText(key), State: statePaused, Limit: waitSuspended, LimitedBy: name, Until: r.Resume,
				Window: r.Window, Pace: r.Pace, Failures: r.Failures, Paused: r.Paused, Resume: r.Resume, Cause: r.Cause,
				LastReply: r.Reply, LastHost: r.Host,
			})
		}
	}
	out := make([]SiteState, 0, len(s.sites)+len(s.providers))
	sum := map[*limiter]*SiteState{}
	for _, l := range s.providers {
		out = append(out, s.stateOf(l, now))
	}
	for i := range out {
		sum[s.providers[strings.TrimPrefix(out[i].Name, providerPrefix)]] = &out[i]
	}
	seen := map[string]bool{}
	for _, st := range s.sites {
		x := s.siteState(st, now)
		seen[x.Name] = true
		if p := sum[st.provider]; p != nil {
			p.Sites++
			p.Ready += x.Ready
			p.Leased += x.Leased
			p.Queues += x.Queues
			p.Idle += x.Idle
			if x.Used.After(p.Used) {
				p.Used = x.Used
			}
		}
		sites = append(sites, x)
	}
	for name, h := range held { // suspended before any mail went there
		if !seen[name] && !strings.HasPrefix(name, providerPrefix) && h.holds(now) {
			sites = append(sites, SiteState{Name: name, Kind: scopeSite, State: stateSuspended, Limit: waitOperator, LimitedBy: name, Until: h.Until, Hold: h})
		}
	}
	out = append(out, sites...)
	rank := func(x *SiteState) int { return -x.Connections - x.Ready - x.Leased - x.Queues }
	slices.SortFunc(out, func(a, b SiteState) int {
		return cmp.Or(cmp.Compare(rank(&a), rank(&b)), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Hosts, b.Hosts))
	})
	return out
}

// siteState is that of one site. The caller holds mu.
func (s *Scheduler) siteState(st *site, now time.Time) SiteState {
	x := s.stateOf(st.own, now)
	x.Hosts, x.Ready, x.Leased, x.Used = hostsText(st.key), st.waiting(), st.leased, st.used
	x.Window, x.Messages = st.window(), st.terms.Load().messages
	if st.route.smart != nil {
		x.Kind, x.Hosts = "smarthost", st.route.smart.Address
	}
	if st.provider != nil {
		x.Provider = st.provider.name
	}
	_, x.Idle = s.pool.size(st.key)
	for _, f := range st.flows {
		x.Queues += len(f.queues)
	}
	if d := st.closed(now); d != nil && (x.State == stateActive || x.State == stateIdle) {
		x.blame(d)
	} else if x.State == stateIdle && st.busy() {
		x.State = stateActive
	}
	return x
}

// hostsText tells people the hosts of a site.
func hostsText(key string) string { return strings.NewReplacer(",", " ", ";", " then ").Replace(key) }

// stateOf is what a limiter alone tells. The caller holds mu.
func (s *Scheduler) stateOf(l *limiter, now time.Time) SiteState {
	g := l.gov
	x := SiteState{
		Name: l.label(), Kind: l.scope, State: stateIdle, Connections: l.running, Window: g.allowed(), Ceiling: g.ceiling,
		Speed: g.speed.now(now), Pace: g.pace, Rate: l.spec, Failures: g.failures, Paused: g.paused, Resume: g.resume, Cause: g.cause,
		LastReply: g.reply, LastHost: g.host,
	}
	if l.most > 0 {
		x.Window, x.Ceiling = min(x.Window, l.most), min(x.Ceiling, l.most)
	}
	if l.running > 0 {
		x.State = stateActive
	}
	if l.hold.holds(now) {
		x.Hold = l.hold
	}
	if d := l.closed(now); d != nil {
		x.blame(d)
	}
	return x
}

// blame says what holds a site.
func (x *SiteState) blame(d *denial) {
	x.Limit, x.LimitedBy, x.Until = d.reason, d.by.label(), d.until
	switch d.reason {
	case waitOperator:
		x.State = stateSuspended
		x.Until = d.by.hold.Until
	case waitSuspended:
		x.State = statePaused
	default:
		x.State = stateLimited
	}
}

// SuspendSite keeps mail from a site, or from all sites of provider:NAME, until a time, for good with the zero time. What is
// being sent is finished, what waits loses no attempt. A site need not be known yet.
func (s *Scheduler) SuspendSite(ctx context.Context, name string, h Hold) error {
	if err := s.checkSite(name); err != nil {
		return err
	}
	name = strings.ToLower(name)
	if err := s.memory.setHold(ctx, name, &h); err != nil {
		return fmt.Errorf("suspend site %s: %w", name, err)
	}
	s.mu.Lock()
	for _, l := range s.named(name) {
		l.hold = &h
	}
	for _, st := range s.sites {
		if st.name == name || st.provider != nil && st.provider.label() == name {
			s.kick(st)
		}
	}
	s.mu.Unlock()
	s.log.Warn("site.held", "site", name, "who", h.Who, "reason", h.Reason, "until", untilText(h.Until))
	return nil
}

func untilText(t time.Time) string {
	if t.IsZero() {
		return "resumed"
	}
	return t.UTC().Format(time.RFC3339)
}

// ResumeSite ends an operator's suspension, and a pause of relayd's own: the next connection is made at once. It tells
// whether there was anything to end.
func (s *Scheduler) ResumeSite(ctx context.Context, name, who, reason string) (changed bool, err error) {
	if err := s.checkSite(name); err != nil {
		return false, err
	}
	name = strings.ToLower(name)
	if changed, err = s.memory.dropHold(ctx, name, Hold{Who: who, Reason: reason}); err != nil {
		return false, fmt.Errorf("resume site %s: %w", name, err)
	}
	now := s.now()
	s.mu.Lock()
	for _, l := range s.named(name) {
		l.hold = nil
		if now.Before(l.gov.resume) {
			changed = true
			s.suspended--
			s.metrics.suspended.Set(float64(s.suspended))
			l.gov.forgive()
			s.keep(l)
		}
		l.booked = time.Time{}
		s.call(l)
	}
	for key, r := range s.memory.paused(now) {
		if s.sites[key] == nil && nameOfKey(key) == name {
			changed = true
			over := *r
			over.At, over.Failures, over.Resume = now, 0, time.Time{}
			s.memory.note(key, &over)
		}
	}
	others := map[string]bool{} // domains that go elsewhere
	for domain, site := range s.known {
		others[domain] = site.name != name && providerPrefix+s.providerName(site.name) != name
	}
	s.mu.Unlock()
	if !changed {
		return false, nil
	}
	for _, q := range s.store.QueueStats() { // those that were sent away come back at once
		if fixed, ok := s.fixedSite(q.Queue.Domain); ok && fixed != name || others[q.Queue.Domain] {
			continue
		}
		s.store.Recall(q.Queue)
	}
	s.log.Warn("site.released", "site", name, "who", who, "reason", reason)
	return true, nil
}

// providerName is that of a site by its name, "" for none.
func (s *Scheduler) providerName(site string) string {
	if p := s.rollup.Load().find(site); p != nil {
		return p.Name
	}
	return ""
}

// checkSite refuses names that no site can have.
func (s *Scheduler) checkSite(name string) error {
	if provider, ok := strings.CutPrefix(strings.ToLower(name), providerPrefix); ok {
		if !s.rollup.Load().names()[provider] {
			return fmt.Errorf("%w: the provider rules know no %q", ErrNoSite, mail.CleanText(provider, 80))
		}
		return nil
	}
	if s.HasSite(name) {
		return nil
	}
	if _, err := mail.ParseDomain(name, false); err != nil || !strings.Contains(name, ".") {
		return fmt.Errorf("%w: %q is neither a host name nor a smarthost; relayctl site list names those that are known", ErrNoSite, mail.CleanText(name, 80))
	}
	return nil
}

// named returns the limiters of sites and providers with that name. The caller holds mu.
func (s *Scheduler) named(name string) []*limiter {
	if provider, ok := strings.CutPrefix(name, providerPrefix); ok {
		if l := s.providerOf(provider); l != nil {
			return []*limiter{l}
		}
		return nil
	}
	var out []*limiter
	for _, st := range s.sites {
		if st.name == name {
			out = append(out, st.own)
		}
	}
	return out
}

// waitOf names the limit that keeps due envelopes of a queue from being attempted, for Waiting. The caller holds mu.
func (s *Scheduler) waitOf(st *site, q spool.Queue, now time.Time) (Wait, bool) {
	d := st.closed(now)
	f := st.flows[flowKey{q.Account, q.Stream}]
	if d == nil && f != nil {
		d = f.denied(now)
	}
	if d == nil {
		for _, l := range []*limiter{s.accounts[q.Account], s.campaigns[q.Stream]} {
			if l != nil && d == nil {
				d = l.closed(now)
			}
		}
	}
	if d == nil {
		d = st.full()
	}
	if d == nil {
		return Wait{}, false
	}
	w := Wait{Site: st.name, Reason: d.reason, Until: d.until, Limit: d.by.scope + " " + d.by.name, Scope: d.by.scope}
	w.Own = d.reason == waitConnections && d.by.asked != nil && d.by.ceiling() != d.by.most
	switch d.reason {
	case waitOperator:
		h := d.by.hold
		w.Since, w.Until = h.Since, h.Until
		w.Text = fmt.Sprintf("%s has suspended %s: relayctl site resume %s", h.Who, d.by.label(), d.by.label())
		if h.Reason != "" {
			w.Text = fmt.Sprintf("%s has suspended %s (%s): relayctl site resume %s", h.Who, d.by.label(), h.Reason, d.by.label())
		}
	case waitSuspended:
		g := d.by.gov
		w.Since, w.Reply, w.Host = g.paused, g.reply, g.host
		w.Text = fmt.Sprintf("paused after %d failures in a row", g.failures)
		if d.by.scope == scopeProvider {
			w.Text = fmt.Sprintf("all sites of %s are paused after %d failures in a row", d.by.name, g.failures)
		}
	case waitRate:
		w.Text = fmt.Sprintf("the rate of %s %s is reached (delivery.limits.%s: %s)", d.by.scope, d.by.name, d.by.scope, d.by.spec)
	case waitPace:
		w.Text = fmt.Sprintf("%s complained about the rate and gets %.3g messages a second for now", d.by.label(), d.by.gov.pace)
	case waitConnections:
		w.Text = fmt.Sprintf("%s %s has all the connections or transactions that it may have (%d)", d.by.scope, d.by.name, d.by.ceiling())
	case waitWindow:
		w.Text = fmt.Sprintf("%d of %d connections of %s are busy, %d transactions are ready before it", d.by.running, d.by.gov.allowed(), d.by.label(), st.waiting())
	}
	return w, true
}
