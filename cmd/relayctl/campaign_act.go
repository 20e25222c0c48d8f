package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"relayd/internal/api"
)

// paceFlags say how fast and how long.
type paceFlags struct {
	concurrency        int
	rate               float64
	spread, ttl, grace time.Duration
}

func (f *paceFlags) flags(fl *pflag.FlagSet) {
	fl.IntVar(&f.concurrency, "concurrency", 0, "SMTP transactions at a time, a `number`; default 10")
	fl.Float64Var(&f.rate, "rate", 0, "recipients per second, a `number`; default: as fast as hosts allow")
	fl.DurationVar(&f.spread, "spread", 0, "spread recipients evenly over this `time`, such as 4h")
	fl.DurationVar(&f.ttl, "ttl", 0, "give messages up this `time` after they were to be sent; default 24h")
	fl.DurationVar(&f.grace, "misfire-grace", time.Hour, "a schedule missed by more than this `time` pauses the campaign")
}

func (f *paceFlags) apply(cmd *cobra.Command, send *api.CampaignSend) (changed bool) {
	seconds := func(d time.Duration) int64 { return int64(d / time.Second) }
	for name, set := range map[string]func(){
		"concurrency":   func() { send.MaxConcurrency = f.concurrency },
		"rate":          func() { send.MaxRatePerSecond = f.rate },
		"spread":        func() { send.SpreadSeconds = seconds(f.spread) },
		"ttl":           func() { send.TTLSeconds = seconds(f.ttl) },
		"misfire-grace": func() { n := seconds(f.grace); send.MisfireGraceSeconds = &n },
	} {
		if cmd.Flags().Changed(name) {
			set()
			changed = true
		}
	}
	return changed
}

// guardFlags are the limits at which a campaign pauses.
type guardFlags struct {
	bounce, complaint, deferral float64
	sample                      int64
}

func (f *guardFlags) flags(fl *pflag.FlagSet) {
	fl.Float64Var(&f.bounce, "guard-bounce", 0, "pause at this `share` of bounces, 0 for never; default 0.1")
	fl.Float64Var(&f.complaint, "guard-complaint", 0, "pause at this `share` of complaints; default 0.005")
	fl.Float64Var(&f.deferral, "guard-deferral", 0, "pause at this `share` of deferrals; default never")
	fl.Int64Var(&f.sample, "guard-sample", 0, "recipients before a guard acts, a `number`; default 200")
}

func (f *guardFlags) apply(cmd *cobra.Command, g *api.CampaignGuards) (changed bool) {
	for name, set := range map[string]func(){
		"guard-bounce":    func() { g.BounceRate = &f.bounce },
		"guard-complaint": func() { g.ComplaintRate = &f.complaint },
		"guard-deferral":  func() { g.DeferralRate = &f.deferral },
		"guard-sample":    func() { g.MinSample = f.sample },
	} {
		if cmd.Flags().Changed(name) {
			set()
			changed = true
		}
	}
	return changed
}

func scheduleText(s *api.CampaignSchedule) string {
	switch {
	case s == nil:
		return ""
	case s.SendAtLocal != "":
		return s.SendAtLocal + " where the recipient is, else in " + s.FallbackTimezone
	}
	return moment(s.SendAt)
}

func (a *app) campaignSchedule() *cobra.Command {
	at, local, zone := "", "", ""
	c := &cobra.Command{
		Use:   "schedule ID",
		Short: "Start a draft at a time, or at a time of day where each recipient is",
		Example: `  relayctl campaign schedule cmp_0k2c9xw4 --at 2026-11-27T09:00:00+09:00
  relayctl campaign schedule cmp_0k2c9xw4 --local 2026-11-27T09:00 --timezone Asia/Seoul`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := api.CampaignSchedule{SendAtLocal: local, FallbackTimezone: zone}
			if at != "" {
				var err error
				if in.SendAt, err = time.Parse(time.RFC3339, at); err != nil {
					return usage("--at %q is not a time with its zone, such as 2026-11-27T09:00:00+09:00", at)
				}
			}
			if (at == "") == (local == "") {
				return usage("campaign schedule wants one of --at and --local")
			}
			return a.call(func(c *api.Client) error {
				r, err := c.ScheduleCampaign(cmd.Context(), args[0], in)
				if err != nil {
					return err
				}
				return a.print(r, campaignPairs(createdCampaign{Campaign: r}))
			})
		},
	}
	c.Flags().StringVar(&at, "at", "", "`time` with its zone, RFC 3339")
	c.Flags().StringVar(&local, "local", "", "`time` without a zone: where the recipient is")
	c.Flags().StringVar(&zone, "timezone", "", "time `zone` of recipients without a timezone attribute, with --local")
	return c
}

