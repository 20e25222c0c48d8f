package admin

import (
	"cmp"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"relayd/internal/account"
	"relayd/internal/api"
	"relayd/internal/mail"
	"relayd/spool"
)

func (s *Server) listQueue(r *request, l list) ([]api.QueueItem, string, error) {
	q := r.URL.Query()
	in := api.QueueSelector{
		Query: q.Get("query"), Account: q.Get("account"), Message: q.Get("message"), Stream: q.Get("stream"),
		Campaign: q.Get("campaign"), Domain: q.Get("domain"), From: q.Get("from"), To: q.Get("to"), State: q.Get("state"),
		Class: q.Get("class"), Reply: q.Get("reply"), Site: q.Get("site"),
	}
	if text := q.Get("older_than_seconds"); text != "" {
		var err error
		if in.OlderThanSeconds, err = strconv.ParseInt(text, 10, 64); err != nil {
			return nil, "", badParameter("older_than_seconds", "older_than_seconds must be a whole number.")
		}
	}
	sel, err := selectorOf(r.caller, &in)
	if err != nil {
		return nil, "", err
	}
	if _, err = s.expandSite(r, &sel); err != nil {
		return nil, "", err
	}
	infos, next, err := s.deps.Queue.List(r.Context(), sel, l.cursor, l.limit)
	items := make([]api.QueueItem, 0, len(infos))
	for i := range infos {
		item := itemOf(&infos[i])
		item.Site = s.siteOf(&infos[i])
		items = append(items, item)
	}
	return items, next, err
}

// maxSeconds is what a time.Duration can hold, and then some hundred years less.
const maxSeconds = int64(100 * 365 * 24 * time.Hour / time.Second)

// maxSite bounds the name of a site in bytes.
const maxSite = 255

// selectorOf translates a selector and binds it to what the caller may see.
func selectorOf(c caller, in *api.QueueSelector) (spool.Selector, error) {
	sel, err := spool.Selector{}, error(nil)
	if in.Query != "" {
		if len(in.Query) > 4096 {
			return sel, badParameter("query", "query is longer than 4096 bytes.")
		}
		if sel, err = spool.ParseSelector(in.Query); err != nil {
			return sel, err
		}
	}
	set := func(to *string, value string) { *to = cmp.Or(value, *to) }
	set(&sel.Account, in.Account)
	set(&sel.Stream, in.Stream)
	set(&sel.Campaign, in.Campaign)
	set(&sel.Domain, in.Domain)
	set(&sel.Sender, in.From)
	set(&sel.Recipient, in.To)
	set(&sel.State, in.State)
	set(&sel.Class, in.Class)
	set(&sel.Reply, in.Reply)
	set(&sel.Site, in.Site)
	if in.OlderThanSeconds < 0 || in.OlderThanSeconds > maxSeconds {
		return sel, badParameter("older_than_seconds", "older_than_seconds is out of range.")
	} else if in.OlderThanSeconds > 0 {
		sel.OlderThan = time.Duration(in.OlderThanSeconds) * time.Second
	}
	if sel.State != "" && !slices.Contains([]string{"ready", "deferred", "held", "leased"}, sel.State) {
		return sel, badParameter("state", "state must be ready, deferred, held or leased.")
	}
	if sel.Class != "" && !slices.Contains([]string{"urgent", "transactional", "bulk"}, sel.Class) {
		return sel, badParameter("class", "class must be urgent, transactional or bulk.")
	}
	if sel.Domain != "" {
		if sel.Domain, err = mail.ParseDomain(sel.Domain, true); err != nil {
			return sel, badParameter("domain", sentence(err.Error()))
		}
	}
	if len(sel.Site) > maxSite {
		return sel, badParameter("site", "site is longer than 255 bytes.")
	}
	if in.Message != "" {
		id, err := mail.ParseQueueID(in.Message)
		if err != nil {
			return sel, badParameter("message", "message must be a queue ID.")
		}
		sel.Messages = append(sel.Messages, id)
	}
	sel.Account, err = c.filter(sel.Account)
	return sel, err
}

