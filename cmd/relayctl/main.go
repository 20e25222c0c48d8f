// Command relayctl watches and steers relayd over its admin API, by default on the unix socket that gives full rights.
// Some commands need no daemon: send, spf check, dkim verify, reply classify and bounce classify.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"

	"relayd/internal/api"
	"relayd/internal/mail"
)

// Exit codes.
const (
	exitDone   = 0
	exitFailed = 1 // refused or failed, the reason is on stderr
	exitUsage  = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.Getenv, terminal: isTerminal(os.Stderr)}
	code := a.run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// app is one run of the program.
type app struct {
	in       io.Reader
	out, err io.Writer
	env      func(string) string
	terminal bool // err is a terminal: progress may be drawn over itself

	socket, url, key, keyFile string // global flags
	format                    string
}

// run executes one command line and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	fmt.Fprintln(a.err, "relayctl: "+mail.CleanText(strings.ReplaceAll(err.Error(), "\n", "; "), 4000))
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitUsage
	}
	return exitFailed
}

// usageError is a command line that cannot be understood.
type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }

func usage(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "relayctl",
		Short: "Watch and steer relayd",
		Long: `relayctl watches and steers relayd over its admin API.

Without --socket or --url it uses RELAYCTL_SOCKET or RELAYCTL_URL, then the admin socket of the configuration in
./relayd.toml or /etc/relayd/relayd.toml, then ./relayd-data/admin.sock and /var/lib/relayd/admin.sock.

Exit codes: 0 done; 1 refused or failed, with the reason on stderr; 2 wrong usage.`,
		Example: `  relayctl queue stats
  relayctl queue list domain=example.com state=deferred
  relayctl --url https://relay.example.com:8080 --key-file key.txt -o json campaign list`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			if err := c.ValidateRequiredFlags(); err != nil {
				return usage("%v (usage: %s)", err, c.UseLine())
			}
			return a.checkFlags()
		},
	}
	f := root.PersistentFlags()
	f.StringVar(&a.socket, "socket", "", "admin `socket` of relayd (RELAYCTL_SOCKET)")
	f.StringVar(&a.url, "url", "", "`address` of the HTTP API (RELAYCTL_URL)")
	f.StringVar(&a.key, "key", "", "API `key` for --url; other users of this machine can see it, --key-file is better")
	f.StringVar(&a.keyFile, "key-file", "", "`file` that holds the API key (RELAYCTL_KEY_FILE)")
	f.StringVarP(&a.format, "output", "o", "table", "output `format`: table, json or csv")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "csv"}, cobra.ShellCompDirectiveNoFileComp))
	group(root)
	root.AddCommand(a.queueCommand(), a.siteCommand(), a.whyCommand(), a.backupCommand(), a.campaignCommand(), a.listCommand(), a.contactCommand(),
		a.segmentCommand(), a.importCommand(), a.complianceCommand(), a.templateCommand(), a.assetCommand(), a.suppressionCommand(), a.sourceCommand(), a.credentialCommand(), a.keyCommand(),
		a.domainCommand(), a.sendCommand(), a.spfCommand(), a.dkimCommand(), a.replyCommand(), a.versionCommand())
	root.AddCommand(a.bounceCommand())
	strict(root)
	return root
}

func (a *app) checkFlags() error {
	switch {
	case a.format != "table" && a.format != "json" && a.format != "csv":
		return usage("output format %q: want table, json or csv", a.format)
	case a.socket != "" && a.url != "":
		return usage("--socket and --url exclude each other")
	case a.key != "" && a.keyFile != "":
		return usage("--key and --key-file exclude each other")
	}
	return nil
}

// group makes a command that only has subcommands: a missing or unknown one is wrong usage.
func group(c *cobra.Command) *cobra.Command {
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usage("%s wants a subcommand (see %s --help)", c.CommandPath(), c.CommandPath())
		}
		hint := ""
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			hint = ", did you mean " + strings.Join(near, " or ") + "?"
		}
		return usage("unknown command %q for %s%s", args[0], c.CommandPath(), hint)
	}
	return c
}

// strict turns what cobra finds wrong with flags and arguments into usage errors, in all commands.
func strict(c *cobra.Command) {
	c.SuggestionsMinimumDistance = 2
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usage("%v (see %s --help)", err, c.CommandPath())
	})
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return usage("%v (usage: %s)", err, c.UseLine())
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		strict(sub)
	}
}

