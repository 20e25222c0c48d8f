package delivery

import (
	"errors"
	"fmt"
	"reflect"
)

// Reload puts a new configuration into force as far as Config says so: for messages accepted and queues looked up from
// now on, and for sessions that are opened from now on. What runs is not disturbed. On error nothing changes. It tells
// whether cfg differs in what only a new start changes.
func (s *Scheduler) Reload(cfg Config) (kept bool, err error) {
	if err := cfg.Validate(); err != nil {
		return false, err
	}
	rules, err := NewClassifier(cfg.ReplyRules)
	if err != nil {
		return false, fmt.Errorf("delivery.reply_rules_file: %w", err)
	}
	table := newRouteTable(cfg)
	if err := table.checkSources(); err != nil {
		return false, err
	}
	s.rules.Store(rules)
	s.router.table.Store(table)
	s.retrier.policies.Store(newPolicies(cfg))
	s.settler.notifier.delay.Store(int64(cfg.DelayNotice))
	return !reflect.DeepEqual(cfg.fixed(), s.cfg.fixed()), nil
}

// Classifier gives the rules about replies that are in force.
func (s *Scheduler) Classifier() *Classifier { return s.rules.Load() }

// fixed is the configuration without what Reload puts into force.
func (c Config) fixed() Config {
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