func itemOf(i *spool.Info) api.QueueItem {
	e := &i.Envelope
	item := api.QueueItem{
		ID: e.ID.String(), Message: e.ID.Message.String(), State: i.State.String(), Account: i.Account, Stream: i.Stream,
		Campaign: i.Campaign, Class: className(e.Class), From: i.From.String(), To: e.To.String(), Attempts: e.Attempts,
		InDoubt: e.InDoubt, AcceptedAt: i.AcceptedAt, NextAttempt: e.NextAttempt, ExpiresAt: i.ExpiresAt,
		LastReply: replyOf(e.LastReply), LastHost: e.LastHost, Subject: i.Subject, Size: i.Size,
	}
	if o := i.Outcome; o != nil {
		item.ID, item.Message, item.To = o.ID.String(), o.ID.Message.String(), o.To.String()
		item.State, item.Reason, item.TLS, item.LastHost = o.Outcome.String(), o.Reason, o.TLS, o.Host
		item.Attempts, item.InDoubt, item.SettledAt, item.LastReply = o.Attempts, o.InDoubt, o.SettledAt, replyOf(o.Reply)
		item.Account, item.Stream = cmp.Or(item.Account, o.Queue.Account), cmp.Or(item.Stream, o.Queue.Stream)
		if item.AcceptedAt.IsZero() {
			item.AcceptedAt = o.AcceptedAt
		}
		item.NextAttempt = time.Time{}
	}
	return item
}

func replyOf(r mail.Reply) *mail.Reply {
	if r.IsZero() {
		return nil
	}
	return &r
}

func className(c spool.Class) string {
	names := [...]string{"urgent", "transactional", "bulk"}
	if int(c) < len(names) {
		return names[c]
	}
	return ""
}

// getQueue reads the message that the path names, with all its envelopes or with the one that is named.
func (s *Server) getQueue(r *request) (*spool.Message, []spool.Info, error) {
	text := r.PathValue("id")
	if id, err := mail.ParseEnvelopeID(text); err == nil {
		return s.deps.Queue.GetEnvelope(r.Context(), id)
	}
	id, err := mail.ParseQueueID(text)
	if err != nil {
		return nil, nil, notFound("message")
	}
	return s.deps.Queue.Get(r.Context(), id)
}

// showQueue takes a queue ID, or an envelope ID and then shows that envelope only.
func (s *Server) showQueue(r *request) (api.QueueMessage, error) {
	queueID, _, one := strings.Cut(r.PathValue("id"), ".")
	m, infos, err := s.getQueue(r)
	if err != nil {
		return api.QueueMessage{}, err
	}
	id, err := mail.ParseQueueID(queueID)
	if err != nil {
		return api.QueueMessage{}, notFound("message")
	}
	out := api.QueueMessage{ID: id.String(), AcceptedAt: id.Time(), Envelopes: []api.QueueItem{}, Truncated: len(infos) >= api.MaxLimit}
	for i := range infos {
		item := itemOf(&infos[i])
		item.Site = s.siteOf(&infos[i])
		out.Envelopes = append(out.Envelopes, item)
	}
	switch {
	case m != nil:
		out.Account, out.Stream, out.Campaign, out.Class = m.Account, m.Stream, m.Campaign, className(m.Class)
		out.From, out.MessageID, out.Subject, out.Size = m.ReversePath.String(), m.MessageID, m.Subject, m.Size
		out.Credential, out.ClientIP, out.AcceptedAt, out.ExpiresAt = m.Credential, m.ClientIP, m.AcceptedAt, m.ExpiresAt
		out.Header = string(m.Header)
	case len(out.Envelopes) > 0:
		e := out.Envelopes[0]
		out.Account, out.Stream, out.Campaign, out.Class, out.AcceptedAt = e.Account, e.Stream, e.Campaign, e.Class, e.AcceptedAt
	}
	if !r.caller.sees(out.Account) || one && len(out.Envelopes) == 0 {
		return api.QueueMessage{}, notFound("message")
	}
	if len(out.Envelopes) <= maxTimelines {
		for i := range out.Envelopes {
			if out.Envelopes[i].Timeline, err = s.timeline(r, &out.Envelopes[i]); err != nil {
				return api.QueueMessage{}, err
			}
		}
	}
	return out, nil
}

