package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"relayd/internal/api"
)

func (a *app) siteCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "site",
		Short: "See and steer where mail goes to",
		Long: `See and steer where mail goes to.

A site is a set of MX hosts, named by the first one, or a smarthost; all domains with the same hosts share it. A provider
(provider:google) is all sites of one operator. What is said here holds for what waits, not for a transaction under way.`,
		Example: "  relayctl site list --state paused",
	})
	c.AddCommand(a.siteList(), a.siteShow(), a.siteSuspend(), a.siteResume())
	return c
}

func (a *app) siteList() *cobra.Command {
	limit, state := 0, ""
	c := &cobra.Command{
		Use:   "list",
		Short: "List sites and providers, those with the most mail first",
		Example: `  relayctl site list
  relayctl site list --state paused -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch state {
			case "", "active", "idle", "limited", "paused", "suspended":
			default:
				return usage("--state %s: want active, idle, limited, paused or suspended", state)
			}
			return a.call(func(c *api.Client) error {
				page, err := collect(cmd.Context(), limit, func(ctx context.Context, l api.List) (api.Page[api.Site], error) {
					return c.Sites(ctx, state, l)
				})
				if err != nil {
					return err
				}
				t := &rows{
					header: []string{"name", "state", "limited by", "until", "connections", "ready", "queues", "per second", "last reply"},
					note:   more(page.HasMore),
				}
				for i := range page.Data {
					x := &page.Data[i]
					t.add(x.Name, x.State, strings.TrimSpace(x.Limit+" "+x.LimitedBy), moment(x.Until), connections(x), number(x.Ready), number(x.Queues), perSecond(x.Speed), reply(x.LastReply))
				}
				if len(page.Data) == 0 {
					t.note = "No mail went anywhere of late."
					if state != "" {
						t.note = "No site is " + state + "."
					}
				}
				return a.print(page, t)
			})
		},
	}
	limitFlag(c, &limit)
	c.Flags().StringVar(&state, "state", "", "only those in this `state`: active, idle, limited, paused or suspended")
	_ = c.RegisterFlagCompletionFunc("state", cobra.FixedCompletions([]string{"active", "idle", "limited", "paused", "suspended"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// connections are those in use and those allowed.
func connections(x *api.Site) string { return fmt.Sprintf("%d of %d", x.Connections, x.Window) }

func perSecond(f float64) string {
	if f == 0 {
		return "0"
	}
	return fmt.Sprintf("%.3g", f)
}

func (a *app) siteShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show NAME",
		Short:   "Show one site or provider: its limits, what was learned, why it stands",
		Example: "  relayctl site show provider:google\n  relayctl site show mx.example.com",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				page, err := c.Site(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if a.format == "json" {
					return printJSON(a.out, page)
				}
				for i := range page.Data {
					if err := a.print(page, sitePairs(&page.Data[i])); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

func sitePairs(x *api.Site) pairs {
	p := pairs{
		{"name", x.Name},
		{"kind", x.Kind},
		{"provider", x.Provider},
		{"hosts", x.Hosts},
		{"state", x.State},
		{"limited by", strings.TrimSpace(x.Limit + " " + x.LimitedBy)},
		{"until", moment(x.Until)},
	}
	if h := x.Hold; h != nil {
		p = append(p, pairs{{"suspended by", h.Who}, {"since", moment(h.Since)}, {"reason", h.Reason}}...)
	}
	p = append(p, pairs{
		{"connections", fmt.Sprintf("%d in use, %d idle, %d allowed now, %d at most", x.Connections, x.Idle, x.Window, x.Ceiling)},
		{"ready", fmt.Sprintf("%d transactions, %d envelopes under lease, %d queues", x.Ready, x.Leased, x.Queues)},
		{"speed", perSecond(x.Speed) + " messages/s"},
		{"rate limit", x.Rate},
	}...)
	if x.Pace > 0 {
		p = append(p, [2]string{"pace", perSecond(x.Pace) + " messages/s, since it complained"})
	}
	if x.Messages > 0 {
		p = append(p, [2]string{"per connection", number(x.Messages) + " messages"})
	}
	if x.Sites > 0 {
		p = append(p, [2]string{"sites", number(x.Sites)})
	}
	if x.Failures > 0 {
		p = append(p, pairs{{"failures", number(x.Failures) + " in a row, " + x.Cause}, {"paused", moment(x.Paused)}, {"resumes", moment(x.Resume)}}...)
	}
	return append(p, pairs{{"last reply", strings.TrimSpace(x.LastHost + "  " + reply(x.LastReply))}, {"used", moment(x.Used)}}...)
}

func (a *app) siteSuspend() *cobra.Command {
	var in api.SiteSuspension
	var lasts time.Duration
	c := &cobra.Command{
		Use:   "suspend NAME",
		Short: "Keep mail from a site or provider until it is resumed",
		Long: `Keep mail from a site or provider. What waits for it stays in its queue and loses no attempt, but it does expire. The
suspension outlives a restart.`,
		Example: "  relayctl site suspend provider:yahoo --for 2h --reason 'TSS05, ticket 12'",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("for") {
				if lasts < time.Second || lasts > 10*365*24*time.Hour {
					return usage("--for %s: want a duration from 1s on, such as 90m or 24h", lasts)
				}
				in.Seconds = int64(lasts / time.Second)
			}
			return a.call(func(c *api.Client) error {
				r, err := c.SuspendSite(cmd.Context(), args[0], in)
				if err != nil {
					return err
				}
				note := r.Name + " is suspended until relayctl site resume " + r.Name
				if !r.Until.IsZero() {
					note = r.Name + " is suspended until " + moment(r.Until)
				}
				return a.printChange(r, note)
			})
		},
	}
	c.Flags().DurationVar(&lasts, "for", 0, "how long, such as 90m or 24h; without it until it is resumed")
	c.Flags().StringVar(&in.Reason, "reason", "", "`text` for the event log and for relayctl why")
	return c
}

func (a *app) siteResume() *cobra.Command {
	var in api.SiteResumption
	c := &cobra.Command{
		Use:     "resume NAME",
		Short:   "End a suspension, and a pause of relayd's own",
		Example: "  relayctl site resume provider:yahoo",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				r, err := c.ResumeSite(cmd.Context(), args[0], in)
				if err != nil {
					return err
				}
				note := r.Name + " goes on"
				if !r.Changed {
					note = r.Name + " was neither suspended nor paused"
				}
				return a.printChange(r, note)
			})
		},
	}
	c.Flags().StringVar(&in.Reason, "reason", "", "`text` for the event log")
	return c
}

func (a *app) printChange(r api.SiteChanged, note string) error {
	if a.format == "table" {
		return printTable(a.out, &rows{note: note})
	}
	return a.print(r, &rows{header: []string{"name", "changed", "until"}, data: [][]string{{r.Name, yesNo(r.Changed), moment(r.Until)}}})
}
