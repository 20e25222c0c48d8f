package admin

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"relayd/delivery"
	"relayd/internal/account"
	"relayd/internal/api"
	"relayd/internal/mail"
)

// siteRoutes are the calls about sites and providers. They belong to the operator.
func (s *Server) siteRoutes() []route {
	return []route{
		{
			method: http.MethodGet, path: "/v1/sites", scope: account.ScopeAdmin, summary: "List sites and providers, those with the most mail first",
			query: []string{"state", "limit", "cursor"}, status: http.StatusOK, call: lists(s, (*request).own, s.listSites),
		},
		{
			method: http.MethodGet, path: "/v1/sites/{name}", scope: account.ScopeAdmin, summary: "Show the sites of one name",
			status: http.StatusOK, call: gives(s.showSite),
		},
		{
			method: http.MethodPost, path: "/v1/sites/{name}/suspend", scope: account.ScopeAdmin, summary: "Keep mail from a site or provider",
			status: http.StatusOK, limit: smallBody, call: takes(s.suspendSite),
		},
		{
			method: http.MethodPost, path: "/v1/sites/{name}/resume", scope: account.ScopeAdmin, summary: "Let mail go to a site or provider again",
			status: http.StatusOK, limit: smallBody, call: takes(s.resumeSite),
		},
	}
}

func (s *Server) siteStates() []api.Site {
	if s.deps.Sites == nil {
		return []api.Site{}
	}
	states := s.deps.Sites.SiteStates()
	out := make([]api.Site, len(states))
	for i := range states {
		out[i] = siteOf(&states[i])
	}
	return out
}

func siteOf(x *delivery.SiteState) api.Site {
	out := api.Site{
		Name: x.Name, Kind: x.Kind, Provider: x.Provider, Hosts: x.Hosts, Sites: x.Sites, State: x.State, Limit: x.Limit, LimitedBy: x.LimitedBy,
		Until: x.Until, Connections: x.Connections, Idle: x.Idle, Window: x.Window, Ceiling: x.Ceiling, Ready: x.Ready, Leased: x.Leased,
		Queues: x.Queues, Speed: x.Speed, Pace: x.Pace, Rate: x.Rate, Messages: x.Messages, Failures: x.Failures, Cause: x.Cause,
		LastReply: replyOf(x.LastReply), LastHost: x.LastHost, Used: x.Used, Paused: x.Paused, Resume: x.Resume,
	}
	if h := x.Hold; h != nil {
		out.Hold = &api.SiteHold{Since: h.Since, Until: h.Until, Who: h.Who, Reason: h.Reason}
	}
	return out
}

// listSites pages by position: the list changes from moment to moment, and an operator looks at its head.
func (s *Server) listSites(r *request, l list) ([]api.Site, string, error) {
	states := []string{"active", "idle", "limited", "paused", "suspended"}
	state := r.URL.Query().Get("state")
	if state != "" && !slices.Contains(states, state) {
		return nil, "", badParameter("state", "state must be active, idle, limited, paused or suspended.")
	}
	sites := s.siteStates()
	if state != "" {
		sites = slices.DeleteFunc(sites, func(x api.Site) bool { return x.State != state })
	}
	from := 0
	if l.cursor != "" {
		var err error
		if from, err = strconv.Atoi(l.cursor); err != nil || from < 0 {
			return nil, "", badParameter("cursor", "This cursor is not one of this list.")
		}
	}
	from = min(from, len(sites))
	to := min(from+l.limit, len(sites))
	next := ""
	if to < len(sites) {
		next = strconv.Itoa(to)
	}
	return sites[from:to], next, nil
}

func (s *Server) showSite(r *request) (api.Page[api.Site], error) {
	out := api.Page[api.Site]{Data: []api.Site{}}
	for _, x := range s.siteStates() {
		if strings.EqualFold(x.Name, r.PathValue("name")) {
			out.Data = append(out.Data, x)
		}
	}
	if len(out.Data) == 0 {
		return out, notFound("site that mail went to of late")
	}
	return out, nil
}

// siteReason checks the words of an operator.
func siteReason(text string) error {
	if mail.CleanText(text, maxActionReason) != text {
		return invalid("/reason", api.CodeInvalidParameter, "reason must be one line of at most 500 bytes.")
	}
	return nil
}

func (s *Server) suspendSite(r *request, in *api.SiteSuspension) (api.SiteChanged, error) {
	out := api.SiteChanged{Name: strings.ToLower(r.PathValue("name")), Changed: true}
	if err := siteReason(in.Reason); err != nil {
		return out, err
	}
	if in.Seconds < 0 || in.Seconds > maxSeconds {
		return out, invalid("/seconds", api.CodeInvalidParameter, "seconds is out of range.")
	}
	if s.deps.Sites == nil {
		return out, notFound("site")
	}
	h := delivery.Hold{Since: s.now(), Who: r.caller.name(), Reason: in.Reason}
	if in.Seconds > 0 {
		h.Until = h.Since.Add(time.Duration(in.Seconds) * time.Second)
		out.Until = h.Until
	}
	return out, siteProblem(s.deps.Sites.SuspendSite(r.Context(), out.Name, h))
}

func (s *Server) resumeSite(r *request, in *api.SiteResumption) (api.SiteChanged, error) {
	out := api.SiteChanged{Name: strings.ToLower(r.PathValue("name"))}
	err := siteReason(in.Reason)
	if err != nil {
		return out, err
	}
	if s.deps.Sites == nil {
		return out, notFound("site")
	}
	out.Changed, err = s.deps.Sites.ResumeSite(r.Context(), out.Name, r.caller.name(), in.Reason)
	return out, siteProblem(err)
}

// siteProblem is a 404 that says what a name must look like.
func siteProblem(err error) error {
	if errors.Is(err, delivery.ErrNoSite) {
		p := notFound("site")
		p.Detail = sentence(err.Error())
		return p
	}
	return err
}
