package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"relayd/internal/bounce"
)

// classifiedFile is one file as `bounce classify` prints it.
type classifiedFile struct {
	File string `json:"file"`
	bounce.Report
}

func (a *app) bounceCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:     "bounce",
		Short:   "Understand bounces, complaints and automatic answers",
		Example: `  relayctl bounce classify returned.eml`,
	})
	rules := ""
	classify := &cobra.Command{
		Use:   "classify FILE…",
		Short: "Tell what relayd makes of messages that came back: kind, recipients, status, class, hard or not",
		Long: `Tells what relayd makes of messages that came back. FILE is a message, header first; - is standard input. No daemon is
needed. Kinds: bounce, delay, delivered, complaint, unsubscribe, auth-failure, auto-reply, none.`,
		Example: `  relayctl bounce classify returned.eml
  relayctl -o json bounce classify maildir/new/*`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			classifier, err := classifierOf(rules)
			if err != nil {
				return err
			}
			list := make([]classifiedFile, 0, len(args))
			out := rows{header: []string{"file", "kind", "address", "status", "class", "hard", "suppress"}}
			for _, name := range args {
				rep, err := a.classifyFile(name, classifier.Bounce)
				if err != nil {
					return err
				}
				list = append(list, classifiedFile{name, *rep})
				if len(rep.Recipients) == 0 {
					out.add(name, string(rep.Kind), "", "", "", "", "")
				}
				for _, to := range rep.Recipients {
					out.add(name, string(rep.Kind), to.Address, to.Status, to.Class, yesNo(to.Hard), yesNo(to.Suppress))
				}
			}
			return a.print(list, &out)
		},
	}
	classify.Flags().StringVar(&rules, "rules", "", "`file` of local rules, as delivery.reply_rules_file names it")
	c.AddCommand(classify)
	return c
}

func (a *app) classifyFile(name string, c bounce.Classifier) (*bounce.Report, error) {
	r := a.in
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	rep, err := bounce.Parse(r, bounce.UnknownPath, c)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", strings.TrimSpace(name), err)
	}
	return rep, nil
}
