package admin

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"relayd/internal/api"
	"relayd/internal/mail"
	"relayd/spool"
)

// Bounds of what is told of one message.
const (
	maxTimelines = 100 // envelopes whose timeline is shown, or whose wait is explained
	maxSteps     = 200 // of one timeline, the last ones
	maxReplies   = 3
)

// timeline is what happened to an envelope, from its acceptance to now or to its outcome.
func (s *Server) timeline(r *request, e *api.QueueItem) ([]api.QueueStep, error) {
	id, err := mail.ParseEnvelopeID(e.ID)
	if err != nil {
		return nil, err
	}
	notes, err := s.deps.Queue.Notes(r.Context(), id, maxSteps)
	if err != nil {
		return nil, err
	}
	steps := []api.QueueStep{{At: e.AcceptedAt, Event: "accepted"}}
	for i := range notes {
		steps = append(steps, stepOf(&notes[i]))
	}
	if !e.SettledAt.IsZero() {
		steps = append(steps, api.QueueStep{
			At: e.SettledAt, Event: e.State, Attempt: e.Attempts, Reply: e.LastReply, Host: e.LastHost, TLS: e.TLS, Reason: e.Reason,
		})
	}
	return steps, nil
}

func stepOf(n *spool.Note) api.QueueStep {
	return api.QueueStep{
		At: n.At, Event: n.Event, Attempt: n.Attempt, Reply: replyOf(n.Reply), Host: n.Host, TLS: n.TLS, Reason: n.Reason,
		Who: n.Who, Why: n.Why,
	}
}

// whyQueue takes a queue ID, or an envelope ID and then explains that envelope only.
func (s *Server) whyQueue(r *request) (api.QueueWhy, error) {
	m, infos, err := s.getQueue(r)
	if err != nil {
		return api.QueueWhy{}, err
	}
	if len(infos) == 0 || !r.caller.sees(infos[0].Account) {
		return api.QueueWhy{}, notFound("message")
	}
	first := &infos[0]
	out := api.QueueWhy{
		ID: first.Envelope.ID.Message.String(), Account: first.Account, Stream: first.Stream, Campaign: first.Campaign, From: first.From.String(),
		AcceptedAt: first.AcceptedAt, ExpiresAt: first.ExpiresAt, Waiting: map[string]int{},
		Envelopes: []api.EnvelopeWhy{}, Truncated: len(infos) > maxTimelines,
	}
	if m != nil {
		out.From, out.Campaign = m.ReversePath.String(), m.Campaign
	}
	x := explainer{s: s, r: r, waits: map[spool.Queue]spoolWait{}}
	for i := range infos[:min(len(infos), maxTimelines)] { // live ones come first
		w, err := x.explain(&infos[i])
		if err != nil {
			return api.QueueWhy{}, err
		}
		out.Waiting[w.Reason]++
		out.Envelopes = append(out.Envelopes, w)
	}
	return out, nil
}

// explainer asks about each queue once.
type explainer struct {
	s     *Server
	r     *request
	waits map[spool.Queue]spoolWait
}

// spoolWait is what makes a queue wait, whoever knows it.
type spoolWait struct {
	reason, site, text, limit string
	since, until              time.Time
}

func take(out *api.EnvelopeWhy, w spoolWait) {
	out.Reason, out.Site, out.Text, out.Since, out.Until, out.LimitedBy = w.reason, w.site, w.text, w.since, w.until, w.limit
}

// explain gives the first reason that holds: what has to be over before the next one matters comes first.
func (x *explainer) explain(i *spool.Info) (api.EnvelopeWhy, error) {
	item := itemOf(i)
	out := api.EnvelopeWhy{ID: item.ID, To: item.To, State: item.State, Attempts: item.Attempts, Replies: []api.QueueStep{}}
	notes, err := x.s.deps.Queue.Notes(x.r.Context(), i.Envelope.ID, maxSteps)
	if err != nil {
		return out, err
	}
	for k := range notes {
		if notes[k].Reply.Code != 0 {
			out.Replies = append(out.Replies, stepOf(&notes[k]))
		}
	}
	e, now := &i.Envelope, x.s.now()
	switch {
	case i.Outcome != nil:
		o := i.Outcome
		out.Reason, out.Since = "finished", o.SettledAt
		out.Text = "it is finished: " + strings.TrimSpace(o.Outcome.String()+" "+strings.ReplaceAll(o.Reason, "_", " "))
		if o.Reply.Code != 0 {
			out.Replies = append(out.Replies, api.QueueStep{
				At: o.SettledAt, Event: o.Outcome.String(), Attempt: o.Attempts, Reply: replyOf(o.Reply), Host: o.Host, TLS: o.TLS, Reason: o.Reason,
			})
		}
	case i.State == spool.StateLeased:
		out.Reason, out.Since = "attempt", x.s.deps.Queue.LeasedSince(e.ID)
		out.Text = "it is with delivery: being attempted, or about to be"
	case i.State == spool.StateHeld:
		take(&out, heldWait(notes))
	default:
		w := x.ofQueue(e.Queue, now)
		if e.NextAttempt.After(now) && w.reason != "paused" && w.until.Before(e.NextAttempt) {
			own := retryWait(e, i.AcceptedAt)
			own.site = w.site
			w = own
		}
		take(&out, w)
	}
	out.Replies = out.Replies[max(0, len(out.Replies)-maxReplies):]
	return out, nil
}

