package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"relayd/internal/api"
)

func (a *app) backupCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "backup FILE",
		Short: "Write a backup of the running daemon",
		Long: `Write a backup of the running daemon: the store as one snapshot, and the key files (DKIM, unsubscribe links, return
paths). It holds private keys: the file gets mode 0600. relayd restore FILE brings it back.

The file is written under another name, made durable, and then renamed: FILE is a whole backup or is not there.`,
		Example: "  relayctl backup /var/backups/relayd-$(date +%F).tar",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				file := args[0]
				if info, err := os.Lstat(file); err == nil && !info.Mode().IsRegular() {
					return fmt.Errorf("%s is not a regular file", file)
				}
				dir := filepath.Dir(file)
				f, err := os.CreateTemp(dir, "."+filepath.Base(file)+".*") // mode 0600
				if err != nil {
					return err
				}
				defer os.Remove(f.Name()) //nolint:errcheck // nothing is there after the rename
				n, err := c.Backup(cmd.Context(), f)
				if err == nil {
					err = f.Sync()
				}
				if err = errors.Join(err, f.Close()); err != nil {
					return fmt.Errorf("write backup: %w", err)
				}
				if err := os.Rename(f.Name(), file); err != nil {
					return err
				}
				d, err := os.Open(dir)
				if err != nil {
					return err
				}
				if err := errors.Join(d.Sync(), d.Close()); err != nil {
					return err
				}
				return a.print(map[string]any{"file": file, "bytes": n}, pairs{{"file", file}, {"bytes", number(n)}})
			})
		},
	}
}