// client connects to the daemon that flags, environment and configuration name, in this order.
func (a *app) client() (*api.Client, error) {
	socket, url := a.socket, a.url
	if socket == "" && url == "" {
		socket, url = a.env("RELAYCTL_SOCKET"), a.env("RELAYCTL_URL")
		if socket != "" && url != "" {
			return nil, usage("RELAYCTL_SOCKET and RELAYCTL_URL are both set: choose with --socket or --url")
		}
	}
	if url != "" {
		key, err := a.apiKey()
		if err != nil {
			return nil, err
		}
		c, err := api.NewClient(url, key)
		if err != nil {
			return nil, usage("%v", err)
		}
		return c, nil
	}
	if socket == "" {
		var err error
		if socket, err = a.defaultSocket(); err != nil {
			return nil, err
		}
	}
	if _, err := os.Stat(socket); err != nil {
		return nil, fmt.Errorf("admin socket %s: %w; is relayd running? (--socket, --url)", socket, errors.Unwrap(err))
	}
	return api.NewUnixClient(socket), nil
}

// apiKey reads the key for --url.
func (a *app) apiKey() (string, error) {
	if a.key != "" {
		return a.key, nil
	}
	file := a.keyFile
	if file == "" {
		file = a.env("RELAYCTL_KEY_FILE")
	}
	if file == "" {
		return "", usage("--url needs --key-file or --key (RELAYCTL_KEY_FILE)")
	}
	return readSecret(file)
}

// readSecret returns the content of a small file without the blanks and line ends around it.
func readSecret(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 4<<10))
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(b)), nil
}

// defaultSocket finds the socket of the daemon on this machine.
func (a *app) defaultSocket() (string, error) {
	configs := []string{"relayd.toml", "/etc/relayd/relayd.toml"}
	if c := a.env("RELAYD_CONFIG"); c != "" {
		configs = []string{c}
	}
	for _, file := range configs {
		if s := configuredSocket(file); s != "" {
			return s, nil
		}
	}
	sockets := []string{filepath.Join("relayd-data", "admin.sock"), "/var/lib/relayd/admin.sock"}
	for _, s := range sockets {
		if _, err := os.Stat(s); err == nil {
			return s, nil
		}
	}
	return "", fmt.Errorf("no relayd found: neither a configuration (%s) nor a socket (%s); use --socket or --url",
		strings.Join(configs, ", "), strings.Join(sockets, ", "))
}

// configuredSocket reads the two keys of a configuration that name the socket. A file that is absent, not for us to
// read, or wrong names none: relayd itself says what is wrong with it.
func configuredSocket(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	var c struct {
		DataDir string `toml:"data_dir"`
		Admin   struct {
			Socket string `toml:"socket"`
		} `toml:"admin"`
	}
	if toml.Unmarshal(b, &c) != nil {
		return ""
	}
	if c.Admin.Socket != "" {
		return c.Admin.Socket
	}
	if c.DataDir != "" {
		return filepath.Join(c.DataDir, "admin.sock")
	}
	return ""
}

// call runs fn with a client and prints nothing itself.
func (a *app) call(fn func(c *api.Client) error) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	defer c.Close()
	return fn(c)
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Show the version of relayctl, and of relayd where one answers",
		Example: "  relayctl version -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := struct {
				Version string       `json:"version"`
				Commit  string       `json:"commit,omitempty"`
				Daemon  *api.Version `json:"daemon,omitempty"`
			}{Version: "devel"}
			if info, ok := debug.ReadBuildInfo(); ok {
				v.Version = info.Main.Version
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						v.Commit = s.Value
					}
				}
			}
			if c, err := a.client(); err == nil {
				defer c.Close()
				if d, err := c.Version(cmd.Context()); err == nil {
					v.Daemon = &d
				}
			}
			t := pairs{{"relayctl", strings.TrimSpace(v.Version + " " + v.Commit)}}
			if v.Daemon != nil {
				t = append(t, [2]string{"relayd", strings.TrimSpace(v.Daemon.Version + " " + v.Daemon.Commit + " on " + v.Daemon.Hostname)})
			}
			return a.print(v, t)
		},
	}
}
