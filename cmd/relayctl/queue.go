package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"relayd/internal/api"
	"relayd/internal/mail"
)

func (a *app) queueCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "queue",
		Short: "See and steer what waits for delivery",
		Long: `See and steer what waits for delivery.

What is meant is said by IDs (a queue ID names a message with all its envelopes, queueID.n names one envelope) or by
selector words, all of which must match:

  domain=example.com    domain of the recipient        state=deferred    ready, deferred, held or leased
  to=ann@example.com    recipient                      campaign=cmp_…    campaign
  from=shop@example.net reverse-path, or from=@domain  stream=marketing  stream
  reply='mailbox full'  part of the last reply         class=bulk        urgent, transactional or bulk
  message=ID            queue ID                       account=default   account
  site=mx.example.com   MX hosts, or a smarthost       'age>2h'          accepted longer ago than that`,
		Example: "  relayctl queue list domain=example.com state=deferred",
	})
	c.AddCommand(a.queueList(), a.queueShow(), a.queueHistory(), a.queueStats(),
		a.queueAction("hold", "Stop attempts until release", "held"),
		a.queueAction("release", "Let held envelopes go on", "released"),
		a.queueAction("retry", "Attempt at once instead of at the next due time", "due now"),
		a.queueAction("fail", "Give up: the outcome is failed", "failed"),
		a.queueAction("move", "Send over another route from now on", "moved"))
	return c
}

func (a *app) queueList() *cobra.Command {
	limit := 0
	c := &cobra.Command{
		Use:   "list [WORD=VALUE]…",
		Short: "List envelopes that wait",
		Example: `  relayctl queue list
  relayctl queue list domain=example.com state=deferred --limit 1000 -o csv`,
		ValidArgsFunction: completeSelector,
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, sel, err := parseSelection(args)
			if err != nil {
				return err
			}
			if len(ids) > 0 {
				return usage("queue list wants words like domain=example.com; relayctl queue show %s shows one message", ids[0])
			}
			return a.call(func(c *api.Client) error {
				page, err := collect(cmd.Context(), limit, func(ctx context.Context, l api.List) (api.Page[api.QueueItem], error) {
					return c.Queue(ctx, sel, l)
				})
				if err != nil {
					return err
				}
				return a.print(page, queueRows(page))
			})
		},
	}
	limitFlag(c, &limit)
	return c
}

func queueRows(page api.Page[api.QueueItem]) *rows {
	t := &rows{header: []string{"id", "state", "from", "to", "attempts", "next attempt", "site", "last reply"}, note: more(page.HasMore)}
	for _, q := range page.Data {
		t.add(q.ID, q.State, orNull(q.From), q.To, number(q.Attempts), moment(q.NextAttempt), q.Site, reply(q.LastReply))
	}
	if len(page.Data) == 0 {
		t.note = "Nothing waits."
	}
	return t
}

func (a *app) queueShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show ID",
		Short:   "Show one message with all its envelopes, the finished ones too",
		Example: "  relayctl queue show 0hzx3k9m2q7v5c8d1f4g",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !isID(args[0]) {
				return usage("%q is not a queue ID", args[0])
			}
			return a.call(func(c *api.Client) error {
				m, err := c.QueueMessage(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if a.format == "json" {
					return printJSON(a.out, m)
				}
				t := &rows{header: []string{"envelope", "state", "to", "attempts", "next attempt", "host", "tls", "last reply"}}
				for _, q := range m.Envelopes {
					t.add(q.ID, q.State, q.To, number(q.Attempts), moment(q.NextAttempt), q.LastHost, q.TLS, reply(q.LastReply))
				}
				if m.Truncated {
					t.note = "There are more envelopes: relayctl queue list message=" + m.ID
				}
				if a.format == "csv" {
					return printCSV(a.out, t)
				}
				head := pairs{
					{"message", m.ID},
					{"from", orNull(m.From)},
					{"subject", m.Subject},
					{"message-id", m.MessageID},
					{"octets", number(m.Size)},
					{"account", m.Account},
					{"stream", m.Stream},
					{"campaign", m.Campaign},
					{"class", m.Class},
					{"credential", m.Credential},
					{"client", m.ClientIP},
					{"accepted", moment(m.AcceptedAt)},
					{"expires", moment(m.ExpiresAt)},
				}
				if err := printTable(a.out, head); err != nil {
					return err
				}
				if err := printTable(a.out, t); err != nil {
					return err
				}
				steps := timelineRows(&m)
				if len(steps.data) == 0 {
					return nil
				}
				return printTable(a.out, steps)
			})
		},
	}
}

