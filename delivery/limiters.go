package delivery

import (
	"cmp"
	"strings"
	"time"
)

// This file makes and forgets the limiters of sites, providers, accounts and campaigns.

// newSite makes a site with its limits and what is remembered of it. The caller holds mu.
func (s *Scheduler) newSite(r *route) *site {
	name := strings.ToLower(r.name)
	st := &site{key: r.key, name: r.name, route: r, rule: s.rollup.of(r), source: s.limiterOf(scopeSource, r.sender()), flows: map[flowKey]*flow{}}
	own := s.cfg.Limits.Site[name]
	usual := s.cfg.Limits.Site[defaultName].or(Limit{
		Connections: s.cfg.MaxConnectionsPerSite, MessagesPerConnection: s.cfg.MaxMessagesPerConnection, Recipients: s.cfg.MaxRecipients,
	})
	explicit := own // by the operator: for the site, or for its provider
	if st.rule != nil {
		st.provider = s.providerOf(st.rule.Name)
		usual.Connections = least(usual.Connections, st.rule.ConnectionsPerSite)
		usual.MessagesPerConnection = least(usual.MessagesPerConnection, st.rule.Limit.MessagesPerConnection)
		usual.Recipients = least(usual.Recipients, st.rule.Limit.Recipients)
		provider := s.cfg.Limits.of(scopeProvider, st.rule.Name)
		provider.Connections, provider.Rate = 0, "" // hold over all its sites
		explicit = own.or(provider)
	}
	l := explicit.or(usual)
	st.terms = terms{messages: l.MessagesPerConnection, recipients: l.Recipients}
	st.own = newLimiter(scopeSite, r.name, Limit{Rate: l.Rate})
	st.own.gov = newGovernor(l.Connections, 1)
	s.recall(st.own, r.key)
	return st
}

// least is the smaller of two figures, of which 0 sets none.
func least(a, b int) int {
	if b == 0 {
		return a
	}
	return min(a, b)
}

// providerOf returns the limiter of a provider, nil where the rules do not know it. The caller holds mu.
func (s *Scheduler) providerOf(name string) *limiter {
	if l := s.providers[name]; l != nil {
		return l
	}
	p := s.rollup.byName(name)
	if p == nil {
		return nil
	}
	own := s.cfg.Limits.of(scopeProvider, name)
	own.Connections = cmp.Or(own.Connections, p.Limit.Connections)
	own.Rate = cmp.Or(own.Rate, p.Limit.Rate)
	l := newLimiter(scopeProvider, name, own)
	most := cmp.Or(l.most, s.cfg.MaxConnections)
	l.gov = newGovernor(most, most) // its sites begin small
	s.recall(l, l.label())
	s.providers[name] = l
	return l
}

// sender is the name of the source that mail over the route leaves from.
func (r *route) sender() string {
	if r.source == nil {
		return defaultName
	}
	return r.source.name
}

// limiterOf returns the limiter of an account, a campaign or a source. The caller holds mu.
func (s *Scheduler) limiterOf(scope, name string) *limiter {
	table := map[string]map[string]*limiter{scopeAccount: s.accounts, scopeCampaign: s.campaigns, scopeSource: s.sources}[scope]
	l := table[name]
	if l == nil {
		l = newLimiter(scope, name, s.cfg.Limits.of(scope, name))
		if scope == scopeCampaign {
			l.asked = s.parallel
		}
		table[name] = l
	}
	return l
}

// sweepSites forgets what has not been used for long, and shows what is open.
func (s *Scheduler) sweepSites(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	idle, _ := s.pool.size("")
	s.metrics.connections.WithLabelValues("active").Set(float64(s.workers))
	s.metrics.connections.WithLabelValues("idle").Set(float64(idle))
	if now.Sub(s.swept) < time.Minute {
		return
	}
	s.swept = now
	used := map[*limiter]bool{}
	for key, st := range s.sites {
		if st.idle(now, 2*s.cfg.SuspendMax) {
			if st.own.gov.failures > 0 {
				s.suspended--
				s.metrics.suspended.Set(float64(s.suspended))
			}
			delete(s.sites, key)
			continue
		}
		for _, f := range st.flows {
			used[f.account], used[f.campaign] = true, true
		}
	}
	for _, table := range []map[string]*limiter{s.accounts, s.campaigns} {
		for name, l := range table {
			if !used[l] && l.idle(now) {
				delete(table, name)
			}
		}
	}
}
