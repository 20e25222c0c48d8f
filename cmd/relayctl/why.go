package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"relayd/internal/api"
	"relayd/internal/mail"
)

func (a *app) whyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "why ID",
		Short: "Say what one message waits for",
		Long: `Say what the envelopes of one message wait for: which hold, pause, retry, suspension or limit, since when, until when,
and the last three replies.`,
		Example: "  relayctl why 0hzx3k9m2q7v5c8d1f4g",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !isID(args[0]) {
				return usage("%q is not a queue ID", args[0])
			}
			return a.call(func(c *api.Client) error {
				w, err := c.QueueWhy(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if a.format != "table" {
					return a.print(w, whyRows(w))
				}
				for i := range w.Envelopes {
					if err := printTable(a.out, whyPairs(&w.Envelopes[i])); err != nil {
						return err
					}
				}
				if w.Truncated {
					return printTable(a.out, &rows{note: "There are more envelopes: relayctl queue list message=" + w.ID})
				}
				return nil
			})
		},
	}
}

// whyPairs is one envelope for people.
func whyPairs(e *api.EnvelopeWhy) pairs {
	p := pairs{
		{"envelope", e.ID},
		{"to", e.To},
		{"state", e.State},
		{"because", e.Text},
		{"site", e.Site},
		{"limited by", e.LimitedBy},
		{"since", moment(e.Since)},
		{"until", moment(e.Until)},
		{"attempts", number(e.Attempts)},
	}
	for _, r := range e.Replies {
		p = append(p, [2]string{"reply", strings.TrimSpace(moment(r.At) + "  " + r.Host + "  " + reply(r.Reply))})
	}
	return p
}

func whyRows(w api.QueueWhy) *rows {
	t := &rows{header: []string{"envelope", "to", "state", "reason", "text", "site", "limited by", "since", "until", "attempts", "last reply"}}
	for i := range w.Envelopes {
		e := &w.Envelopes[i]
		last := ""
		if n := len(e.Replies); n > 0 {
			last = reply(e.Replies[n-1].Reply)
		}
		t.add(e.ID, e.To, e.State, e.Reason, e.Text, e.Site, e.LimitedBy, moment(e.Since), moment(e.Until), number(e.Attempts), last)
	}
	return t
}

func (a *app) queueHistory() *cobra.Command {
	limit := 0
	c := &cobra.Command{
		Use:   "history to=ADDRESS | message-id=ID | ID",
		Short: "Show what became of messages, the last ones first",
		Long:  "Show the final outcome of envelopes by recipient, by Message-ID, or by queue ID. They are kept for spool.retention.",
		Example: `  relayctl queue history to=ann@example.com
  relayctl queue history message-id='<order-7@shop.example>'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q, err := parseHistory(args[0])
			if err != nil {
				return err
			}
			return a.call(func(c *api.Client) error {
				page, err := collect(cmd.Context(), limit, func(ctx context.Context, l api.List) (api.Page[api.QueueItem], error) {
					return c.History(ctx, q, l)
				})
				if err != nil {
					return err
				}
				return a.print(page, outcomeRows(page))
			})
		},
	}
	limitFlag(c, &limit)
	return c
}

func outcomeRows(page api.Page[api.QueueItem]) *rows {
	t := &rows{
		header: []string{"envelope", "outcome", "from", "to", "accepted", "settled", "attempts", "host", "tls", "reply"},
		note:   more(page.HasMore),
	}
	for _, o := range page.Data {
		t.add(o.ID, o.State, orNull(o.From), o.To, moment(o.AcceptedAt), moment(o.SettledAt), number(o.Attempts), o.LastHost, o.TLS, reply(o.LastReply))
	}
	if len(page.Data) == 0 {
		t.note = "No outcome is known. relayctl queue list shows what still waits."
	}
	return t
}

func parseHistory(arg string) (q api.HistoryQuery, err error) {
	key, value, word := strings.Cut(arg, "=")
	switch {
	case !word && isID(arg):
		q.ID = arg
	case key == "to" && word:
		p, err := mail.ParsePath(value)
		if err != nil || p.IsNull() {
			return q, usage("to=%s is not an address", value)
		}
		q.To = p.String()
	case key == "message-id" && word && value != "":
		q.MessageID = value
	default:
		return q, usage("%q: want to=ADDRESS, message-id=ID or a queue ID", arg)
	}
	return q, nil
}

// timelineRows lists what happened to the envelopes of a message, if more than their acceptance did.
func timelineRows(m *api.QueueMessage) *rows {
	t := &rows{header: []string{"envelope", "time", "event", "attempt", "host", "tls", "reply", "by"}}
	for i := range m.Envelopes {
		e := &m.Envelopes[i]
		for _, s := range e.Timeline {
			by := s.Who
			if s.Why != "" {
				by += ": " + s.Why
			}
			attempt := ""
			if s.Attempt > 0 {
				attempt = number(s.Attempt)
			}
			event := s.Event
			if s.Reason != "" {
				event += " (" + s.Reason + ")"
			}
			t.add(e.ID, moment(s.At), event, attempt, s.Host, s.TLS, reply(s.Reply), by)
		}
	}
	return t
}
