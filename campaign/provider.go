package campaign

import (
	"strings"
	"time"

	"relayd/internal/api"
	"relayd/spool"
)

// Sites is what delivery knows of the hosts that a recipient domain's mail goes to: a thin layer over
// delivery.Scheduler. It answers from memory.
type Sites interface {
	SiteOf(domain string) string // name of its hosts, "" when not known without a look-up
	// Waits tells what keeps the mail of queues from being attempted, in their order.
	Waits(queues []spool.Queue) []Wait
}

// Wait is what keeps the mail of a queue from being attempted. The zero Wait: nothing that is known of.
type Wait struct {
	Limit     string    // as limited_by names it: "site:mx.example.com", "provider:google", "campaign.max_concurrency"…
	State     string    // "backoff" or "suspended" where nothing leaves at all, "" where less leaves than could
	Until     time.Time // zero: not known
	Detail    string    // for people: the reply, who suspended it, the figure that is reached
	PerSecond float64   // messages that the hosts may get now, 0: any number
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

// Bounds of one look at progress: the largest queues of a campaign that are looked at one by one, and of them those that
// delivery is asked about. The rest counts as that of other providers.
const (
	lookedQueues = 1000
	askedQueues  = 100
)

// waiting is what one look at progress finds of a campaign's queues.
type waiting struct {
	queues []spool.QueueStat // the largest first
	waits  []Wait            // of the first of them
	rest   spool.QueueStat
}

// waiting looks at what waits of a campaign, from memory.
func (s *Service) waiting(r *record) (w waiting) {
	if ended(r.State) {
		return w
	}
	w.queues, w.rest = s.spool.StreamTop(formatID(r.ID), lookedQueues)
	if s.sites == nil {
		return w
	}
	names := make([]spool.Queue, min(len(w.queues), askedQueues))
	for i := range names {
		names[i] = w.queues[i].Queue
	}
	w.waits = s.sites.Waits(names)
	return w
}

// limit names what keeps the most recipients that could be attempted; the zero Wait where most of them wait for nothing
// but their turn. With closed those count too that wait for their next attempt, and only what lets nothing leave.
func (w *waiting) limit(closed bool) Wait {
	byLimit, free := map[string]int{}, 0
	var best Wait
	for i := range w.waits {
		one, q := &w.waits[i], &w.queues[i]
		n := q.Ready + q.Leased // which delivery has, and most of which wait there
		if one.State != "" {
			n += q.Deferred
		}
		switch {
		case one.Limit == "" || closed && one.State == "":
			free += q.Ready + q.Leased
			if closed {
				free += q.Deferred
			}
			continue
		case n == 0:
			continue
		}
		byLimit[one.Limit] += n
		if best.Limit == "" || byLimit[one.Limit] > byLimit[best.Limit] {
			best = *one
		}
	}
	if byLimit[best.Limit] < free {
		return Wait{}
	}
	return best
}

// providers tells how far the recipients of each mailbox provider are.
func (s *Service) providers(p *api.Progress, w *waiting, t *tally) {
	list := make([]api.ProviderProgress, len(providerNames))
	for i := range list {
		list[i] = api.ProviderProgress{Name: providerNames[i], Delivered: t.byProvider[i], State: "ok"}
	}
	for i := range w.queues {
		q, site := &w.queues[i], ""
		if s.sites != nil {
			site = s.sites.SiteOf(q.Queue.Domain)
		}
		at := &list[providerOfDomain(q.Queue.Recipient(), site)]
		at.Waiting += int64(q.Ready)
		at.Deferred += int64(q.Deferred)
		if i >= len(w.waits) {
			continue
		}
		one := &w.waits[i]
		if one.PerSecond > 0 && (at.LimitPerSecond == 0 || one.PerSecond < at.LimitPerSecond) {
			at.LimitPerSecond = one.PerSecond
		}
		if one.State != "" && at.State == "ok" { // of the largest queue
			at.State, at.Until, at.Reason = one.State, momentOf(one.Until), one.Detail
		}
	}
	list[otherProvider].Waiting += int64(w.rest.Ready)
	list[otherProvider].Deferred += int64(w.rest.Deferred)
	for i := range list {
		if one := &list[i]; one.Delivered > 0 || one.Waiting > 0 || one.Deferred > 0 || one.State != "ok" {
			p.Providers = append(p.Providers, *one)
		}
	}
}
