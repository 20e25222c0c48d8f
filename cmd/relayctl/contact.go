package main

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"relayd/internal/api"
)

func accountFlag(c *cobra.Command, account *string) {
	c.PersistentFlags().StringVar(account, "account", "", "`account`; default: the caller's own")
}

func (a *app) listCommand() *cobra.Command {
	account := ""
	c := group(&cobra.Command{
		Use:     "list",
		Short:   "Keep lists of contacts",
		Example: "  relayctl list create customers --topic promotions --topic news=unsubscribed",
	})
	accountFlag(c, &account)
	c.AddCommand(a.listCreate(&account), a.listShow(&account), a.listAll(&account), a.listContacts(&account), a.listDelete(&account))
	return c
}

func (a *app) listCreate(account *string) *cobra.Command {
	in := api.CreateList{}
	var topics []string
	schema := ""
	c := &cobra.Command{
		Use:   "create NAME",
		Short: "Create a list",
		Example: `  relayctl list create customers --display-name 'Shop customers'
  relayctl list create news --opt-in double --topic weekly --topic deals=unsubscribed \
    --schema '{"Gender":{"type":"string","enum":["M","F",null]},"CreateTime":{"type":"datetime"}}'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in.Account, in.Name = *account, args[0]
			for _, t := range topics {
				name, byDefault, _ := strings.Cut(t, "=")
				in.Topics = append(in.Topics, api.Topic{Name: name, Default: byDefault})
			}
			if schema != "" {
				if err := json.Unmarshal([]byte(schema), &in.AttributesSchema); err != nil {
					return usage("--schema: %v", err)
				}
			}
			return a.call(func(c *api.Client) error {
				l, err := c.CreateList(cmd.Context(), in)
				if err != nil {
					return err
				}
				return a.print(l, listPairs(l))
			})
		},
	}
	f := c.Flags()
	f.StringVar(&in.DisplayName, "display-name", "", "`text` that people see")
	f.StringVar(&in.OptIn, "opt-in", "single", "single, or double: contacts without a proof of consent are pending")
	f.StringArrayVar(&topics, "topic", nil, "`NAME`, or NAME=unsubscribed for one that contacts must ask for, repeatable")
	f.StringVar(&schema, "schema", "", "`JSON` object of attributes with type, max_length, enum and required")
	return c
}

func listPairs(l api.ContactList) pairs {
	var topics []string
	for _, t := range l.Topics {
		topics = append(topics, t.Name+" ("+t.Default+")")
	}
	return pairs{
		{"list", l.ID},
		{"name", l.Name},
		{"shown as", l.DisplayName},
		{"opt-in", l.OptIn},
		{"topics", joinComma(topics)},
		{"contacts", number(l.ContactCount)},
		{"subscribed", number(l.SubscribedCount)},
		{"unsubscribed", number(l.UnsubscribedCount)},
		{"pending", number(l.PendingCount)},
		{"created", moment(l.CreatedAt)},
	}
}

func (a *app) listShow(account *string) *cobra.Command {
	return &cobra.Command{
		Use:     "show LIST",
		Short:   "Show a list and how many contacts it has",
		Example: "  relayctl list show customers",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				l, err := c.ContactList(cmd.Context(), *account, args[0])
				if err != nil {
					return err
				}
				return a.print(l, listPairs(l))
			})
		},
	}
}

func (a *app) listAll(account *string) *cobra.Command {
	limit := 0
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the lists",
		Example: "  relayctl list list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(func(c *api.Client) error {
				page, err := collect(cmd.Context(), limit, func(ctx context.Context, l api.List) (api.Page[api.ContactList], error) {
					return c.Lists(ctx, *account, l)
				})
				if err != nil {
					return err
				}
				t := &rows{header: []string{"id", "name", "contacts", "subscribed", "unsubscribed", "pending", "created"}, note: more(page.HasMore)}
				for _, l := range page.Data {
					t.add(l.ID, l.Name, number(l.ContactCount), number(l.SubscribedCount), number(l.UnsubscribedCount), number(l.PendingCount), moment(l.CreatedAt))
				}
				return a.print(page, t)
			})
		},
	}
	limitFlag(c, &limit)
	return c
}

func (a *app) listContacts(account *string) *cobra.Command {
	limit, status := 0, ""
	c := &cobra.Command{
		Use:   "contacts LIST",
		Short: "List the contacts of a list",
		Example: `  relayctl list contacts customers --status unsubscribed
  relayctl list contacts customers --limit 0 -o csv > customers.csv`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				page, err := collect(cmd.Context(), limit, func(ctx context.Context, l api.List) (api.Page[api.Contact], error) {
					return c.Contacts(ctx, *account, args[0], status, l)
				})
				if err != nil {
					return err
				}
				t := &rows{header: []string{"email", "status", "mail", "attributes", "since", "id"}, note: more(page.HasMore)}
				for _, r := range page.Data {
					state, since := "", ""
					if s := r.Subscription; s != nil {
						state, since = s.Status, moment(s.JoinedAt)
					}
					t.add(r.Email, state, deliverability(r), attributesText(r), since, r.ID)
				}
				return a.print(page, t)
			})
		},
	}
	limitFlag(c, &limit)
	c.Flags().StringVar(&status, "status", "", "only those of this `status`: subscribed, unsubscribed or pending")
	return c
}

func deliverability(c api.Contact) string {
	if c.Deliverability.Reason != "" {
		return c.Deliverability.State + " (" + c.Deliverability.Reason + ")"
	}
	return c.Deliverability.State
}

// attributesText is the attributes as JSON, for people.
func attributesText(c api.Contact) string {
	if len(c.Attributes) == 0 {
		return ""
	}
	b, err := json.Marshal(c.Attributes)
	if err != nil {
		return ""
	}
	return string(b)
}

func (a *app) listDelete(account *string) *cobra.Command {
	return &cobra.Command{
		Use:     "delete LIST",
		Short:   "Delete a list; its contacts stay",
		Example: "  relayctl list delete customers",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error { return c.DeleteList(cmd.Context(), *account, args[0]) })
		},
	}
}

func (a *app) contactCommand() *cobra.Command {
	account := ""
	c := group(&cobra.Command{
		Use:     "contact",
		Short:   "Show and change contacts",
		Example: "  relayctl contact set ann@example.com --list customers --status subscribed --attr Name=Ann",
	})
	accountFlag(c, &account)
	c.AddCommand(a.contactShow(&account), a.contactSet(&account), a.contactDelete(&account), a.contactActivity(&account))
	return c
}

// isNotFound tells that relayd has no such thing.
func isNotFound(err error) bool {
	p, ok := errors.AsType[*api.Problem](err)
	return ok && p.Code == api.CodeNotFound
}

// contactRef lets people write an address in place of email:ADDRESS.
func contactRef(s string) string {
	if strings.Contains(s, "@") && !strings.HasPrefix(s, "email:") {
		return "email:" + s
	}
	return s
}

func (a *app) contactShow(account *string) *cobra.Command {
	return &cobra.Command{
		Use:     "show EMAIL|ID",
		Short:   "Show a contact with its lists",
		Example: "  relayctl contact show ann@example.com",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				r, err := c.Contact(cmd.Context(), *account, contactRef(args[0]))
				if err != nil {
					return err
				}
				return a.print(r, contactPairs(r))
			})
		},
	}
}

func (a *app) contactActivity(account *string) *cobra.Command {
	limit := 0
	c := &cobra.Command{
		Use:     "activity EMAIL|ID",
		Short:   "Show what was sent to a contact and what became of it, the last first",
		Example: "  relayctl contact activity ann@example.com",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				page, err := collect(cmd.Context(), limit, func(ctx context.Context, l api.List) (api.Page[api.QueueItem], error) {
					return c.ContactActivity(ctx, *account, contactRef(args[0]), l)
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

func contactPairs(c api.Contact) pairs {
	p := pairs{
		{"contact", c.ID},
		{"email", c.Email},
		{"attributes", attributesText(c)},
		{"locale", c.Locale},
		{"time zone", c.Timezone},
		{"mail", deliverability(c)},
		{"source", c.Source},
		{"created", moment(c.CreatedAt)},
		{"changed", moment(c.UpdatedAt)},
	}
	for _, s := range c.Subscriptions {
		parts := []string{s.Status + " since " + moment(s.ChangedAt) + " by " + s.Source}
		for _, name := range slices.Sorted(maps.Keys(s.Topics)) {
			parts = append(parts, name+" "+s.Topics[name])
		}
		if s.Consent != nil {
			parts = append(parts, "consent of "+moment(s.Consent.At))
		}
		p = append(p, [2]string{"list " + s.List, strings.Join(parts, "; ")})
	}
	return p
}

func (a *app) contactSet(account *string) *cobra.Command {
	in := api.PutContact{}
	status, locale, timezone := "", "", ""
	var attributes, topics []string
	c := &cobra.Command{
		Use:   "set EMAIL|ID",
		Short: "Make a contact, or change what is named",
		Example: `  relayctl contact set ann@example.com --list customers --status subscribed --attr Name=Ann --topic news=subscribed
  relayctl contact set ann@example.com --attr 'Points:=120' --attr City=`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if in.Attributes, err = attributesOf(attributes); err != nil {
				return err
			}
			for _, t := range topics {
				name, state, ok := strings.Cut(t, "=")
				if !ok {
					return usage("--topic %q is not like news=subscribed", t)
				}
				if in.Topics == nil {
					in.Topics = map[string]string{}
				}
				in.Topics[name] = state
			}
			if status != "" {
				in.Status = status
			}
			if cmd.Flags().Changed("locale") {
				in.Locale = &locale
			}
			if cmd.Flags().Changed("timezone") {
				in.Timezone = &timezone
			}
			ref := contactRef(args[0])
			return a.call(func(c *api.Client) error {
				r, err := c.PatchContact(cmd.Context(), *account, ref, in)
				if isNotFound(err) && strings.HasPrefix(ref, "email:") {
					r, err = c.PutContact(cmd.Context(), *account, ref, in)
				}
				if err != nil {
					return err
				}
				return a.print(r, contactPairs(r))
			})
		},
	}
	f := c.Flags()
	f.StringVar(&in.List, "list", "", "`list` that --status and --topic are about")
	f.StringVar(&status, "status", "", "subscribed or unsubscribed")
	f.StringArrayVar(&attributes, "attr", nil, "`NAME=TEXT`, NAME:=JSON, or NAME= to remove it, repeatable")
	f.StringArrayVar(&topics, "topic", nil, "`NAME=STATUS`, repeatable")
	f.StringVar(&locale, "locale", "", "language `tag` such as ko-KR")
	f.StringVar(&timezone, "timezone", "", "`zone` such as Asia/Seoul")
	f.BoolVar(&in.AllowResubscribe, "allow-resubscribe", false, "subscribe although the contact had unsubscribed")
	return c
}

// attributesOf reads NAME=TEXT, NAME:=JSON and NAME=, which removes.
func attributesOf(flags []string) (api.Attributes, error) {
	if len(flags) == 0 {
		return nil, nil
	}
	m := api.Attributes{}
	for _, f := range flags {
		name, value, ok := strings.Cut(f, "=")
		if !ok || name == "" || name == ":" {
			return nil, usage("--attr %q is not like Name=Ann", f)
		}
		if n, isJSON := strings.CutSuffix(name, ":"); isJSON {
			var v any
			if err := json.Unmarshal([]byte(value), &v); err != nil {
				return nil, usage("--attr %q: %v", f, err)
			}
			m[n] = v
			continue
		}
		m[name] = value
		if value == "" {
			m[name] = nil
		}
	}
	return m, nil
}

func (a *app) contactDelete(account *string) *cobra.Command {
	erase := false
	c := &cobra.Command{
		Use:   "delete EMAIL|ID",
		Short: "Delete a contact from all lists",
		Example: `  relayctl contact delete ann@example.com
  relayctl contact delete ann@example.com --erase`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				r, err := c.DeleteContact(cmd.Context(), *account, contactRef(args[0]), erase)
				if err != nil {
					return err
				}
				return a.print(r, pairs{{"contact", r.ID}, {"erased", yesNo(r.Erased)}})
			})
		},
	}
	c.Flags().BoolVar(&erase, "erase", false, "for one who asks to be forgotten: only a keyed hash stays, so that no import brings the address back")
	return c
}
