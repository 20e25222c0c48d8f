package admin

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strings"

	"relayd/delivery"
	"relayd/internal/api"
	"relayd/spool"
)

// Sites tells which site the mail of a queue's domain goes to, a set of MX hosts or a smarthost: delivery.Scheduler.
type Sites interface {
	Sites(ctx context.Context, domains []string) map[string]string // looks up what it does not know
	SiteOf(domain string) string                                   // "" when not known without a look-up
	HasSite(name string) bool
	SiteStates() []delivery.SiteState
	SuspendSite(ctx context.Context, name string, h delivery.Hold) error
	ResumeSite(ctx context.Context, name, who, reason string) (changed bool, err error)
}

// siteOf is the site that a live envelope goes to, as far as it is known.
func (s *Server) siteOf(i *spool.Info) string {
	if s.deps.Sites == nil || i.Outcome != nil {
		return ""
	}
	return s.deps.Sites.SiteOf(i.Envelope.Queue.Domain)
}

// expandSite gives a selector the queue domains of its site, and counts those whose site could not be told.
func (s *Server) expandSite(r *request, sel *spool.Selector) (unknown int, err error) {
	if sel.Site == "" {
		return 0, nil
	}
	sel.SiteDomains = map[string]bool{}
	found := false
	if s.deps.Sites != nil {
		domains := queueDomains(s.queuesOf(r))
		sites := s.deps.Sites.Sites(r.Context(), domains)
		for domain, site := range sites {
			if strings.EqualFold(site, sel.Site) {
				sel.SiteDomains[domain] = true
			}
		}
		unknown = len(domains) - len(sites)
		found = len(sel.SiteDomains) > 0 || s.deps.Sites.HasSite(sel.Site)
	}
	if !found {
		return 0, &api.Problem{
			Status: http.StatusBadRequest, Code: api.CodeInvalidParameter,
			Detail: "No mail goes to a site " + sel.Site + ": relayctl queue stats --sites 20 names the sites.",
			Errors: []api.FieldError{{Pointer: "site", Code: api.CodeInvalidParameter, Detail: "There is no such site."}},
		}
	}
	return unknown, nil
}

// queuesOf are the queues that the caller may see.
func (s *Server) queuesOf(r *request) []spool.QueueStat {
	all := s.deps.Queue.QueueStats()
	own := r.caller.own()
	if own == "" {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), func(q spool.QueueStat) bool { return q.Queue.Account != own })
}

func queueDomains(queues []spool.QueueStat) []string {
	domains := make([]string, len(queues))
	for i := range queues {
		domains[i] = queues[i].Queue.Domain
	}
	slices.Sort(domains)
	return slices.Compact(domains)
}

// siteCounts counts by site, the largest first. Domains whose site is not known are counted under "".
func (s *Server) siteCounts(r *request, queues []spool.QueueStat, most int) []api.SiteCount {
	if most == 0 || s.deps.Sites == nil {
		return nil
	}
	domains := queueDomains(queues)
	sites := s.deps.Sites.Sites(r.Context(), domains)
	at := map[string]int{}
	counts := []api.SiteCount{}
	place := func(domain string) *api.SiteCount {
		name := sites[domain]
		i, ok := at[name]
		if !ok {
			i = len(counts)
			at[name] = i
			counts = append(counts, api.SiteCount{Site: name})
		}
		return &counts[i]
	}
	for _, d := range domains {
		place(d).Domains++
	}
	for _, q := range queues {
		c := place(q.Queue.Domain)
		c.Ready += q.Ready
		c.Deferred += q.Deferred
		c.Held += q.Held
		c.Leased += q.Leased
	}
	size := func(c api.SiteCount) int { return c.Ready + c.Deferred + c.Held + c.Leased }
	slices.SortFunc(counts, func(a, b api.SiteCount) int {
		return cmp.Or(cmp.Compare(size(b), size(a)), cmp.Compare(a.Site, b.Site))
	})
	return counts[:min(most, len(counts))]
}