// retryWait is the envelope's own time.
func retryWait(e *spool.Envelope, accepted time.Time) spoolWait {
	if e.LastAt.IsZero() {
		return spoolWait{reason: "scheduled", text: "it was handed in for a later time", since: accepted, until: e.NextAttempt}
	}
	w := spoolWait{reason: "retry", since: e.LastAt, until: e.NextAttempt}
	w.text = fmt.Sprintf("it waits for its next attempt after %d of them", e.Attempts)
	if e.Attempts == 0 {
		w.text = "it waits for its next attempt: what it needs was out of reach before it was presented"
	}
	return w
}

// ofQueue asks the spool and delivery.
func (x *explainer) ofQueue(q spool.Queue, now time.Time) spoolWait {
	if w, ok := x.waits[q]; ok {
		return w
	}
	own := x.s.deps.Queue.QueueWait(q)
	w := spoolWait{reason: "turn", text: "it is due and waits for its turn"}
	switch {
	case !own.Paused.IsZero():
		w = spoolWait{reason: "paused", since: own.Paused, text: "its stream or campaign is paused"}
	case x.s.deps.Waits != nil:
		d := x.s.deps.Waits.Waiting(x.r.Context(), q)
		if d.Reason == "dns" {
			d.Until = own.NotBefore
		}
		w.site, w.since, w.until, w.limit = d.Site, d.Since, d.Until, d.Limit
		if d.Reason != "turn" {
			w.reason, w.text = d.Reason, cmp.Or(d.Text, d.Reason)
		}
		if d.Reply.Code != 0 {
			w.text += ": " + d.Host + " said " + d.Reply.String()
		}
	}
	if w.reason == "turn" && own.NotBefore.After(now) {
		w.until = own.NotBefore
		w.text = "its queue was set aside"
	}
	x.waits[q] = w
	return w
}

// heldWait finds who held an envelope.
func heldWait(notes []spool.Note) spoolWait {
	w := spoolWait{reason: "held", text: "an operator holds it: relayctl queue release"}
	for i := len(notes) - 1; i >= 0; i-- {
		if n := &notes[i]; n.Event == "held" {
			w.since, w.text = n.At, fmt.Sprintf("%s holds it: relayctl queue release", n.Who)
			if n.Why != "" {
				w.text = fmt.Sprintf("%s holds it (%s): relayctl queue release", n.Who, n.Why)
			}
			break
		}
	}
	return w
}

func (s *Server) listHistory(r *request, l list) ([]api.QueueItem, string, error) {
	v := r.URL.Query()
	q := spool.HistoryQuery{Recipient: v.Get("to"), MessageID: v.Get("message_id")}
	var err error
	if q.Account, err = r.filter(); err != nil {
		return nil, "", err
	}
	given := 0
	for _, name := range []string{"to", "message_id", "id"} {
		if v.Get(name) != "" {
			given++
		}
		if len(v.Get(name)) > 1000 {
			return nil, "", badParameter(name, name+" is longer than 1000 bytes.")
		}
	}
	if given != 1 {
		return nil, "", badParameter("to", "Give one of to, message_id and id.")
	}
	one := ""
	if text := strings.ToLower(v.Get("id")); text != "" {
		queueID, _, envelope := strings.Cut(text, ".")
		if q.Message, err = mail.ParseQueueID(queueID); err != nil {
			return nil, "", badParameter("id", "id must be a queue ID or an envelope ID.")
		}
		if envelope {
			one = text
		}
	}
	outcomes, next, err := s.deps.Queue.History(r.Context(), q, l.cursor, l.limit)
	outcomes = slices.DeleteFunc(outcomes, func(o spool.OutcomeRecord) bool { return one != "" && o.ID.String() != one })
	return each(outcomes, outcomeItem), next, err
}
