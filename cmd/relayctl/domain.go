package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"relayd/internal/api"
	"relayd/internal/mail"
)

func (a *app) domainCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:     "domain",
		Short:   "Keep sender domains, their keys and DNS records",
		Example: "  relayctl domain add example.com",
	})
	c.AddCommand(a.domainAdd(), a.domainList(),
		a.domainCall("show NAME", "Show a domain with its keys and the records that it needs", "  relayctl domain show example.com",
			(*api.Client).Domain),
		a.domainCall("verify NAME", "Ask DNS about every record that a domain needs", "  relayctl domain verify example.com",
			(*api.Client).VerifyDomain),
		a.domainDKIM())
	return c
}

func (a *app) domainAdd() *cobra.Command {
	in := api.CreateDomain{}
	c := &cobra.Command{
		Use:     "add NAME",
		Short:   "Add a sender domain: makes its DKIM keys and shows the DNS records to publish",
		Example: "  relayctl domain add example.com",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := mail.ParseDomain(args[0], false)
			if err != nil {
				return usage("%v", err)
			}
			in.Name = name
			return a.call(func(c *api.Client) error {
				d, err := c.CreateDomain(cmd.Context(), in)
				if err != nil {
					return err
				}
				return a.printDomain(d)
			})
		},
	}
	c.Flags().StringVar(&in.Sign, "sign", "", "`required` (default), or none: mail may leave unsigned")
	c.Flags().StringVar(&in.Account, "account", "", "`account`; default: the caller's own")
	return c
}

func (a *app) domainList() *cobra.Command {
	limit, account := 0, ""
	c := &cobra.Command{
		Use:     "list",
		Short:   "List sender domains",
		Example: "  relayctl domain list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(func(c *api.Client) error {
				page, err := collect(cmd.Context(), limit, func(ctx context.Context, l api.List) (api.Page[api.Domain], error) {
					return c.Domains(ctx, account, l)
				})
				if err != nil {
					return err
				}
				t := &rows{header: []string{"name", "account", "sign", "ready", "reasons", "keys", "from"}, note: more(page.HasMore)}
				for _, d := range page.Data {
					from := "api"
					if d.Configured {
						from = "configuration"
					}
					t.add(d.Name, d.Account, d.Sign, yesNo(d.Ready), joinComma(d.Reasons), keyList(d.Keys), from)
				}
				return a.print(page, t)
			})
		},
	}
	limitFlag(c, &limit)
	c.Flags().StringVar(&account, "account", "", "`account`; default: the caller's own")
	return c
}

func keyList(keys []api.DKIMKey) string {
	var out []string
	for _, k := range keys {
		out = append(out, k.Selector+" ("+k.Algorithm+", "+k.State+")")
	}
	return joinComma(out)
}

// domainCall is a command that takes a domain's name and shows the domain.
func (a *app) domainCall(use, short, example string, fn func(*api.Client, context.Context, string) (api.Domain, error)) *cobra.Command {
	return &cobra.Command{
		Use:     use,
		Short:   short,
		Example: example,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := mail.ParseDomain(args[0], false)
			if err != nil {
				return usage("%v", err)
			}
			return a.call(func(c *api.Client) error {
				d, err := fn(c, cmd.Context(), name)
				if err != nil {
					return err
				}
				return a.printDomain(d)
			})
		},
	}
}

func (a *app) domainDKIM() *cobra.Command {
	c := group(&cobra.Command{
		Use:     "dkim",
		Short:   "Show, rotate and activate signing keys",
		Example: "  relayctl domain dkim rotate example.com",
	})
	activate := &cobra.Command{
		Use:     "activate NAME SELECTOR",
		Short:   "Sign with a pending key in place of the active one of its algorithm; publish its record first",
		Example: "  relayctl domain dkim activate example.com r20262",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := mail.ParseDomain(args[0], false)
			if err != nil {
				return usage("%v", err)
			}
			return a.call(func(c *api.Client) error {
				d, err := c.ActivateDKIM(cmd.Context(), name, args[1])
				if err != nil {
					return err
				}
				return a.printDomain(d)
			})
		},
	}
	c.AddCommand(
		a.domainCall("show NAME", "Show the keys of a domain and their records", "  relayctl domain dkim show example.com", (*api.Client).Domain),
		a.domainCall("rotate NAME", "Make new, pending keys; the old ones sign until activate", "  relayctl domain dkim rotate example.com", (*api.Client).RotateDKIM),
		activate)
	return c
}

// printDomain shows a domain. In a table each record stands in a block of its own: its value is long and is to be copied.
func (a *app) printDomain(d api.Domain) error {
	if d.Keys == nil {
		d.Keys = []api.DKIMKey{}
	}
	if d.DNSRecords == nil {
		d.DNSRecords = []api.DNSRecord{}
	}
	if a.format != "table" {
		t := &rows{header: []string{"purpose", "type", "name", "value", "required", "status", "observed"}}
		for _, r := range d.DNSRecords {
			t.add(r.Purpose, r.Type, r.Name, r.Value, yesNo(r.Required), r.Status, strings.Join(r.Observed, " | "))
		}
		return a.print(d, t)
	}
	err := printTable(a.out, pairs{
		{"domain", d.Name},
		{"account", d.Account},
		{"sign", d.Sign},
		{"keys", keyList(d.Keys)},
		{"ready", yesNo(d.Ready)},
		{"reasons", joinComma(d.Reasons)},
		{"checked", moment(d.LastChecked)},
	})
	for _, r := range d.DNSRecords {
		if err != nil {
			return err
		}
		need := "optional"
		if r.Required {
			need = "required"
		}
		if _, err = a.out.Write([]byte("\n")); err != nil {
			return err
		}
		block := pairs{
			{"record", r.Purpose + " (" + need + "): " + r.Status},
			{"type", r.Type},
			{"name", r.Name},
			{"value", r.Value},
			{"detail", r.Detail},
		}
		for _, o := range r.Observed {
			block = append(block, [2]string{"observed", o})
		}
		err = printTable(a.out, block)
	}
	return err
}
