package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"relayd/internal/api"
)

func (a *app) assetCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:     "asset",
		Short:   "Keep the pictures that templates show",
		Example: "  relayctl asset add logo.png",
	})
	c.AddCommand(a.assetAdd(), a.assetList(), a.assetDelete())
	return c
}

func (a *app) assetAdd() *cobra.Command {
	name := ""
	c := &cobra.Command{
		Use:     "add FILE",
		Short:   "Upload a picture: PNG, JPEG, GIF or WebP; templates show it as asset:NAME",
		Example: "  relayctl asset add logo.png",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			if name == "" {
				name = filepath.Base(args[0])
			}
			return a.call(func(c *api.Client) error {
				r, err := c.UploadAsset(cmd.Context(), name, "application/octet-stream", f)
				if err != nil {
					return err
				}
				return a.print(r, pairs{
					{"asset", r.ID}, {"name", r.Name}, {"type", r.ContentType}, {"bytes", number(r.Bytes)}, {"size", pixels(r)}, {"url", r.URL},
				})
			})
		},
	}
	c.Flags().StringVar(&name, "name", "", "`name` in templates; default: that of the file")
	return c
}

func pixels(r api.Asset) string {
	if r.Width == 0 {
		return ""
	}
	return fmt.Sprintf("%d x %d", r.Width, r.Height)
}

func (a *app) assetList() *cobra.Command {
	limit, account := 0, ""
	c := &cobra.Command{
		Use:     "list",
		Short:   "List pictures",
		Example: "  relayctl asset list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(func(c *api.Client) error {
				page, err := collect(cmd.Context(), limit, func(ctx context.Context, l api.List) (api.Page[api.Asset], error) {
					return c.Assets(ctx, account, l)
				})
				if err != nil {
					return err
				}
				t := &rows{header: []string{"id", "name", "type", "bytes", "size", "url"}, note: more(page.HasMore)}
				for _, r := range page.Data {
					t.add(r.ID, r.Name, r.ContentType, number(r.Bytes), pixels(r), r.URL)
				}
				return a.print(page, t)
			})
		},
	}
	limitFlag(c, &limit)
	c.Flags().StringVar(&account, "account", "", "`account`; default: the caller's own")
	return c
}

func (a *app) assetDelete() *cobra.Command {
	force := false
	c := &cobra.Command{
		Use:     "delete ID",
		Short:   "Remove a picture",
		Example: "  relayctl asset delete ast_0k2c9xw4",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				if err := c.DeleteAsset(cmd.Context(), args[0], force); err != nil {
					return err
				}
				return a.print(struct {
					Deleted string `json:"deleted"`
				}{args[0]}, pairs{{"deleted", args[0]}})
			})
		},
	}
	c.Flags().BoolVar(&force, "force", false, "also where templates link to it: mail that was sent loses the picture")
	return c
}