func (a *app) queueStats() *cobra.Command {
	queues, sites := 0, 0
	c := &cobra.Command{
		Use:   "stats",
		Short: "Count what waits and what became of the rest",
		Example: `  relayctl queue stats
  relayctl queue stats --queues 20
  relayctl queue stats --sites 20`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(func(c *api.Client) error {
				s, err := c.QueueStats(cmd.Context(), queues, sites)
				if err != nil {
					return err
				}
				if a.format == "json" {
					return printJSON(a.out, s)
				}
				t := &rows{header: []string{"state", "envelopes"}}
				for _, n := range []struct {
					name string
					n    int64
				}{{"queued", s.Queued}, {"ready", s.Ready}, {"deferred", s.Deferred}, {"held", s.Held}, {"leased", s.Leased}, {"in doubt", s.InDoubt}} {
					t.add(n.name, number(n.n))
				}
				for _, o := range []string{"delivered", "bounced", "failed", "expired", "suppressed", "cancelled"} {
					t.add(o, number(s.Outcomes[o]))
				}
				if err := a.print(s, t); err != nil || a.format == "csv" {
					return err
				}
				if len(s.Sites) > 0 {
					if err := printTable(a.out, siteRows(s.Sites)); err != nil {
						return err
					}
				}
				if len(s.Queues) == 0 {
					return nil
				}
				q := &rows{header: []string{"account", "stream", "domain", "ready", "deferred", "held", "leased", "oldest", "next due"}}
				for _, n := range s.Queues {
					q.add(n.Account, n.Stream, n.Domain, number(n.Ready), number(n.Deferred), number(n.Held), number(n.Leased), moment(n.Oldest), moment(n.NextDue))
				}
				return printTable(a.out, q)
			})
		},
	}
	c.Flags().IntVar(&queues, "queues", 0, "list the `N` largest queues as well")
	c.Flags().IntVar(&sites, "sites", 0, "list the `N` largest sites as well: sets of MX hosts, by the first one, and smarthosts")
	return c
}

func siteRows(counts []api.SiteCount) *rows {
	t := &rows{header: []string{"site", "domains", "ready", "deferred", "held", "leased"}}
	for _, n := range counts {
		name := n.Site
		if name == "" {
			name = "(not known)"
		}
		t.add(name, number(n.Domains), number(n.Ready), number(n.Deferred), number(n.Held), number(n.Leased))
	}
	return t
}

func (a *app) queueAction(action, short, done string) *cobra.Command {
	var in api.QueueAction
	all := false
	c := &cobra.Command{
		Use:   action + " ID… | WORD=VALUE… | --all",
		Short: short,
		Example: "  relayctl queue " + action + " domain=example.com state=deferred --dry-run\n" +
			"  relayctl queue " + action + " 0hzx3k9m2q7v5c8d1f4g --reason 'ticket 12'",
		ValidArgsFunction: completeSelector,
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, sel, err := parseSelection(args)
			if err != nil {
				return err
			}
			if len(args) == 0 && !all {
				return usage("queue %s wants IDs, words like domain=example.com, or --all", action)
			}
			if all && len(args) > 0 {
				return usage("--all stands alone, without IDs or words")
			}
			if in.Action = action; action == "move" && in.Route == "" {
				return usage("queue move wants --route NAME")
			}
			sel.All = all
			return a.call(func(c *api.Client) error {
				r, err := act(cmd.Context(), c, in, ids, sel)
				if err != nil {
					return err
				}
				word := done
				if in.DryRun {
					word = "would be " + done
				}
				note := plural(r.Changed, "envelope", "envelopes") + " " + word + ", " + number(r.Unchanged) + " unchanged, " + number(r.InFlight) + " being attempted"
				if in.Notify {
					note += "; " + plural(r.Notices, "notice", "notices") + " to senders"
				}
				if r.Unknown > 0 {
					note += "; " + plural(r.Unknown, "domain", "domains") + " left out: the site is not known"
				}
				if a.format == "table" {
					return printTable(a.out, &rows{note: note})
				}
				return a.print(r, &rows{
					header: []string{"action", "dry_run", "matched", "changed", "in_flight", "unchanged"},
					data:   [][]string{{r.Action, yesNo(r.DryRun), number(r.Matched), number(r.Changed), number(r.InFlight), number(r.Unchanged)}},
				})
			})
		},
	}
	c.Flags().BoolVar(&in.DryRun, "dry-run", false, "only count what would change")
	if action == "fail" {
		c.Flags().BoolVar(&in.Notify, "notify", false, "tell the senders of submitted messages by a delivery status notification")
	}
	if action == "move" {
		c.Flags().StringVar(&in.Route, "route", "", "`name` of a smarthost, mx for the recipient's MX hosts, or default for what the configuration says")
	}
	c.Flags().StringVar(&in.Reason, "reason", "", "`text` for the event log")
	c.Flags().BoolVar(&all, "all", false, "everything that waits")
	return c
}

// maxIDs is how many IDs one request may hold.
const maxIDs = 1000