// queueStats counts the whole store. A caller who is bound to one account of several gets the counts of its queues;
// outcomes are counted for the whole store only.
func (s *Server) queueStats(r *request) (api.QueueStats, error) {
	var out api.QueueStats
	most, err := mostOf(r, "queues")
	if err != nil {
		return out, err
	}
	mostSites, err := mostOf(r, "sites")
	if err != nil {
		return out, err
	}
	all := s.queuesOf(r)
	own := r.caller.own()
	if own == "" || s.deps.Accounts.Only(own) {
		st, err := s.deps.Queue.Stats(r.Context())
		if err != nil {
			return out, err
		}
		out = api.QueueStats{
			Queued: st.Queued, Ready: st.Ready, Deferred: st.Deferred, Held: st.Held, Leased: st.Leased, Accepted: st.Accepted,
			InDoubt: int64(s.deps.Queue.InDoubt()), Outcomes: map[string]int64{},
		}
		for o := spool.Delivered; o <= spool.Cancelled; o++ {
			out.Outcomes[o.String()] = st.Outcomes[o.String()]
		}
	} else {
		out.Outcomes = map[string]int64{}
		for _, q := range all {
			out.Ready += int64(q.Ready)
			out.Deferred += int64(q.Deferred)
			out.Held += int64(q.Held)
			out.Leased += int64(q.Leased)
		}
		out.Queued = out.Ready + out.Deferred + out.Held + out.Leased
	}
	out.Queues = largest(all, most)
	out.Sites = s.siteCounts(r, all, mostSites)
	return out, nil
}

// mostOf reads a query parameter that says how many entries are wanted.
func mostOf(r *request, name string) (int, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > api.MaxLimit {
		return 0, badParameter(name, name+" must be a number from 0 to 1000.")
	}
	return n, nil
}

func largest(all []spool.QueueStat, most int) []api.QueueCount {
	if most == 0 {
		return nil
	}
	all = slices.Clone(all)
	size := func(q spool.QueueStat) int { return q.Ready + q.Deferred + q.Held + q.Leased }
	slices.SortStableFunc(all, func(a, b spool.QueueStat) int { return cmp.Compare(size(b), size(a)) })
	counts := []api.QueueCount{}
	for _, q := range all[:min(most, len(all))] {
		counts = append(counts, api.QueueCount{
			Account: q.Queue.Account, Stream: q.Queue.Stream, Domain: q.Queue.Domain, Ready: q.Ready, Deferred: q.Deferred,
			Held: q.Held, Leased: q.Leased, Paused: q.Paused, Oldest: q.Oldest, NextDue: q.NextDue,
		})
	}
	return counts
}

// maxActionIDs bounds one action on IDs, maxActionReason its reason in bytes.
const (
	maxActionIDs    = 1000
	maxActionReason = 500
)

