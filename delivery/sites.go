package delivery

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"relayd/spool"
)

// Bounds of what an operator's question about sites may cost.
const (
	maxKnownSites  = 50_000 // queue domains whose site is remembered
	maxSiteLookups = 1_000  // domains looked up for one question
	siteLookups    = 32     // at a time
	sitesTime      = 3 * time.Second
)

// knownSite names the site of a queue domain as it was last found.
type knownSite struct{ name, key string }

// remember notes the site of a queue's domain. The caller holds mu.
func (s *Scheduler) remember(domain, name, key string) {
	if _, ok := s.known[domain]; !ok && len(s.known) >= maxKnownSites {
		for d := range s.known { // any of them: it is looked up again when asked for
			delete(s.known, d)
			break
		}
	}
	s.known[domain] = knownSite{name, key}
}

func (s *Scheduler) forgetSite(domain string) {
	s.mu.Lock()
	delete(s.known, domain)
	s.mu.Unlock()
}

// SiteOf returns the name of the site that the queues of a domain go to, "" when it is not known without a look-up.
func (s *Scheduler) SiteOf(domain string) string {
	if name, ok := s.fixedSite(domain); ok {
		return name
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known[domain].name
}

// fixedSite is the site that the configuration decides.
func (s *Scheduler) fixedSite(domain string) (string, bool) {
	t := s.router.table.Load()
	q := spool.Queue{Domain: domain}
	route := cmp.Or(q.Via(), t.choose(q).route)
	return route, route != RouteMX
}

// Sites returns the name of the site of each queue domain. Domains that were not attempted of late are looked up, at most
// 1,000 of them within 3 seconds; those that have no site, or that could not be looked up, are left out.
func (s *Scheduler) Sites(ctx context.Context, domains []string) map[string]string {
	sites := make(map[string]string, len(domains))
	var missing []string
	for _, d := range domains {
		if name := s.SiteOf(d); name != "" {
			sites[d] = name
		} else if len(missing) < maxSiteLookups {
			missing = append(missing, d)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, sitesTime)
	defer cancel()
	work := make(chan string)
	var wg sync.WaitGroup
	for range min(siteLookups, len(missing)) {
		wg.Go(func() {
			for d := range work {
				r, err := s.router.resolve(ctx, spool.Queue{Domain: d})
				if err != nil || r.refusal != nil {
					continue
				}
				s.mu.Lock()
				s.remember(d, r.name, r.key)
				sites[d] = r.name
				s.mu.Unlock()
			}
		})
	}
	for _, d := range missing {
		work <- d // look-ups end with ctx
	}
	close(work)
	wg.Wait()
	return sites
}

// HasSite tells whether a site of that name was delivered to of late, or is a smarthost.
func (s *Scheduler) HasSite(name string) bool {
	if slices.ContainsFunc(s.router.table.Load().names, func(n string) bool { return strings.EqualFold(n, name) }) {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.sites {
		if strings.EqualFold(st.name, name) {
			return true
		}
	}
	return s.memory.held()[strings.ToLower(name)] != nil
}