var errNotReady = errors.New("the campaign is not ready to be sent")

func (a *app) campaignValidate() *cobra.Command {
	return &cobra.Command{
		Use:     "validate ID",
		Short:   "Tell what would become of a campaign, without sending; fails where a check does",
		Example: "  relayctl campaign validate cmp_0k2c9xw4",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				v, err := c.ValidateCampaign(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				n := v.Recipients
				t := pairs{
					{"recipients", number(n.Total)},
					{"will send", number(n.WillSend)},
					{"suppressed", number(n.Suppressed)},
					{"unsubscribed", number(n.Unsubscribed)},
					{"invalid", number(n.Invalid)},
					{"render failed", number(n.RenderFailed)},
					{"estimated", fmt.Sprintf("%s, %d bytes", time.Duration(v.Estimated.Seconds)*time.Second, v.Estimated.Bytes)},
				}
				for _, check := range v.Checks {
					text := "ok"
					if !check.OK {
						text = "FAILED: " + check.Detail
						if len(check.Sample) > 0 {
							text += ", such as " + strings.Join(check.Sample, ", ")
						}
					}
					t = append(t, [2]string{check.ID, text})
				}
				for _, w := range v.Warnings {
					t = append(t, [2]string{"warning", strings.TrimSpace(w.Code + " " + w.Part + " " + w.Detail)})
				}
				for _, f := range v.Findings {
					t = append(t, [2]string{f.Level, findingLine(f)})
				}
				if err := a.print(v, t); err != nil {
					return err
				}
				if !v.OK {
					return errNotReady
				}
				return nil
			})
		},
	}
}

// dataOf reads KEY=VALUE flags.
func dataOf(list []string) (map[string]any, error) {
	if len(list) == 0 {
		return nil, nil
	}
	data := map[string]any{}
	for _, one := range list {
		key, value, ok := strings.Cut(one, "=")
		if !ok || key == "" {
			return nil, usage("--data %q is not like KEY=VALUE", one)
		}
		data[key] = value
	}
	return data, nil
}

func (a *app) campaignPreview() *cobra.Command {
	contact, sample, part := "", "", ""
	var data []string
	c := &cobra.Command{
		Use:   "preview ID",
		Short: "Show one recipient's message, made by the code that sends",
		Example: `  relayctl campaign preview cmp_0k2c9xw4 --contact ann@example.com
  relayctl campaign preview cmp_0k2c9xw4 --data Name=Ann --part html > ann.html`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			attributes, err := dataOf(data)
			if err != nil {
				return err
			}
			return a.call(func(c *api.Client) error {
				p, err := c.PreviewCampaign(cmd.Context(), args[0], api.PreviewCampaign{Contact: contact, Sample: sample, Data: attributes})
				if err != nil {
					return err
				}
				switch part {
				case "html", "text", "subject":
					_, err = fmt.Fprintln(a.out, map[string]string{"html": p.HTML, "text": p.Text, "subject": p.Subject}[part])
					return err
				case "":
				default:
					return usage("--part is html, text or subject")
				}
				return a.print(p, pairs{{"to", p.To}, {"subject", p.Subject}, {"bytes", number(p.Bytes)}, {"text", "\n" + p.Text}})
			})
		},
	}
	c.Flags().StringVar(&contact, "contact", "", "`address` of a recipient; default: the first")
	c.Flags().StringVar(&sample, "sample", "", "`name` of a sample of the stored template, in place of a recipient")
	c.Flags().StringArrayVar(&data, "data", nil, "merge data `KEY=VALUE` in place of the recipient's, repeatable")
	c.Flags().StringVar(&part, "part", "", "only this `part`: html, text or subject")
	return c
}

