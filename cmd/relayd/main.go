// Command relayd is the mail transfer daemon.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"relayd/internal/app"
	"relayd/internal/config"
	"relayd/internal/demo"
)

// Exit codes of the outside contract.
const (
	exitDone   = 0
	exitFailed = 1 // refused or failed
	exitUsage  = 2
)

// errUsage marks a command line that makes no sense.
var errUsage = errors.New("usage")

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	fmt.Fprintln(os.Stderr, err)
	if errors.Is(err, errUsage) {
		return exitUsage
	}
	return exitFailed
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "relayd",
		Short: "self-hosted SMTP relay and mail transfer daemon",
		Example: `  relayd demo                                 everything on loopback, one campaign to a local inbox
  relayd check --config /etc/relayd/relayd.toml
  relayd run   --config /etc/relayd/relayd.toml`,
		SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return fmt.Errorf("%w: name a command", errUsage)
		},
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%w: no command %q; see relayd --help", errUsage, args[0])
			}
			return nil
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", errUsage, err) })
	root.AddCommand(newRun(), newCheck(), newSpool(), newDemo(), newVersion())
	commands := root.Commands()
	for _, c := range root.Commands() {
		commands = append(commands, c.Commands()...)
	}
	for _, c := range commands {
		c.Args = func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%w: unexpected argument %q", errUsage, args[0])
			}
			return nil
		}
	}
	root.AddCommand(newRestore())
	return root
}

// load finds and reads the configuration.
func load(file string) (*config.Config, string, error) {
	file, err := config.Find(file)
	if err != nil {
		return nil, "", err
	}
	cfg, err := config.Load(file)
	return cfg, file, err
}

func newRun() *cobra.Command {
	var file string
	adopt := false
	cmd := &cobra.Command{
		Use:   "run",
		Short: "run the daemon",
		Long: "Runs the daemon until SIGTERM or SIGINT. SIGHUP reads the TLS certificate and [delivery] again.\n" +
			"A spool that was used on another machine is refused: --adopt takes it over, once the other relayd is off for good.",
		Example: "  relayd run --config /etc/relayd/relayd.toml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, name, err := load(file)
			if err != nil {
				return err
			}
			out := app.NewLogWriter(os.Stderr, cfg.Log)
			defer out.Close() //nolint:errcheck // never fails
			defer app.TuneCollector()()
			var options []app.Option
			if adopt {
				options = append(options, app.Adopt())
			}
			a, err := app.New(cmd.Context(), cfg, app.NewLogger(out, cfg.Log), options...)
			if err != nil {
				return err
			}
			hup := make(chan os.Signal, 1)
			signal.Notify(hup, syscall.SIGHUP)
			done := make(chan struct{})
			go func() {
				for {
					select {
					case <-hup:
						a.Reload(func() (*config.Config, error) { return config.Load(name) })
					case <-done:
						return
					}
				}
			}()
			err = a.Run(cmd.Context())
			close(done)
			return errors.Join(err, a.Close())
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration file (default: ./relayd.toml, then /etc/relayd/relayd.toml)")
	cmd.Flags().BoolVar(&adopt, "adopt", false, "take over a spool that was used on another machine")
	return cmd
}

func newCheck() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:     "check",
		Short:   "validate the configuration and print every error with its line",
		Example: "  relayd check --config /etc/relayd/relayd.toml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, name, err := load(file)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: ok\n", name)
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration file (default: ./relayd.toml, then /etc/relayd/relayd.toml)")
	return cmd
}

func newDemo() *cobra.Command {
	o := demo.Options{Start: func(ctx context.Context, text string) (demo.Daemon, error) { return app.Start(ctx, text) }}
	var size string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "a whole relay on loopback: one campaign from customers to inbox",
		Long: "Starts everything on loopback in a temporary directory: DNS zone, DKIM keys, catch-all inbox, sample customers and\n" +
			"a promotion. Sends one campaign, checks every signature, then stays up to be tried until Ctrl-C.",
		Example: "  relayd demo\n  relayd demo --recipients 500 --size 100KB --exit --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := config.ParseSize(size)
			if err != nil {
				return fmt.Errorf("%w: --size: %w", errUsage, err)
			}
			o.Size, o.Out, o.Err = n, cmd.OutOrStdout(), cmd.ErrOrStderr()
			return demo.Run(cmd.Context(), o)
		},
	}
	cmd.Flags().IntVar(&o.Recipients, "recipients", 200, "subscribed customers")
	cmd.Flags().StringVar(&size, "size", "100KB", "size of each message")
	cmd.Flags().BoolVar(&o.Exit, "exit", false, "end after the summary instead of staying up")
	cmd.Flags().BoolVar(&o.JSON, "json", false, "print one JSON object and nothing else")
	return cmd
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "print the version",
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintln(cmd.OutOrStdout(), "relayd", app.Version)
			return nil
		},
	}
}
