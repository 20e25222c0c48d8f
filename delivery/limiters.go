package delivery

import (
	"cmp"
	"strings"
	"time"
)

// This file makes and forgets the limiters of sites, providers, accounts and campaigns.

// newSite makes a site with its limits and what is remembered of it. The caller holds mu.
func (s *Scheduler) newSite(r *route) *site {
	st := &site{key: r.key, name: r.name, route: r, source: s.limiterOf(scopeSource, r.sender()), flows: map[flowKey]*flow{}}
	l := s.equip(st)
	st.own = newLimiter(scopeSite, r.name, Limit{Rate: l.Rate})
	st.own.gov = newGovernor(l.Connections, 1)
	s.recall(st.own, r.key)
	return st
}

// equip gives a site its provider and its terms as the configuration has them, and returns its own limit. The caller holds
// mu.
func (s *Scheduler) equip(st *site) Limit {
	own := s.cfg.Limits.Site[strings.ToLower(st.name)]
	usual := s.cfg.Limits.Site[defaultName].or(Limit{
		Connections: s.cfg.MaxConnectionsPerSite, MessagesPerConnection: s.cfg.MaxMessagesPerConnection, Recipients: s.cfg.MaxRecipients,
	})
	explicit := own // by the operator: for the site, or for its provider
	name := ""
	st.provider, st.rule = nil, s.rollup.Load().of(st.route)
	if st.rule != nil {
		name = st.rule.Name
		st.provider = s.providerOf(name)
		usual.Connections = least(usual.Connections, st.rule.ConnectionsPerSite)
		usual.MessagesPerConnection = least(usual.MessagesPerConnection, st.rule.Limit.MessagesPerConnection)
		usual.Recipients = least(usual.Recipients, st.rule.Limit.Recipients)
		provider := s.cfg.Limits.of(scopeProvider, st.rule.Name)
		provider.Connections, provider.Rate = 0, "" // hold over all its sites
		explicit = own.or(provider)
	}
	l := explicit.or(usual)
	st.terms.Store(&terms{messages: l.MessagesPerConnection, recipients: l.Recipients, provider: name})
	return l
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
	p := s.rollup.Load().byName(name)
	if p == nil {
		return nil
	}
	l := newLimiter(scopeProvider, name, s.limitOf(p))
	most := cmp.Or(l.most, s.cfg.MaxConnections)
	l.gov = newGovernor(most, most) // its sites begin small
	s.recall(l, l.label())
	s.providers[name] = l
	return l
}

// limitOf is the limit over all sites of a provider: the operator's, then that of the rule. The caller holds mu.
func (s *Scheduler) limitOf(p *Provider) Limit {
	l := s.cfg.Limits.of(scopeProvider, p.Name)
	l.Connections, l.Rate = cmp.Or(l.Connections, p.Limit.Connections), cmp.Or(l.Rate, p.Limit.Rate)
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
	s.forgetOld(now)
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
