package main

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/spf13/cobra"

	"relayd/internal/api"
)

func (a *app) segmentCommand() *cobra.Command {
	account := ""
	c := group(&cobra.Command{
		Use:     "segment",
		Short:   "Keep questions about the contacts of a list",
		Example: `  relayctl segment create women --list customers --where '{"attr":"Gender","eq":"F"}'`,
	})
	accountFlag(c, &account)
	c.AddCommand(a.segmentCreate(&account), a.segmentList(&account), a.segmentCount(&account), a.segmentDelete(&account))
	return c
}

func (a *app) segmentCreate(account *string) *cobra.Command {
	in := api.CreateSegment{}
	where := ""
	c := &cobra.Command{
		Use:   "create NAME",
		Short: "Store a segment",
		Example: `  relayctl segment create old-women --list customers \
    --where '{"all":[{"attr":"Gender","eq":"F"},{"attr":"CreateTime","lt":"2026-01-01"}]}' --exclude vip
  relayctl segment create new --list customers --where @new.json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in.Account, in.Name = *account, args[0]
			if file, isFile := strings.CutPrefix(where, "@"); isFile {
				b, err := readFile(file)
				if err != nil {
					return err
				}
				where = string(b)
			}
			if where != "" {
				if !json.Valid([]byte(where)) {
					return usage("--where is not JSON: %.60s", where)
				}
				in.Where = json.RawMessage(where)
			}
			return a.call(func(c *api.Client) error {
				g, err := c.CreateSegment(cmd.Context(), in)
				if err != nil {
					return err
				}
				return a.print(g, segmentRows([]api.Segment{g}))
			})
		},
	}
	f := c.Flags()
	f.StringVar(&in.List, "list", "", "`list` that it is about")
	f.StringVar(&in.Topic, "topic", "", "only those who want this `topic`")
	f.StringVar(&where, "where", "", "condition as `JSON`, or @FILE; default: everybody")
	f.StringArrayVar(&in.IncludeLists, "include", nil, "only those who are subscribed to this `list` too, repeatable")
	f.StringArrayVar(&in.ExcludeLists, "exclude", nil, "without the members of this `list`, repeatable")
	_ = c.MarkFlagRequired("list")
	return c
}

func segmentRows(list []api.Segment) *rows {
	t := &rows{header: []string{"id", "name", "list", "topic", "where", "include", "exclude"}}
	for _, g := range list {
		t.add(g.ID, g.Name, g.List, g.Topic, string(g.Where), joinComma(g.IncludeLists), joinComma(g.ExcludeLists))
	}
	return t
}

func (a *app) segmentList(account *string) *cobra.Command {
	limit := 0
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the segments",
		Example: "  relayctl segment list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(func(c *api.Client) error {
				page, err := collect(cmd.Context(), limit, func(ctx context.Context, l api.List) (api.Page[api.Segment], error) {
					return c.Segments(ctx, *account, l)
				})
				if err != nil {
					return err
				}
				t := segmentRows(page.Data)
				t.note = more(page.HasMore)
				return a.print(page, t)
			})
		},
	}
	limitFlag(c, &limit)
	return c
}

func (a *app) segmentCount(account *string) *cobra.Command {
	return &cobra.Command{
		Use:     "count SEGMENT",
		Short:   "Count whom a segment means now",
		Example: "  relayctl segment count women",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				n, err := c.CountSegment(cmd.Context(), *account, args[0])
				if err != nil {
					return err
				}
				return a.print(n, pairs{{"contacts", number(n.Count)}})
			})
		},
	}
}

func (a *app) segmentDelete(account *string) *cobra.Command {
	return &cobra.Command{
		Use:     "delete SEGMENT",
		Short:   "Delete a segment",
		Example: "  relayctl segment delete women",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error { return c.DeleteSegment(cmd.Context(), *account, args[0]) })
		},
	}
}
