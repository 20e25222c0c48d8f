package delivery

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"relayd/internal/mail"
)

// Provider is one rule of the provider file: who runs MX hosts of some names, and what it likes. See providers.txt.
type Provider struct {
	Name               string
	Limit              Limit // Connections are over all its sites
	ConnectionsPerSite int
	Pause              time.Duration // the first after a complaint about the rate
	PerSite            bool          // such a complaint is about one site, not about all
}

// providerRules finds the provider of a host.
type providerRules struct {
	dated     string
	providers []*Provider
	exact     map[string]*Provider
	suffix    map[string]*Provider // with the leading dot
}

//go:embed providers.txt
var providersText string

// builtInProviders reads the embedded rules once; a test reads them too, so they are known to be right.
var builtInProviders = sync.OnceValue(func() *providerRules {
	r, err := parseProviders(providersText)
	if err != nil {
		panic(err) // embedded text
	}
	return r
})

// maxProviderFile bounds an operator's rule file in bytes.
const maxProviderFile = 1 << 20

// loadProviders reads the operator's rule file; "" means the one that is built in.
func loadProviders(file string) (*providerRules, error) {
	if file == "" {
		return builtInProviders(), nil
	}
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxProviderFile {
		return nil, fmt.Errorf("%s is larger than %d bytes", file, maxProviderFile)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r, err := parseProviders(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return r, nil
}

// providers reads the rules about providers and checks the limits against them. The error names keys.
func (c *Config) providers() (*providerRules, error) {
	rules, err := loadProviders(c.ProvidersFile)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("delivery.providers_file: %w", err), c.Limits.validate(nil))
	}
	return rules, c.Limits.validate(rules.names())
}

var providerName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`) })

// parseProviders reads a rule file. An error names the line.
func parseProviders(text string) (*providerRules, error) {
	r := &providerRules{exact: map[string]*Provider{}, suffix: map[string]*Provider{}}
	for n, line := range strings.Split(text, "\n") {
		words := strings.Fields(line)
		if len(words) == 0 || words[0][0] == '#' {
			continue
		}
		if err := r.add(words); err != nil {
			return nil, fmt.Errorf("line %d: %w", n+1, err)
		}
	}
	return r, nil
}

// add reads one rule.
func (r *providerRules) add(words []string) error {
	kind, words := words[0], words[1:]
	if len(words) == 0 {
		return fmt.Errorf("%s: nothing follows", clip(kind))
	}
	name, rest := words[0], words[1:]
	known := r.byName(name)
	switch {
	case kind == "dated":
		r.dated = name
		return nil
	case kind == "provider" && (!providerName().MatchString(name) || name == defaultName):
		return fmt.Errorf("name %q: want lower case letters, digits and '-'", clip(name))
	case kind == "provider" && known != nil:
		return fmt.Errorf("provider %s stands twice", name)
	case kind == "provider":
		p := &Provider{Name: name}
		for _, word := range rest {
			if err := p.set(word); err != nil {
				return fmt.Errorf("provider %s: %w", name, err)
			}
		}
		r.providers = append(r.providers, p)
		return nil
	case kind == "mx" && known == nil:
		return fmt.Errorf("mx: there is no provider %q above", clip(name))
	case kind == "mx":
		return r.addHosts(known, rest)
	}
	return fmt.Errorf("%q is none of dated, provider, mx", clip(kind))
}

func (r *providerRules) addHosts(p *Provider, hosts []string) error {
	if len(hosts) == 0 {
		return fmt.Errorf("mx %s: no host is named", p.Name)
	}
	for _, host := range hosts {
		bare := strings.TrimPrefix(host, ".")
		if name, err := mail.ParseDomain(bare, false); err != nil || name != bare {
			return fmt.Errorf("mx %s: %q is neither a host name in lower case nor the end of one with a leading dot", p.Name, clip(host))
		}
		table := r.exact
		if bare != host {
			table = r.suffix
		}
		if other := table[host]; other != nil {
			return fmt.Errorf("mx %s: %s belongs to %s already", p.Name, host, other.Name)
		}
		table[host] = p
	}
	return nil
}

// set reads KEY=VALUE of a provider.
func (p *Provider) set(word string) error {
	key, value, ok := strings.Cut(word, "=")
	if !ok {
		return fmt.Errorf("%q is not like connections=20", clip(word))
	}
	number := func(to *int, most int) error {
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 || n > most {
			return fmt.Errorf("%s=%s: want a number within 1 and %d", key, clip(value), most)
		}
		*to = n
		return nil
	}
	switch key {
	case "connections":
		return number(&p.Limit.Connections, 100_000)
	case "connections_per_site":
		return number(&p.ConnectionsPerSite, 100_000)
	case "messages_per_connection":
		return number(&p.Limit.MessagesPerConnection, 1_000_000)
	case "recipients_per_transaction":
		return number(&p.Limit.Recipients, 100)
	case "rate":
		if _, err := ParseRate(value); err != nil {
			return fmt.Errorf("rate: %w", err)
		}
		p.Limit.Rate = value
		return nil
	case "pause":
		d, err := time.ParseDuration(value)
		if err != nil || d < time.Second || d > 24*time.Hour {
			return fmt.Errorf("pause=%s: want a duration within 1s and 24h", clip(value))
		}
		p.Pause = d
		return nil
	case "shared":
		if value != "yes" && value != "no" {
			return fmt.Errorf("shared=%s: want yes or no", clip(value))
		}
		p.PerSite = value == "no"
		return nil
	}
	return fmt.Errorf("unknown key %q", clip(key))
}

func clip(s string) string { return mail.CleanText(s, 80) }

// byName returns a provider, nil for none.
func (r *providerRules) byName(name string) *Provider {
	for _, p := range r.providers {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// names are the providers that limits may name.
func (r *providerRules) names() map[string]bool {
	names := make(map[string]bool, len(r.providers))
	for _, p := range r.providers {
		names[p.Name] = true
	}
	return names
}

// find returns the provider of a host, nil for none: the whole name first, then the longest end of it.
func (r *providerRules) find(host string) *Provider {
	if p := r.exact[host]; p != nil {
		return p
	}
	for i := strings.IndexByte(host, '.'); i >= 0; {
		if p := r.suffix[host[i:]]; p != nil {
			return p
		}
		next := strings.IndexByte(host[i+1:], '.')
		if next < 0 {
			break
		}
		i += 1 + next
	}
	return nil
}

// of returns the provider of a route, by the host that names its site. A smarthost has none: it is ours.
func (r *providerRules) of(rt *route) *Provider {
	if rt.smart != nil {
		return nil
	}
	return r.find(rt.name)
}
