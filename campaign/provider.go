package campaign

import (
	"context"
	"sort"
	"strings"
	"time"

	"relayd/internal/api"
	"relayd/spool"
)

// Sites is what delivery knows of the hosts that a recipient domain's mail goes to: a thin layer over
// delivery.Scheduler.
type Sites interface {
	SiteOf(domain string) string // name of its hosts, "" when not known without a look-up
	// Backoff tells until when a queue's hosts are left alone, and the reply that made it so; zero: they are not.
	Backoff(ctx context.Context, q spool.Queue) (until time.Time, reply string)
}

// providerNames are the mailbox providers that progress tells apart, a closed set; the last takes all others. Records
// count by position: names are added before nothing but the last one, with a new tallyVersion.
var providerNames = [...]string{"google", "microsoft", "yahoo", "apple", "naver", "other"}

const otherProvider = len(providerNames) - 1

// providerSuffixes tell a provider by the name of its MX hosts.
var providerSuffixes = [...]struct {
	suffix   string
	provider int
}{
	{".google.com", 0},
	{".googlemail.com", 0},
	{".protection.outlook.com", 1},
	{".mx.microsoft", 1},
	{".yahoodns.net", 2},
	{".icloud.com", 3},
	{".naver.com", 4},
}

// providerDomains are mailbox domains of the providers, for those whose hosts nobody has asked for yet.
var providerDomains = map[string]int{ //nolint:gochecknoglobals // a constant table
	"gmail.com": 0, "googlemail.com": 0,
	"outlook.com": 1, "hotmail.com": 1, "live.com": 1, "msn.com": 1, "hotmail.co.uk": 1, "hotmail.fr": 1, "outlook.kr": 1,
	"yahoo.com": 2, "aol.com": 2, "ymail.com": 2, "rocketmail.com": 2, "yahoo.co.uk": 2, "yahoo.fr": 2, "yahoo.de": 2,
	"icloud.com": 3, "me.com": 3, "mac.com": 3,
	"naver.com": 4,
}

// providerOf finds the provider of a host as results name it: mx.example.com[192.0.2.1].
func providerOf(host string) int {
	host, _, _ = strings.Cut(host, "[")
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	for _, s := range providerSuffixes {
		if strings.HasSuffix(host, s.suffix) {
			return s.provider
		}
	}
	return otherProvider
}

// providerOfDomain finds the provider of a recipient domain; site is the name of its hosts, "" where that is not known.
func providerOfDomain(domain, site string) int {
	if p, ok := providerDomains[domain]; ok {
		return p
	}
	return providerOf(site)
}

// askedDomains bounds for how many of a campaign's recipient domains one progress asks delivery.
const askedDomains = 50

// providers tells how far the recipients of each mailbox provider are.
func (s *Service) providers(ctx context.Context, p *api.Progress, r *record, t *tally) {
	list := make([]api.ProviderProgress, len(providerNames))
	for i := range list {
		list[i] = api.ProviderProgress{Name: providerNames[i], Delivered: t.byProvider[i], State: "ok"}
	}
	if !ended(r.State) {
		queues := s.spool.StreamStats(formatID(r.ID))
		sort.Slice(queues, func(i, j int) bool {
			a, b := &queues[i], &queues[j]
			return a.Ready+a.Deferred > b.Ready+b.Deferred || a.Ready+a.Deferred == b.Ready+b.Deferred && a.Queue.Domain < b.Queue.Domain
		})
		for i, q := range queues {
			site := ""
			if s.sites != nil {
				site = s.sites.SiteOf(q.Queue.Domain)
			}
			at := &list[providerOfDomain(q.Queue.Domain, site)]
			at.Deferred += int64(q.Deferred)
			if s.sites == nil || i >= askedDomains || site == "" {
				continue
			}
			if until, reply := s.sites.Backoff(ctx, q.Queue); !until.IsZero() {
				at.State, at.Until, at.Reason = "backoff", momentOf(until), reply
			}
		}
	}
	for i := range list {
		if one := &list[i]; one.Delivered > 0 || one.Deferred > 0 || one.State != "ok" {
			p.Providers = append(p.Providers, *one)
		}
	}
}
