package delivery

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"relayd/internal/mail"
)

// Limits are the ceilings that the operator sets, [delivery.limits.<scope>.<name>]. The name "default" stands for each
// one of the scope that has no table of its own.
type Limits struct {
	Site     map[string]Limit `toml:"site"`     // by the first MX host, or the name of a smarthost
	Provider map[string]Limit `toml:"provider"` // by the name in the rule file; over all its sites together
	Source   map[string]Limit `toml:"source"`   // by the local address that mail leaves from
	Account  map[string]Limit `toml:"account"`  // by name
	Campaign map[string]Limit `toml:"campaign"` // by campaign ID, or the stream of other mail
}

// Limit is what one of a scope may use. 0 and "" set no limit.
type Limit struct {
	// Connections is how many connections, or for accounts and campaigns transactions, there are at a time.
	Connections int `toml:"connections"`
	// MessagesPerConnection closes a connection after so many messages. Sites and providers only.
	MessagesPerConnection int `toml:"messages_per_connection"`
	// Rate is how many messages, each recipient counted, leave in a time: "100/s", "10000/d,max_burst=1".
	Rate string `toml:"rate"`
	// Recipients bounds the recipients of one transaction, 1 to 100. Sites and providers only.
	Recipients int `toml:"recipients_per_transaction"`
	// Weight is the share of an account or a campaign where several wait for one site, 1 to 1000. Default 1.
	Weight int `toml:"weight"`
}

// The scopes of limits.
const (
	scopeSite     = "site"
	scopeProvider = "provider"
	scopeSource   = "source"
	scopeAccount  = "account"
	scopeCampaign = "campaign"
)

// defaultName is the limit of each one without its own.
const defaultName = "default"

func (l Limits) tables() map[string]map[string]Limit {
	return map[string]map[string]Limit{
		scopeSite: l.Site, scopeProvider: l.Provider, scopeSource: l.Source, scopeAccount: l.Account, scopeCampaign: l.Campaign,
	}
}

// of returns the limit of one name: its own, with what it leaves open from the default of the scope.
func (l Limits) of(scope, name string) Limit {
	table := l.tables()[scope]
	own, usual := table[name], table[defaultName]
	return own.or(usual)
}

// or fills what l leaves open.
func (l Limit) or(usual Limit) Limit {
	return Limit{
		Connections:           cmp.Or(l.Connections, usual.Connections),
		MessagesPerConnection: cmp.Or(l.MessagesPerConnection, usual.MessagesPerConnection),
		Rate:                  cmp.Or(l.Rate, usual.Rate),
		Recipients:            cmp.Or(l.Recipients, usual.Recipients),
		Weight:                cmp.Or(l.Weight, usual.Weight),
	}
}

// validate returns every fault, joined. providers are the names that the rule file knows.
func (l Limits) validate(providers map[string]bool) error {
	var errs []error
	tables := l.tables()
	for _, scope := range slices.Sorted(maps.Keys(tables)) {
		for _, name := range slices.Sorted(maps.Keys(tables[scope])) {
			key := "delivery.limits." + scope
			switch {
			case name == "" || len(name) > 255 || strings.ContainsAny(name, " :=\"'\t\r\n\x00"):
				errs = append(errs, fmt.Errorf("%s: %q is not a name", key, mail.CleanText(name, 80)))
				continue
			case scope == scopeProvider && name != defaultName && providers != nil && !providers[name]:
				errs = append(errs, fmt.Errorf("%s.%s: the provider rules know no %q", key, name, name))
			case scope == scopeSite && name != strings.ToLower(name):
				errs = append(errs, fmt.Errorf("%s.%s: host names are written in lower case", key, name))
			}
			errs = append(errs, tables[scope][name].validate(key+"."+name, scope))
		}
	}
	return errors.Join(errs...)
}

