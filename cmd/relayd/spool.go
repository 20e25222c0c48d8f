package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"relayd/internal/app"
	"relayd/internal/kv"
)

// errFindings makes check exit with 1.
var errFindings = errors.New("the spool is not sound")

func newSpool() *cobra.Command {
	var file, store string
	cmd := &cobra.Command{
		Use:   "spool",
		Short: "care of the spool's file, while the daemon is stopped",
		RunE: func(*cobra.Command, []string) error {
			return fmt.Errorf("%w: spool wants check or compact", errUsage)
		},
	}
	cmd.PersistentFlags().StringVar(&file, "config", "", "configuration file (default: ./relayd.toml, then /etc/relayd/relayd.toml)")
	cmd.PersistentFlags().StringVar(&store, "file", "", "the spool's file, instead of that of the configuration")
	path := func() (string, error) {
		if store != "" {
			return store, nil
		}
		cfg, _, err := load(file)
		if err != nil {
			return "", err
		}
		return app.StorePath(cfg.DataDir), nil
	}
	cmd.AddCommand(newSpoolCheck(path), newSpoolCompact(path))
	return cmd
}

// inUse says what to do about a daemon that runs.
func inUse(path string, err error) error {
	if errors.Is(err, kv.ErrInUse) {
		return fmt.Errorf("relayd runs on %s: stop it first", path)
	}
	return err
}

func newSpoolCheck(path func() (string, error)) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "examine every page and record of the spool, and its accounting",
		Long: "Examines every page of the spool's file and every record in it, and compares what must agree: envelopes with\n" +
			"messages, bodies and queues, counters with what is there. Changes nothing. Exit code 1: something is wrong.",
		Example: "  relayd spool check --config /etc/relayd/relayd.toml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			name, err := path()
			if err != nil {
				return err
			}
			report, err := app.CheckStore(cmd.Context(), name)
			if err != nil {
				return inUse(name, err)
			}
			b, err := json.MarshalIndent(report, "", "  ")
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s\n", b)
			if report.Problems > 0 {
				return fmt.Errorf("%s: %w: %d findings", name, errFindings, report.Problems)
			}
			return nil
		},
	}
}

func newSpoolCompact(path func() (string, error)) *cobra.Command {
	return &cobra.Command{
		Use:   "compact",
		Short: "write the spool's file anew, without its free pages",
		Long: "Writes the spool's file anew beside the old one and puts it in its place. A crash leaves one of the two, whole.\n" +
			"Needs free space for the copy.",
		Example: "  relayd spool compact --config /etc/relayd/relayd.toml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			name, err := path()
			if err != nil {
				return err
			}
			before, after, err := kv.Compact(cmd.Context(), name)
			if err != nil {
				return inUse(name, err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %d bytes before, %d now\n", name, before, after)
			return nil
		},
	}
}

func newRestore() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "bring a backup back into an empty data directory",
		Long: "Unpacks a backup of relayctl backup into the data directory of the configuration, which must not hold a spool,\n" +
			"after it has checked all of it. What was delivered after the backup was made is in the queue again and will be\n" +
			"delivered a second time, with the same Message-ID.",
		Example: "  relayd restore --config /etc/relayd/relayd.toml /var/backups/relayd-2026-11-20.tar",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("%w: restore wants one FILE", errUsage)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, _, err := load(file)
			if err != nil {
				return err
			}
			r, err := app.Restore(cmd.Context(), args[0], cfg.DataDir)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: backup of %s: %d envelopes queued, %d outcomes, %d key files\n",
				cfg.DataDir, r.At.Format("2006-01-02 15:04:05Z"), r.Spool.Envelopes, r.Spool.Outcomes, r.KeyFiles)
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration file (default: ./relayd.toml, then /etc/relayd/relayd.toml)")
	return cmd
}