func (s *Server) queueAction(r *request, in *api.QueueAction) (api.QueueActionResult, error) {
	out := api.QueueActionResult{Action: in.Action, DryRun: in.DryRun}
	actions := []spool.Action{spool.ActionHold, spool.ActionRelease, spool.ActionRetry, spool.ActionFail, spool.ActionMove}
	if !slices.Contains(actions, spool.Action(in.Action)) {
		return out, invalid("/action", api.CodeInvalidParameter, "action must be hold, release, retry, fail or move.")
	}
	if mail.CleanText(in.Reason, maxActionReason) != in.Reason {
		return out, invalid("/reason", api.CodeInvalidParameter, "reason must be one line of at most 500 bytes.")
	}
	if err := s.checkRoute(r.caller, in); err != nil {
		return out, err
	}
	if in.Notify && (in.Action != string(spool.ActionFail) || s.deps.Notices == nil) {
		return out, invalid("/notify", api.CodeInvalidParameter, "Only fail notifies senders.")
	}
	sel, err := actionSelector(r.caller, in)
	if err != nil {
		return out, err
	}
	if out.Unknown, err = s.expandSite(r, &sel); err != nil {
		return out, err
	}
	var res spool.ActResult
	switch {
	case in.Notify:
		res, err = s.deps.Queue.Fail(r.Context(), sel, s.deps.Notices, r.caller.name(), in.Reason, in.DryRun)
	case in.Action == string(spool.ActionMove):
		route := in.Route
		if route == defaultRoute {
			route = ""
		}
		res, err = s.deps.Queue.Move(r.Context(), route, sel, r.caller.name(), in.Reason, in.DryRun)
	default:
		res, err = s.deps.Queue.Act(r.Context(), spool.Action(in.Action), sel, r.caller.name(), in.Reason, in.DryRun)
	}
	if err != nil {
		return out, err
	}
	if len(in.IDs) > 0 && res.Matched == 0 {
		return out, &api.Problem{Status: http.StatusNotFound, Code: api.CodeNotFound, Detail: "None of the IDs is in the queue."}
	}
	out.Notices = res.Notices
	out.Matched, out.Changed, out.InFlight, out.Unchanged = res.Matched, res.Changed, res.InFlight, res.Unchanged
	return out, nil
}

// defaultRoute is the route of the recipient's domain.
const defaultRoute = "default"

// checkRoute refuses a route that there is not. Routes belong to the operator: a caller who is bound to an account moves
// nothing.
func (s *Server) checkRoute(c caller, in *api.QueueAction) error {
	switch {
	case in.Action != string(spool.ActionMove) && in.Route == "":
		return nil
	case in.Action != string(spool.ActionMove):
		return invalid("/route", api.CodeInvalidParameter, "Only move takes a route.")
	case !c.full:
		return c.authorize(account.ScopeAdmin)
	case in.Route == defaultRoute:
		return nil
	case s.deps.Waits == nil || !slices.Contains(s.deps.Waits.Routes(), in.Route):
		return invalid("/route", api.CodeInvalidParameter, "route must be default, mx or the name of a smarthost.")
	}
	return nil
}

func actionSelector(c caller, in *api.QueueAction) (spool.Selector, error) {
	switch {
	case len(in.IDs) > 0 && in.Selector != nil:
		return spool.Selector{}, invalid("/selector", api.CodeInvalidParameter, "Give either ids or a selector.")
	case len(in.IDs) > maxActionIDs:
		return spool.Selector{}, invalid("/ids", api.CodeInvalidParameter, "At most 1000 ids.")
	case len(in.IDs) > 0:
		sel := spool.Selector{Account: c.own()}
		for i, text := range in.IDs {
			if id, err := mail.ParseQueueID(text); err == nil {
				sel.Messages = append(sel.Messages, id)
			} else if id, err := mail.ParseEnvelopeID(text); err == nil {
				sel.Envelopes = append(sel.Envelopes, id)
			} else {
				return sel, invalid("/ids/"+strconv.Itoa(i), api.CodeInvalidParameter, "This is not a queue ID or an envelope ID.")
			}
		}
		if len(sel.Messages) > 0 && len(sel.Envelopes) > 0 {
			return sel, invalid("/ids", api.CodeInvalidParameter, "Give queue IDs or envelope IDs, not both in one request.")
		}
		return sel, nil
	case in.Selector == nil:
		return spool.Selector{}, invalid("", api.CodeInvalidParameter, "Give ids or a selector.")
	}
	sel, err := selectorOf(c, in.Selector)
	if err != nil {
		return sel, err
	}
	unbound := sel
	if in.Selector.Account == "" {
		unbound.Account = ""
	}
	if unbound.IsZero() && !in.Selector.All {
		return sel, invalid("/selector/all", api.CodeInvalidParameter, "The selector selects everything: set all to true to mean it.")
	}
	return sel, nil
}
