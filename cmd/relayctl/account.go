package main

import (
	"context"

	"github.com/spf13/cobra"

	"relayd/internal/api"
)

func (a *app) credentialCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:     "credential",
		Short:   "Keep the user names and passwords of SMTP submission",
		Example: "  relayctl credential create --domain example.com",
	})
	c.AddCommand(a.credentialCreate(), a.credentialList(), a.credentialRevoke())
	return c
}

func (a *app) credentialCreate() *cobra.Command {
	in := api.CreateCredential{}
	c := &cobra.Command{
		Use:     "create",
		Short:   "Make a user name and a password, which is shown this once",
		Example: "  relayctl credential create --domain example.com --domain example.net",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(func(c *api.Client) error {
				r, err := c.CreateCredential(cmd.Context(), in)
				if err != nil {
					return err
				}
				return a.print(r, pairs{{"username", r.Username}, {"password", r.Password}, {"domains", allOr(r.Domains)}, {"account", r.Account}})
			})
		},
	}
	c.Flags().StringSliceVar(&in.Domains, "domain", nil, "sender `domain` that it may use, repeatable; default: all of the account")
	c.Flags().StringVar(&in.Account, "account", "", "`account`; default: the caller's own")
	return c
}

func (a *app) credentialList() *cobra.Command {
	limit, account := 0, ""
	c := &cobra.Command{
		Use:     "list",
		Short:   "List user names",
		Example: "  relayctl credential list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(func(c *api.Client) error {
				page, err := collect(cmd.Context(), limit, func(ctx context.Context, l api.List) (api.Page[api.Credential], error) {
					return c.Credentials(ctx, account, l)
				})
				if err != nil {
					return err
				}
				t := &rows{header: []string{"username", "account", "domains", "created"}, note: more(page.HasMore)}
				for _, r := range page.Data {
					t.add(r.Username, r.Account, allOr(r.Domains), moment(r.CreatedAt))
				}
				return a.print(page, t)
			})
		},
	}
	limitFlag(c, &limit)
	c.Flags().StringVar(&account, "account", "", "`account`; default: the caller's own")
	return c
}

func (a *app) credentialRevoke() *cobra.Command {
	return &cobra.Command{
		Use:     "revoke USERNAME",
		Short:   "Remove a user name at once",
		Example: "  relayctl credential revoke default-4f2a9c",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				if err := c.RevokeCredential(cmd.Context(), args[0]); err != nil {
					return err
				}
				return a.print(map[string]any{"username": args[0], "revoked": true}, pairs{{"revoked", args[0]}})
			})
		},
	}
}

func (a *app) keyCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:     "key",
		Short:   "Keep the keys of the HTTP API",
		Example: "  relayctl key create --scope messages:send --name shop",
	})
	c.AddCommand(a.keyCreate(), a.keyList(), a.keyRevoke())
	return c
}

func (a *app) keyCreate() *cobra.Command {
	in := api.CreateKey{}
	c := &cobra.Command{
		Use:     "create --scope SCOPE",
		Short:   "Make a key, which is shown this once",
		Example: "  relayctl key create --scope campaigns:write --scope campaigns:read --name newsletter",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(in.Scopes) == 0 {
				return usage("key create wants at least one --scope, such as messages:send, or all")
			}
			return a.call(func(c *api.Client) error {
				r, err := c.CreateKey(cmd.Context(), in)
				if err != nil {
					return err
				}
				return a.print(r, pairs{{"key", r.Key}, {"id", r.ID}, {"name", r.Name}, {"scopes", joinComma(r.Scopes)}, {"account", r.Account}})
			})
		},
	}
	c.Flags().StringSliceVar(&in.Scopes, "scope", nil, "`scope` such as messages:send, repeatable, or all")
	c.Flags().StringVar(&in.Name, "name", "", "`name` to tell it by")
	c.Flags().StringVar(&in.Account, "account", "", "`account`; default: the caller's own")
	return c
}

func (a *app) keyList() *cobra.Command {
	limit, account := 0, ""
	c := &cobra.Command{
		Use:     "list",
		Short:   "List keys, without their secrets",
		Example: "  relayctl key list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(func(c *api.Client) error {
				page, err := collect(cmd.Context(), limit, func(ctx context.Context, l api.List) (api.Page[api.Key], error) {
					return c.Keys(ctx, account, l)
				})
				if err != nil {
					return err
				}
				t := &rows{header: []string{"id", "name", "account", "scopes", "created"}, note: more(page.HasMore)}
				for _, r := range page.Data {
					t.add(r.ID, r.Name, r.Account, joinComma(r.Scopes), moment(r.CreatedAt))
				}
				return a.print(page, t)
			})
		},
	}
	limitFlag(c, &limit)
	c.Flags().StringVar(&account, "account", "", "`account`; default: the caller's own")
	return c
}

func (a *app) keyRevoke() *cobra.Command {
	return &cobra.Command{
		Use:     "revoke ID",
		Short:   "Remove a key at once",
		Example: "  relayctl key revoke key_0k2c9xw4",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				if err := c.RevokeKey(cmd.Context(), args[0]); err != nil {
					return err
				}
				return a.print(map[string]any{"id": args[0], "revoked": true}, pairs{{"revoked", args[0]}})
			})
		},
	}
}

func allOr(domains []string) string {
	if len(domains) == 0 {
		return "all"
	}
	return joinComma(domains)
}
