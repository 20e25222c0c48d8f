package delivery

import (
	"cmp"
	"container/heap"
	"errors"
	"fmt"
	"reflect"
	"time"
)

// Reload puts a new configuration into force as far as Config says so: for messages accepted and queues looked up from
// now on, and for sessions that are opened from now on. What runs is not disturbed; what a limit held back that has become
// wider goes at once. On error nothing changes. It tells whether cfg differs in what only a new start changes. One Reload
// at a time.
func (s *Scheduler) Reload(cfg Config) (kept bool, err error) {
	if err := cfg.Validate(); err != nil {
		return false, err
	}
	rules, err := NewClassifier(cfg.ReplyRules)
	if err != nil {
		return false, fmt.Errorf("delivery.reply_rules_file: %w", err)
	}
	rollup, err := cfg.providers()
	if err != nil {
		return false, err
	}
	table := newRouteTable(cfg)
	if err := table.checkSources(); err != nil {
		return false, err
	}
	s.rules.Store(rules)
	s.router.table.Store(table)
	s.retrier.policies.Store(newPolicies(cfg))
	s.settler.notifier.delay.Store(int64(cfg.DelayNotice))
	if s.limit(cfg, rollup) {
		for _, q := range s.store.QueueStats() { // what was sent away comes back and is asked anew
			s.store.Recall(q.Queue)
		}
	}
	return !reflect.DeepEqual(cfg.fixed(), s.cfg.fixed()), nil
}

// limit puts limits and the rules about providers into force, and tells whether they have changed. Limiters are changed,
// not replaced: what they count, what was learned below them and who waits in their lines stays.
func (s *Scheduler) limit(cfg Config, rollup *providerRules) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if reflect.DeepEqual(cfg.bounds(), s.cfg.bounds()) && reflect.DeepEqual(rollup, s.rollup.Load()) {
		return false
	}
	s.cfg.adopt(cfg)
	s.rollup.Store(rollup)
	now := s.now()
	var gone, changed []*limiter
	for name, l := range s.providers {
		p := rollup.byName(name)
		if p == nil {
			gone = append(gone, l)
			delete(s.providers, name)
			continue
		}
		l.set(now, s.limitOf(p))
		l.gov.bound(cmp.Or(l.most, s.cfg.MaxConnections))
		changed = append(changed, l)
	}
	for scope, table := range map[string]map[string]*limiter{scopeAccount: s.accounts, scopeCampaign: s.campaigns, scopeSource: s.sources} {
		for name, l := range table {
			l.set(now, s.cfg.Limits.of(scope, name))
			changed = append(changed, l)
		}
	}
	for _, st := range s.sites {
		before, called := st.provider, boolInt(st.called)
		l := s.equip(st)
		st.own.set(now, Limit{Rate: l.Rate})
		st.own.gov.bound(l.Connections)
		changed = append(changed, st.own)
		for _, f := range st.flows {
			f.weight = f.account.weight * f.campaign.weight
		}
		if st.provider == before {
			continue
		}
		if before != nil { // its connections count elsewhere from now on
			before.running -= st.own.running
			before.called -= called
		}
		name := ""
		if st.provider != nil {
			st.provider.running += st.own.running
			st.provider.called += called
			name = st.provider.name
		}
		s.pool.join(st.key, name)
	}
	for _, l := range gone {
		s.forget(l, now)
	}
	for _, l := range changed {
		s.call(l)
	}
	for _, st := range s.sites {
		s.kick(st)
	}
	s.relieve()
	s.poke()
	return true
}

// forget drops the limiter of a provider that no rule knows any more. What was learned is kept for its return. The caller
// holds mu.
func (s *Scheduler) forget(l *limiter, now time.Time) {
	if l.gov.failures > 0 {
		s.suspended--
		s.metrics.suspended.Set(float64(s.suspended))
	}
	if l.gov.pace > 0 || now.Before(l.gov.resume) {
		s.keep(l)
	}
	l.line, l.inLine = nil, nil // its sites are asked anew
	if l.place >= 0 {
		heap.Remove(&s.alarms, l.place)
	}
}

// Classifier gives the rules about replies that are in force.
func (s *Scheduler) Classifier() *Classifier { return s.rules.Load() }

// bounds is the part of the configuration that limit puts into force; the rules about providers come beside it.
func (c *Config) bounds() Config {
	var b Config
	b.adopt(*c)
	return b
}

// adopt takes over what bounds names.
func (c *Config) adopt(from Config) {
	c.MaxConnections, c.MaxConnectionsPerSite = from.MaxConnections, from.MaxConnectionsPerSite
	c.MaxMessagesPerConnection, c.MaxRecipients = from.MaxMessagesPerConnection, from.MaxRecipients
	c.SuspendFirst, c.SuspendMax = from.SuspendFirst, from.SuspendMax
	c.Limits, c.ProvidersFile = from.Limits, from.ProvidersFile
}

// fixed is the configuration without what Reload puts into force.
func (c Config) fixed() Config {
	c.adopt(Config{})
	c.Route, c.Fallback, c.Rules, c.Sources, c.Smarthosts = "", "", nil, nil, nil
	c.MXPort, c.Chunking, c.DelayNotice, c.ReplyRulesFile, c.ReplyRules = 0, false, 0, "", ""
	c.Retry, c.Policies, c.Now = Retry{MaxAge: c.Retry.MaxAge}, nil, nil // accepted mail carries its age limit
	return c
}

// checkSources tells whether the addresses of all sources belong to this machine.
func (t *routeTable) checkSources() error {
	var errs []error
	for _, s := range t.sources {
		errs = append(errs, s.checkBind())
	}
	return errors.Join(errs...)
}