// act sends the action, in several requests where there are many IDs.
func act(ctx context.Context, c *api.Client, in api.QueueAction, ids []string, sel api.QueueSelector) (api.QueueActionResult, error) {
	if len(ids) == 0 {
		in.Selector = &sel
		return c.QueueAct(ctx, in)
	}
	sum := api.QueueActionResult{Action: in.Action, DryRun: in.DryRun}
	for len(ids) > 0 {
		n := min(maxIDs, len(ids))
		in.IDs, ids = ids[:n], ids[n:]
		r, err := c.QueueAct(ctx, in)
		if err != nil {
			return sum, err
		}
		sum.Matched, sum.Changed = sum.Matched+r.Matched, sum.Changed+r.Changed
		sum.Notices += r.Notices
		sum.InFlight, sum.Unchanged = sum.InFlight+r.InFlight, sum.Unchanged+r.Unchanged
	}
	return sum, nil
}

func isID(s string) bool {
	_, err := mail.ParseQueueID(s)
	if err == nil {
		return true
	}
	_, err = mail.ParseEnvelopeID(s)
	return err == nil
}

func selectorWords() []string {
	return []string{"account", "message", "stream", "campaign", "domain", "from", "to", "state", "class", "reply", "site"}
}

// parseSelection reads either IDs or selector words.
func parseSelection(args []string) (ids []string, sel api.QueueSelector, err error) {
	fields := map[string]*string{
		"account": &sel.Account, "message": &sel.Message, "stream": &sel.Stream, "campaign": &sel.Campaign,
		"domain": &sel.Domain, "from": &sel.From, "to": &sel.To, "state": &sel.State, "class": &sel.Class, "reply": &sel.Reply,
		"site": &sel.Site,
	}
	words := 0
	for _, arg := range args {
		if age, ok := strings.CutPrefix(arg, "age>"); ok {
			d, err := time.ParseDuration(age)
			if err != nil || d < time.Second {
				return nil, sel, usage("age>%s: want a duration such as 90s or 2h", age)
			}
			sel.OlderThanSeconds = int64(d / time.Second)
			words++
			continue
		}
		key, value, isWord := strings.Cut(arg, "=")
		if !isWord {
			if !isID(arg) {
				return nil, sel, usage("%q is neither an ID nor a word like domain=example.com", arg)
			}
			ids = append(ids, arg)
			continue
		}
		words++
		field, ok := fields[key]
		switch {
		case !ok:
			return nil, sel, usage("unknown word %q: want one of %s", key, joinComma(append(selectorWords(), "age>2h")))
		case value == "":
			return nil, sel, usage("%s= wants a value", key)
		case *field != "":
			return nil, sel, usage("%s= is given twice", key)
		}
		if *field, err = selectorValue(key, value); err != nil {
			return nil, sel, err
		}
	}
	if words > 0 && len(ids) > 0 {
		return nil, sel, usage("IDs and words exclude each other")
	}
	return ids, sel, nil
}

func selectorValue(key, value string) (string, error) {
	switch key {
	case "domain":
		d, err := mail.ParseDomain(value, true)
		if err != nil {
			return "", usage("domain=: %v", err)
		}
		return d, nil
	case "state":
		switch value {
		case "ready", "deferred", "held", "leased":
		default:
			return "", usage("state=%s: want ready, deferred, held or leased", value)
		}
	case "class":
		switch value {
		case "urgent", "transactional", "bulk":
		default:
			return "", usage("class=%s: want urgent, transactional or bulk", value)
		}
	case "message":
		if !isID(value) {
			return "", usage("message=%s is not a queue ID", value)
		}
	}
	return value, nil
}

func completeSelector(_ *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	var out []string
	for _, w := range selectorWords() {
		out = append(out, w+"=")
	}
	return append(out, "state=ready", "state=deferred", "state=held", "state=leased"),
		cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
}

// limitFlag bounds how much of a list is fetched.
func limitFlag(c *cobra.Command, limit *int) {
	c.Flags().IntVar(limit, "limit", api.DefaultLimit, "list at most `N` entries, 0 for all")
}

// collect fetches a list page by page until limit (0: all of it).
func collect[T any](ctx context.Context, limit int, fetch func(context.Context, api.List) (api.Page[T], error)) (api.Page[T], error) {
	out := api.Page[T]{Data: []T{}}
	if limit < 0 {
		return out, usage("--limit %d is below 0", limit)
	}
	for {
		l := api.List{Limit: api.MaxLimit, Cursor: out.NextCursor}
		if limit > 0 {
			l.Limit = min(api.MaxLimit, limit-len(out.Data))
		}
		page, err := fetch(ctx, l)
		if err != nil {
			return out, err
		}
		out.Data = append(out.Data, page.Data...)
		out.HasMore, out.NextCursor = page.HasMore, page.NextCursor
		if !page.HasMore || page.NextCursor == "" || limit > 0 && len(out.Data) >= limit {
			return out, nil
		}
	}
}

func more(hasMore bool) string {
	if hasMore {
		return "There is more: use --limit."
	}
	return ""
}