func (a *app) campaignTest() *cobra.Command {
	in := api.TestCampaign{}
	var data []string
	c := &cobra.Command{
		Use:   "test ID --to ADDRESS",
		Short: "Send one recipient's message to yourself; it is not counted",
		Example: `  relayctl campaign test cmp_0k2c9xw4 --to me@shop.example
  relayctl campaign test cmp_0k2c9xw4 --to me@shop.example --as ann@example.com`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if in.Data, err = dataOf(data); err != nil {
				return err
			}
			if len(in.To) == 0 {
				return usage("campaign test wants --to")
			}
			return a.call(func(c *api.Client) error {
				sent, err := c.TestCampaign(cmd.Context(), args[0], in)
				if err != nil {
					return err
				}
				return a.print(sent, pairs{{"messages", strings.Join(sent.Messages, " ")}})
			})
		},
	}
	c.Flags().StringSliceVar(&in.To, "to", nil, "`address`, repeatable")
	c.Flags().StringVar(&in.AsContact, "as", "", "`address` of the recipient whose data it shows; default: the first")
	c.Flags().StringArrayVar(&data, "data", nil, "merge data `KEY=VALUE` in place of the recipient's, repeatable")
	return c
}

func (a *app) campaignSet() *cobra.Command {
	send, guards, etag := paceFlags{}, guardFlags{}, ""
	c := &cobra.Command{
		Use:   "set ID",
		Short: "Change how fast a campaign is sent, and its guards, while it runs or is paused",
		Example: `  relayctl campaign set cmp_0k2c9xw4 --rate 20 --concurrency 5
  relayctl campaign set cmp_0k2c9xw4 --guard-bounce 0.2`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				now, err := c.Campaign(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				in := api.PatchCampaign{}
				if send.apply(cmd, &now.Send) {
					in.Send = &now.Send
				}
				if guards.apply(cmd, &now.Guards) {
					in.Guards = &now.Guards
				}
				if in.Send == nil && in.Guards == nil {
					return usage("campaign set wants something to change, such as --rate 20")
				}
				if etag == "" {
					etag = now.ETag
				}
				r, err := c.PatchCampaign(cmd.Context(), args[0], etag, in)
				if err != nil {
					return err
				}
				return a.print(r, campaignPairs(createdCampaign{Campaign: r}))
			})
		},
	}
	send.flags(c.Flags())
	guards.flags(c.Flags())
	c.Flags().StringVar(&etag, "etag", "", "only if this is its `etag` still")
	return c
}

func (a *app) campaignDelete() *cobra.Command {
	return &cobra.Command{
		Use:     "delete ID",
		Short:   "Forget a draft, or a campaign that has ended",
		Example: "  relayctl campaign delete cmp_0k2c9xw4",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error { return c.DeleteCampaign(cmd.Context(), args[0]) })
		},
	}
}

func (a *app) campaignWatch() *cobra.Command {
	return &cobra.Command{
		Use:     "watch ID",
		Short:   "Draw a live progress bar until the campaign has ended",
		Example: "  relayctl campaign watch cmp_0k2c9xw4",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				p, err := c.CampaignProgress(cmd.Context(), args[0])
				if err == nil {
					p, err = a.watch(cmd.Context(), c, p)
				}
				if err != nil {
					return err
				}
				return a.print(p, progressPairs(p))
			})
		},
	}
}

