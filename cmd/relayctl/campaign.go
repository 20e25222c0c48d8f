package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"relayd/internal/api"
)

func (a *app) campaignCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:     "campaign",
		Short:   "Make, start and watch campaigns",
		Example: "  relayctl campaign create --template promo.html --subject 'Hello {{Name}}' --from deals@example.com --recipients customers.csv --start",
	})
	c.AddCommand(a.campaignCreate(),
		a.campaignAction("start", "Start a draft"),
		a.campaignAction("pause", "Stop new attempts; those that run finish"),
		a.campaignAction("resume", "Let a paused campaign go on"),
		a.campaignAction("cancel", "End a campaign: what is not delivered yet is cancelled"),
		a.campaignAction("retry-failed", "Send again to those whom relayd failed; what bounced stays as it is"),
		a.campaignAction("clone", "Make a draft of the same content, settings and audience"),
		a.campaignAction("unschedule", "Make a scheduled campaign a draft again"),
		a.campaignSchedule(), a.campaignValidate(), a.campaignPreview(), a.campaignTest(), a.campaignSet(), a.campaignDelete(),
		a.campaignList(), a.campaignShow(), a.campaignWatch(), a.campaignReport(), a.campaignRecipients())
	return c
}

func (a *app) campaignAction(action, short string) *cobra.Command {
	return &cobra.Command{
		Use:     action + " ID",
		Short:   short,
		Example: "  relayctl campaign " + action + " cmp_0k2c9xw4",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				r, err := c.CampaignAction(cmd.Context(), args[0], action)
				if err != nil {
					return err
				}
				return a.print(r, campaignPairs(createdCampaign{Campaign: r}))
			})
		},
	}
}

func (a *app) campaignList() *cobra.Command {
	limit, account := 0, ""
	c := &cobra.Command{
		Use:     "list",
		Short:   "List campaigns, newest first",
		Example: "  relayctl campaign list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(func(c *api.Client) error {
				page, err := collect(cmd.Context(), limit, func(ctx context.Context, l api.List) (api.Page[api.Campaign], error) {
					p, err := c.Campaigns(ctx, account, l)
					return api.Page[api.Campaign](p), err
				})
				if err != nil {
					return err
				}
				t := &rows{header: []string{"id", "name", "state", "recipients", "created", "started", "finished"}, note: more(page.HasMore)}
				for _, r := range page.Data {
					t.add(r.ID, r.Name, r.State, number(r.Total), moment(r.CreatedAt), moment(r.StartedAt), moment(r.FinishedAt))
				}
				return a.print(page, t)
			})
		},
	}
	limitFlag(c, &limit)
	c.Flags().StringVar(&account, "account", "", "`account`; default: the caller's own")
	return c
}

func (a *app) campaignRecipients() *cobra.Command {
	limit, state := 0, ""
	c := &cobra.Command{
		Use:   "recipients ID",
		Short: "List what became of each recipient",
		Example: `  relayctl campaign recipients cmp_0k2c9xw4 --state bounced
  relayctl campaign recipients cmp_0k2c9xw4 --limit 0 -o csv > result.csv`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				page, err := collect(cmd.Context(), limit, func(ctx context.Context, l api.List) (api.Page[api.RecipientResult], error) {
					p, err := c.CampaignRecipients(ctx, args[0], state, l)
					return api.Page[api.RecipientResult](p), err
				})
				if err != nil {
					return err
				}
				t := &rows{header: []string{"address", "state", "reason", "attempts", "host", "reply", "at", "envelope"}, note: more(page.HasMore)}
				for _, r := range page.Data {
					host, text := "", ""
					if s := r.SMTP; s != nil {
						host, text = s.Host, strings.TrimSpace(fmt.Sprintf("%d %s %s", s.Code, s.Enhanced, s.Text))
					}
					t.add(r.Address, r.State, r.Reason, number(r.Attempts), host, text, momentOf(r.At), r.Message)
				}
				return a.print(page, t)
			})
		},
	}
	limitFlag(c, &limit)
	c.Flags().StringVar(&state, "state", "", "only recipients in this `state`: pending, deferred, delivered, bounced…")
	c.AddCommand(a.campaignAddRecipients())
	return c
}

func (a *app) campaignShow() *cobra.Command {
	watch := false
	c := &cobra.Command{
		Use:   "show ID",
		Short: "Show how far a campaign has come",
		Example: `  relayctl campaign show cmp_0k2c9xw4
  relayctl campaign show cmp_0k2c9xw4 --watch`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				p, err := c.CampaignProgress(cmd.Context(), args[0])
				if err == nil && watch {
					p, err = a.watch(cmd.Context(), c, p)
				}
				if err != nil {
					return err
				}
				return a.print(p, progressPairs(p))
			})
		},
	}
	c.Flags().BoolVar(&watch, "watch", false, "draw a progress bar on standard error until the campaign has ended")
	return c
}

func progressPairs(p api.Progress) pairs {
	t := pairs{{"campaign", p.ID}, {"name", p.Name}, {"state", p.State}, {"reason", strings.TrimSpace(p.Reason + " " + p.Detail)}, {"recipients", number(p.Total)}}
	c := p.Counts
	for _, n := range []struct {
		name string
		n    int64
	}{
		{"pending", c.Pending},
		{"sending", c.Sending},
		{"deferred", c.Deferred},
		{"delivered", c.Delivered},
		{"bounced", c.Bounced},
		{"failed", c.Failed},
		{"suppressed", c.Suppressed},
		{"unsubscribed", c.Unsubscribed},
		{"render failed", c.RenderFailed},
		{"expired", c.Expired},
		{"cancelled", c.Cancelled},
		{"invalid", c.Invalid},
		{"in doubt", c.InDoubt},
	} {
		if n.n > 0 {
			t = append(t, [2]string{n.name, number(n.n)})
		}
	}
	for _, one := range p.Providers {
		text := fmt.Sprintf("%d delivered, %d deferred", one.Delivered, one.Deferred)
		if one.LimitPerSecond > 0 {
			text += fmt.Sprintf(", at most %.3g/s", one.LimitPerSecond)
		}
		if one.State != "ok" {
			text += ", " + one.State
			if one.Until != nil {
				text += " until " + momentOf(one.Until)
			}
			text += ": " + one.Reason
		}
		t = append(t, [2]string{one.Name, text})
	}
	return append(t, pairs{
		{"rate", fmt.Sprintf("%.1f/s now, %.1f/s on average", p.Rate.Last10s, p.Rate.Average)},
		{"limited by", strings.TrimSpace(p.LimitedBy + " " + p.LimitedDetail)},
		{"started", momentOf(p.StartedAt)},
		{"finished", momentOf(p.FinishedAt)},
		{"eta", momentOf(p.ETA)},
	}...)
}
