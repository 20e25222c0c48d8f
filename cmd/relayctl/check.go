package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"relayd/delivery"
	"relayd/dkim"
	"relayd/internal/api"
	"relayd/internal/mailauth"
	"relayd/internal/resolver"
)

// checkTimeout bounds the DNS look-ups of one check.
const checkTimeout = 30 * time.Second

// maxMessage bounds what dkim verify reads and send submits.
const maxMessage = 100 << 20

// newResolver asks the server of --dns, or those of the system.
func newResolver(server string) (*resolver.Resolver, error) {
	cfg := resolver.DefaultConfig()
	if server != "" {
		if _, _, err := net.SplitHostPort(server); err != nil {
			server = net.JoinHostPort(server, "53")
		}
		cfg.Servers = []string{server}
	}
	if err := cfg.Validate(); err != nil {
		return nil, usage("--dns: %v", err)
	}
	return resolver.New(cfg, resolver.Deps{})
}

func dnsFlag(c *cobra.Command, server *string) {
	c.Flags().StringVar(server, "dns", "", "DNS server to ask, `HOST:PORT`; default: those of the system")
}

func (a *app) spfCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:     "spf",
		Short:   "Check who may send mail for a domain",
		Example: "  relayctl spf check --ip 192.0.2.1 --mail-from ann@example.com",
	})
	in, server := api.SPFCheck{}, ""
	check := &cobra.Command{
		Use:   "check --ip IP --mail-from ADDR",
		Short: "Tell the SPF verdict (RFC 7208) and why",
		Long: `Tell the SPF verdict (RFC 7208) and why: pass, fail, softfail, neutral, none, temperror or permerror.
An empty --mail-from is the null reverse-path: the name of --helo is checked. The exit code is 0 whatever the verdict.`,
		Example: "  relayctl spf check --ip 192.0.2.1 --mail-from ann@example.com --dns 127.0.0.1:5353 -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ip, err := netip.ParseAddr(in.IP)
			if err != nil || ip.Zone() != "" {
				return usage("--ip %q is not an IP address", in.IP)
			}
			if in.MailFrom == "<>" {
				in.MailFrom = ""
			}
			if in.MailFrom == "" && in.Helo == "" {
				return usage("spf check wants --mail-from, or --helo for the null reverse-path")
			}
			r, err := newResolver(server)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), checkTimeout)
			defer cancel()
			res := mailauth.CheckSPF(ctx, r, ip, in.Helo, in.MailFrom)
			in.Result, in.Domain, in.Explanation = string(res.Result), res.Domain, res.Explanation
			out := struct {
				api.SPFCheck
				Record    string `json:"record,omitempty"`
				Mechanism string `json:"mechanism,omitempty"`
			}{in, res.Record, res.Mechanism}
			return a.print(out, pairs{
				{"result", in.Result}, {"explanation", in.Explanation}, {"domain", in.Domain}, {"record", res.Record}, {"mechanism", res.Mechanism},
			})
		},
	}
	f := check.Flags()
	f.StringVar(&in.IP, "ip", "", "`address` of the sending host")
	f.StringVar(&in.MailFrom, "mail-from", "", "reverse-path, the `address` of MAIL FROM")
	f.StringVar(&in.Helo, "helo", "", "`name` that the sending host gives in EHLO")
	dnsFlag(check, &server)
	_ = check.MarkFlagRequired("ip")
	c.AddCommand(check)
	return c
}

func (a *app) dkimCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:     "dkim",
		Short:   "Check signatures",
		Example: "  relayctl dkim verify message.eml",
	})
	server, require := "", false
	verify := &cobra.Command{
		Use:   "verify [FILE]",
		Short: "Verify every DKIM signature (RFC 6376) of a message, from standard input without FILE",
		Example: `  relayctl dkim verify message.eml
  relayctl dkim verify --dns 127.0.0.1:5353 -o json < message.eml`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := a.in
			if len(args) == 1 && args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			r, err := newResolver(server)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), checkTimeout)
			defer cancel()
			found, err := dkim.Verify(ctx, io.LimitReader(in, maxMessage), r)
			if err != nil {
				return err
			}
			out, t, pass := []api.DKIMVerification{}, &rows{header: []string{"domain", "selector", "algorithm", "result", "error"}}, len(found) > 0
			for _, v := range found {
				out = append(out, api.DKIMVerification(v))
				t.add(v.Domain, v.Selector, v.Algorithm, v.Result, v.Error)
				pass = pass && v.Result == "pass"
			}
			if len(found) == 0 {
				t.note = "The message has no DKIM signature."
			}
			if err := a.print(out, t); err != nil {
				return err
			}
			if require && !pass {
				return errNotAllPass
			}
			return nil
		},
	}
	dnsFlag(verify, &server)
	verify.Flags().BoolVar(&require, "require-pass", false, "exit 1 unless there is a signature and all of them pass")
	c.AddCommand(verify)
	return c
}

type constError string

func (e constError) Error() string { return string(e) }

const errNotAllPass constError = "not every signature passes"

func (a *app) replyCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:     "reply",
		Short:   "Understand SMTP replies",
		Example: `  relayctl reply classify "550 5.1.1 user unknown"`,
	})
	phase, rules := "", ""
	classify := &cobra.Command{
		Use:   "classify TEXT…",
		Short: "Tell what relayd makes of a reply: class, hard or not, whom it blames, what it does",
		Example: `  relayctl reply classify "550 5.1.1 user unknown"
  relayctl reply classify --phase data "421 4.7.0 try again later" -o json
  relayctl reply classify --rules /etc/relayd/replies.txt "550 mail box on holiday"`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			p, ok := map[string]delivery.Phase{
				"connect": delivery.PhaseConnect, "mail": delivery.PhaseMail, "rcpt": delivery.PhaseRcpt, "data": delivery.PhaseData,
			}[phase]
			if !ok {
				return usage("--phase %q: want connect, mail, rcpt or data", phase)
			}
			r, err := delivery.ParseReply(strings.Join(args, " "))
			if err != nil {
				return usage("%v", err)
			}
			classifier, err := classifierOf(rules)
			if err != nil {
				return err
			}
			v := classifier.Classify(r, p)
			return a.print(v, pairs{
				{"class", v.Class}, {"hard", yesNo(v.Hard)}, {"blame", string(v.Blame)}, {"action", string(v.Action)}, {"suppress", yesNo(v.Suppress)},
			})
		},
	}
	classify.Flags().StringVar(&phase, "phase", "rcpt", "`phase` of the session: connect, mail, rcpt or data")
	classify.Flags().StringVar(&rules, "rules", "", "`file` of local rules, as delivery.reply_rules_file names it")
	_ = classify.RegisterFlagCompletionFunc("phase", cobra.FixedCompletions([]string{"connect", "mail", "rcpt", "data"}, cobra.ShellCompDirectiveNoFileComp))
	c.AddCommand(classify)
	return c
}

// classifierOf reads a file of local rules, "" for none.
func classifierOf(file string) (*delivery.Classifier, error) {
	if file == "" {
		return delivery.NewClassifier("")
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	c, err := delivery.NewClassifier(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}