func (l Limit) validate(key, scope string) error {
	var errs []error
	add := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s."+format, append([]any{key}, args...)...))
	}
	within := func(name string, v, most int) {
		if v < 0 || v > most {
			add("%s: %d is not within 1 and %d", name, v, most)
		}
	}
	within("connections", l.Connections, 100_000)
	within("messages_per_connection", l.MessagesPerConnection, 1_000_000)
	within("recipients_per_transaction", l.Recipients, 100)
	within("weight", l.Weight, 1000)
	toHosts := scope == scopeSite || scope == scopeProvider
	if !toHosts && l.MessagesPerConnection != 0 {
		add("messages_per_connection: only a site or a provider has one, not a %s", scope)
	}
	if !toHosts && l.Recipients != 0 {
		add("recipients_per_transaction: only a site or a provider has one, not a %s", scope)
	}
	if scope != scopeAccount && scope != scopeCampaign && l.Weight != 0 {
		add("weight: only an account or a campaign has one, not a %s", scope)
	}
	if l.Rate != "" {
		if _, err := ParseRate(l.Rate); err != nil {
			add("rate: %v", err)
		}
	}
	return errors.Join(errs...)
}

// Rate is so many messages in a period, of which Burst may come at once.
type Rate struct {
	Count  int
	Period time.Duration
	Burst  int
}

// maxRateCount bounds the counts of a rate.
const maxRateCount = 1_000_000_000

// ParseRate reads "100/s", "6000/m", "10_000/d,max_burst=1": a count, and s, m, h or d. Without max_burst as many may come
// at once as a second has, at least one: then a daily allowance is not gone at midnight.
func ParseRate(text string) (Rate, error) {
	spec, option, more := strings.Cut(text, ",")
	count, unit, ok := strings.Cut(strings.TrimSpace(spec), "/")
	if !ok {
		return Rate{}, fmt.Errorf("%q is not like \"100/s\" or \"10000/d,max_burst=1\"", mail.CleanText(text, 80))
	}
	r := Rate{}
	var err error
	if r.Count, err = rateNumber(count); err != nil {
		return Rate{}, fmt.Errorf("count %w", err)
	}
	switch strings.TrimSpace(unit) {
	case "s":
		r.Period = time.Second
	case "m":
		r.Period = time.Minute
	case "h":
		r.Period = time.Hour
	case "d":
		r.Period = 24 * time.Hour
	default:
		return Rate{}, fmt.Errorf("unit %q is none of s, m, h, d", mail.CleanText(strings.TrimSpace(unit), 20))
	}
	r.Burst = max(1, int(float64(r.Count)/r.Period.Seconds()))
	if !more {
		return r, nil
	}
	name, value, _ := strings.Cut(strings.TrimSpace(option), "=")
	if strings.TrimSpace(name) != "max_burst" {
		return Rate{}, fmt.Errorf("option %q is not max_burst", mail.CleanText(strings.TrimSpace(name), 40))
	}
	if r.Burst, err = rateNumber(value); err != nil {
		return Rate{}, fmt.Errorf("max_burst %w", err)
	}
	return r, nil
}

// rateNumber reads 1 to a thousand million; groups of digits may be parted by underscores.
func rateNumber(text string) (int, error) {
	text = strings.TrimSpace(text)
	digits := text
	if !strings.HasPrefix(text, "_") && !strings.HasSuffix(text, "_") && !strings.Contains(text, "__") {
		digits = strings.ReplaceAll(text, "_", "")
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || n < 1 || n > maxRateCount {
		return 0, fmt.Errorf("%q is not a number within 1 and %d", mail.CleanText(text, 40), maxRateCount)
	}
	return int(n), nil
}

// String is the spec that ParseRate reads.
func (r Rate) String() string {
	unit := map[time.Duration]string{time.Second: "s", time.Minute: "m", time.Hour: "h", 24 * time.Hour: "d"}[r.Period]
	text := fmt.Sprintf("%d/%s", r.Count, unit)
	if r.Burst != max(1, int(float64(r.Count)/r.Period.Seconds())) {
		text += fmt.Sprintf(",max_burst=%d", r.Burst)
	}
	return text
}