func (a *app) campaignReport() *cobra.Command {
	return &cobra.Command{
		Use:   "report ID",
		Short: "Tell how a campaign went, and why whom it did not reach was not reached",
		Long:  "Tell how a campaign went, and why whom it did not reach was not reached. With -o csv: one row for each recipient.",
		Example: `  relayctl campaign report cmp_0k2c9xw4
  relayctl campaign report cmp_0k2c9xw4 -o csv > result.csv`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				if a.format == "csv" {
					_, err := c.CampaignReportCSV(cmd.Context(), args[0], a.out)
					return err
				}
				rep, err := c.CampaignReport(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				t := progressPairs(rep.Progress)
				for _, r := range rep.Reasons {
					t = append(t, [2]string{r.State, strings.TrimSpace(fmt.Sprintf("%d × %s %s %s", r.Count, r.Reason, r.Enhanced, r.Sample))})
				}
				return a.print(rep, t)
			})
		},
	}
}

func (a *app) complianceCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:     "compliance",
		Short:   "What the law asks of an account's campaigns: label, quiet hours, footer",
		Example: "  relayctl compliance set --ad-label --quiet-hours --address '1 Teheran-ro, Seoul'",
	})
	account := ""
	show := &cobra.Command{
		Use: "show", Short: "Show the rules", Example: "  relayctl compliance show", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(func(c *api.Client) error {
				r, err := c.Compliance(cmd.Context(), account)
				if err != nil {
					return err
				}
				return a.print(r, compliancePairs(r))
			})
		},
	}
	in := api.Compliance{}
	set := &cobra.Command{
		Use: "set", Short: "Change the rules; those that are not named stay",
		Example: `  relayctl compliance set --ad-label --quiet-hours
  relayctl compliance set --sender 'Shop Inc.' --address '1 Teheran-ro, Seoul' --contact '+82 2 123 4567'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(func(c *api.Client) error {
				now, err := c.Compliance(cmd.Context(), account)
				if err != nil {
					return err
				}
				for name, set := range map[string]func(){
					"ad-label": func() { now.AdLabel = in.AdLabel }, "quiet-hours": func() { now.QuietHours = in.QuietHours },
					"quiet-from": func() { now.QuietFrom = in.QuietFrom }, "quiet-until": func() { now.QuietUntil = in.QuietUntil },
					"timezone": func() { now.Timezone = in.Timezone }, "sender": func() { now.SenderName = in.SenderName },
					"address": func() { now.PostalAddress = in.PostalAddress }, "contact": func() { now.Contact = in.Contact },
				} {
					if cmd.Flags().Changed(name) {
						set()
					}
				}
				r, err := c.SetCompliance(cmd.Context(), account, now)
				if err != nil {
					return err
				}
				return a.print(r, compliancePairs(r))
			})
		},
	}
	f := set.Flags()
	f.BoolVar(&in.AdLabel, "ad-label", false, "(광고) before each subject")
	f.BoolVar(&in.QuietHours, "quiet-hours", false, "nothing is sent at night where the recipient is")
	f.StringVar(&in.QuietFrom, "quiet-from", "", "`time` of day at which the night begins; default 21:00")
	f.StringVar(&in.QuietUntil, "quiet-until", "", "`time` of day at which it ends; default 08:00")
	f.StringVar(&in.Timezone, "timezone", "", "time `zone` of recipients without one; default Asia/Seoul")
	f.StringVar(&in.SenderName, "sender", "", "`name` of the sender in the footer")
	f.StringVar(&in.PostalAddress, "address", "", "postal `address` in the footer")
	f.StringVar(&in.Contact, "contact", "", "`address` or telephone number in the footer")
	for _, one := range []*cobra.Command{show, set} {
		one.Flags().StringVar(&account, "account", "", "`account`; default: the caller's own")
	}
	c.AddCommand(show, set)
	return c
}

func compliancePairs(r api.Compliance) pairs {
	quiet := "no"
	if r.QuietHours {
		quiet = r.QuietFrom + " to " + r.QuietUntil + ", " + r.Timezone + " where nothing else is known"
	}
	label, _ := json.Marshal(r.AdLabel)
	return pairs{
		{"ad label", string(label)}, {"quiet hours", quiet}, {"sender", r.SenderName}, {"address", r.PostalAddress}, {"contact", r.Contact},
	}
}
