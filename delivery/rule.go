package delivery

import (
	"fmt"
	"slices"
	"strings"

	"relayd/internal/mail"
	"relayd/internal/tlspolicy"
	"relayd/spool"
)

// Rule is one [[delivery.rule]]. It matches where every list that is given holds the message's value; a rule without
// lists matches everything. For each of Route, Source and TLS the first rule that matches and sets it decides; what no
// rule sets stays as [delivery] has it. Rules are asked at each look-up, so that a changed configuration holds for what is
// queued already. Mail for whose sender's domain a rule holds when it is accepted waits in queues of that domain; rules with
// SenderDomains hold for those alone.
type Rule struct {
	// RecipientDomains holds domains; one that begins with a dot stands for all below it.
	RecipientDomains []string `toml:"recipient_domains"`
	// SenderDomains is about the reverse-path; values as those of RecipientDomains.
	SenderDomains []string `toml:"sender_domains"`
	// Streams are those of submitted messages.
	Streams []string `toml:"streams"`
	// Campaigns holds campaign IDs; "*" stands for all of them.
	Campaigns []string `toml:"campaigns"`
	// Accounts are names of accounts.
	Accounts []string `toml:"accounts"`

	// Route is mx, discard, or the name of a smarthost.
	Route string `toml:"route"`
	// Fallback is the route taken while the site of Route is suspended; mx or the name of a smarthost. It needs Route.
	Fallback string `toml:"fallback"`
	// Source is the name of a [[delivery.source]].
	Source string `toml:"source"`
	// TLS is what MX hosts must offer: opportunistic, require (any certificate), verify (one for the host's name) or none.
	TLS tlspolicy.Level `toml:"tls"`
}

// Routes that need no smarthost.
const (
	RouteMX      = spool.RouteMX // looks up the recipient's domain
	RouteDiscard = "discard"     // takes everything and sends nothing
)

// choice is what the rules say about a queue or a message.
type choice struct {
	route, fallback, source string
	tls                     tlspolicy.Level
}

// maxRules bounds the rules and the values of each of their lists.
const (
	maxRules      = 1000
	maxRuleValues = 10_000
)

// campaignPrefix begins every campaign ID, and no other stream's name: streams hold no such prefix by the door's rule.
const campaignPrefix = "cmp_"

// matches tells whether the rule holds for a queue of mail from a sender's domain, "" for anybody's, to a domain.
func (r *Rule) matches(q spool.Queue, domain, sender string) bool {
	campaign := strings.HasPrefix(q.Stream, campaignPrefix)
	return (len(r.RecipientDomains) == 0 || domainListed(r.RecipientDomains, domain)) &&
		(len(r.SenderDomains) == 0 || domainListed(r.SenderDomains, sender)) &&
		(len(r.Streams) == 0 || !campaign && slices.Contains(r.Streams, q.Stream)) &&
		(len(r.Campaigns) == 0 || campaign && (slices.Contains(r.Campaigns, q.Stream) || slices.Contains(r.Campaigns, "*"))) &&
		(len(r.Accounts) == 0 || slices.Contains(r.Accounts, q.Account))
}

// domainListed looks for domain, or for a domain above it that stands with a dot.
func domainListed(list []string, domain string) bool {
	if domain == "" {
		return false
	}
	for _, d := range list {
		if d == domain || d[0] == '.' && strings.HasSuffix(domain, d) {
			return true
		}
	}
	return false
}

// unconditional tells a rule that matches everything.
func (r *Rule) unconditional() bool {
	return len(r.RecipientDomains)+len(r.SenderDomains)+len(r.Streams)+len(r.Campaigns)+len(r.Accounts) == 0
}

// normal returns the rule with its domains in lower-case A-labels, as messages carry them.
func (r Rule) normal() Rule {
	for _, list := range []*[]string{&r.RecipientDomains, &r.SenderDomains} {
		*list = slices.Clone(*list)
		for i, d := range *list {
			below := strings.HasPrefix(d, ".")
			if parsed, err := mail.ParseDomain(strings.TrimPrefix(d, "."), true); err == nil {
				d = parsed
				if below {
					d = "." + d
				}
			}
			(*list)[i] = d
		}
	}
	return r
}

// validateRules returns every fault of the rules, by keys of [[delivery.rule]].
func (c *Config) validateRules(add func(format string, args ...any), routes map[string]bool) {
	if len(c.Rules) > maxRules {
		add("delivery.rule: %d rules, and at most %d are taken", len(c.Rules), maxRules)
		return
	}
	sources := map[string]bool{}
	for i := range c.Sources {
		sources[c.Sources[i].Name] = true
	}
	for i := range c.Rules {
		r := &c.Rules[i]
		fail := func(key, format string, args ...any) {
			add("delivery.rule[%d].%s: %s", i, key, fmt.Sprintf(format, args...))
		}
		r.validateLists(fail)
		if r.unconditional() && i < len(c.Rules)-1 {
			add("delivery.rule[%d]: matches everything, so that no rule behind it is reached; only the last one may", i)
		}
		switch {
		case r.Route == "" && r.Source == "" && r.TLS == "":
			add("delivery.rule[%d]: sets none of route, source and tls", i)
		case r.Route != "" && r.Route != RouteDiscard && !routes[r.Route]:
			fail("route", "%q is none of mx, discard and the names of smarthosts", r.Route)
		}
		if r.Route == "" && r.Fallback != "" {
			fail("fallback", "needs a route that it stands in for")
		} else {
			checkFallback(r.Route, r.Fallback, routes, fail)
		}
		if r.Source != "" && !sources[r.Source] {
			fail("source", "there is no delivery.source named %q", r.Source)
		}
		if !r.TLS.Valid() {
			fail("tls", "%q is none of opportunistic, require, verify, none", r.TLS)
		}
	}
}

// checkFallback refuses a route that cannot stand in for another.
func checkFallback(route, fallback string, routes map[string]bool, fail func(key, format string, args ...any)) {
	switch {
	case fallback == "":
	case fallback == route:
		fail("fallback", "%q is the route itself", fallback)
	case route == RouteDiscard:
		fail("fallback", "discard never fails")
	case !routes[fallback]:
		fail("fallback", "%q is neither mx nor the name of a smarthost", fallback)
	}
}

func (r *Rule) validateLists(fail func(key, format string, args ...any)) {
	for _, l := range []struct {
		key    string
		values []string
	}{
		{"recipient_domains", r.RecipientDomains},
		{"sender_domains", r.SenderDomains},
		{"streams", r.Streams},
		{"campaigns", r.Campaigns},
		{"accounts", r.Accounts},
	} {
		if len(l.values) > maxRuleValues {
			fail(l.key, "%d values, and at most %d are taken", len(l.values), maxRuleValues)
			continue
		}
		for j, v := range l.values {
			key := fmt.Sprintf("%s[%d]", l.key, j)
			switch {
			case strings.HasSuffix(l.key, "_domains"):
				if _, err := mail.ParseDomain(strings.TrimPrefix(v, "."), true); err != nil {
					fail(key, "%q is neither a domain nor a dot and a domain", mail.CleanText(v, 80))
				}
			case l.key == "campaigns" && v != "*" && !strings.HasPrefix(v, campaignPrefix):
				fail(key, "%q is neither a campaign ID (%s…) nor \"*\"", mail.CleanText(v, 80), campaignPrefix)
			case l.key == "streams" && strings.HasPrefix(v, campaignPrefix):
				fail(key, "%q is the ID of a campaign: it belongs under campaigns", mail.CleanText(v, 80))
			case v == "":
				fail(key, "is empty")
			}
		}
	}
}
