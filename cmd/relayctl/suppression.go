package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"relayd/internal/api"
	"relayd/internal/mail"
)

func (a *app) suppressionCommand() *cobra.Command {
	account := ""
	c := group(&cobra.Command{
		Use:     "suppression",
		Short:   "Keep the list of addresses that get no mail",
		Example: "  relayctl suppression add ann@example.com --reason manual --note 'ticket 12'",
	})
	c.PersistentFlags().StringVar(&account, "account", "", "`account`; default: the caller's own")
	c.AddCommand(a.suppressionAdd(&account), a.suppressionRemove(&account), a.suppressionCheck(&account),
		a.suppressionList(&account), a.suppressionImport(&account), a.suppressionExport(&account))
	return c
}

func (a *app) suppressionAdd(account *string) *cobra.Command {
	in := api.Suppression{}
	expires := ""
	c := &cobra.Command{
		Use:   "add EMAIL",
		Short: "Add an address",
		Example: `  relayctl suppression add ann@example.com
  relayctl suppression add ann@example.com --scope broadcast --reason unsubscribe --expires 720h`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in.Account, in.Email = *account, args[0]
			if err := checkAddress(args[0]); err != nil {
				return err
			}
			if expires != "" {
				t, err := parseExpiry(expires, time.Now())
				if err != nil {
					return err
				}
				in.ExpiresAt = t
			}
			return a.call(func(c *api.Client) error {
				s, err := c.AddSuppression(cmd.Context(), in)
				if err != nil {
					return err
				}
				t := suppressionRows([]api.Suppression{s.Suppression})
				if !s.Created {
					t.note = "It was there already."
				}
				return a.print(s, t)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&in.Scope, "scope", "global", "`scope`: global (no mail at all) or broadcast (no campaigns)")
	f.StringVar(&in.Reason, "reason", "manual", "`reason`: hard_bounce, complaint, unsubscribe, manual or invalid")
	f.StringVar(&in.Note, "note", "", "`text` to remember")
	f.StringVar(&expires, "expires", "", "end of the entry: a `time` (RFC 3339) or a duration from now (720h)")
	return c
}

// parseExpiry reads a time or a duration from now; it must lie ahead.
func parseExpiry(s string, now time.Time) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		d, derr := time.ParseDuration(s)
		if derr != nil {
			return t, usage("--expires %q is neither a time like 2027-01-31T12:00:00Z nor a duration like 720h", s)
		}
		t = now.Add(d)
	}
	if !t.After(now) {
		return t, usage("--expires %q is in the past", s)
	}
	return t.UTC(), nil
}

func checkAddress(s string) error {
	if _, err := mail.ParsePath(s); err != nil {
		return usage("%q: %v", s, err)
	}
	return nil
}

func (a *app) suppressionRemove(account *string) *cobra.Command {
	scope := ""
	c := &cobra.Command{
		Use:     "remove EMAIL",
		Short:   "Remove the entries of an address",
		Example: "  relayctl suppression remove ann@example.com --scope broadcast",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkAddress(args[0]); err != nil {
				return err
			}
			return a.call(func(c *api.Client) error {
				r, err := c.RemoveSuppression(cmd.Context(), *account, args[0], scope)
				if err != nil {
					return err
				}
				return a.print(r, pairs{{"email", r.Email}, {"removed", number(r.Removed)}})
			})
		},
	}
	c.Flags().StringVar(&scope, "scope", "", "only this `scope`: global or broadcast")
	return c
}

func (a *app) suppressionCheck(account *string) *cobra.Command {
	return &cobra.Command{
		Use:     "check EMAIL",
		Short:   "Tell whether an address gets mail, and why not",
		Example: "  relayctl suppression check ann@example.com",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkAddress(args[0]); err != nil {
				return err
			}
			return a.call(func(c *api.Client) error {
				r, err := c.CheckSuppression(cmd.Context(), *account, args[0])
				if err != nil {
					return err
				}
				t := suppressionRows(r.Entries)
				t.note = "transactional mail: " + r.Effective.Transactional + ", campaigns: " + r.Effective.Broadcast
				return a.print(r, t)
			})
		},
	}
}

func (a *app) suppressionList(account *string) *cobra.Command {
	limit := 0
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the suppression list",
		Example: "  relayctl suppression list --limit 0 -o csv",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(func(c *api.Client) error {
				page, err := collect(cmd.Context(), limit, func(ctx context.Context, l api.List) (api.Page[api.Suppression], error) {
					return c.Suppressions(ctx, *account, l)
				})
				if err != nil {
					return err
				}
				t := suppressionRows(page.Data)
				t.note = more(page.HasMore)
				return a.print(page, t)
			})
		},
	}
	limitFlag(c, &limit)
	return c
}

func suppressionRows(list []api.Suppression) *rows {
	t := &rows{header: []string{"email", "scope", "reason", "source", "created", "expires", "note"}}
	for _, s := range list {
		t.add(s.Email, s.Scope, s.Reason, s.Source, moment(s.CreatedAt), moment(s.ExpiresAt), s.Note)
	}
	return t
}

func (a *app) suppressionImport(account *string) *cobra.Command {
	kind := ""
	c := &cobra.Command{
		Use:   "import FILE",
		Short: "Import addresses from a CSV or JSON lines file, - for standard input",
		Example: `  relayctl suppression import bounces.csv
  relayctl suppression import - --type jsonl < list.jsonl`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, contentType, err := a.openUpload(args[0], kind)
			if err != nil {
				return err
			}
			defer r.Close()
			return a.call(func(c *api.Client) error {
				rep, err := c.ImportSuppressions(cmd.Context(), *account, contentType, r)
				if err != nil {
					return err
				}
				if err := a.print(rep, pairs{
					{"rows", number(rep.Rows)}, {"created", number(rep.Created)}, {"unchanged", number(rep.Unchanged)}, {"rejected", number(rep.Rejected)},
				}); err != nil {
					return err
				}
				if a.format == "table" && len(rep.Errors) > 0 {
					t := &rows{header: []string{"row", "column", "value", "error"}}
					for _, e := range rep.Errors {
						t.add(number(e.Row), e.Column, e.Value, e.Detail)
					}
					return printTable(a.err, t)
				}
				return nil
			})
		},
	}
	c.Flags().StringVar(&kind, "type", "", "`type` of the file: csv or jsonl; default: by its name")
	return c
}

// openUpload opens a file of rows and tells its media type.
func (a *app) openUpload(file, kind string) (io.ReadCloser, string, error) {
	if kind == "" {
		kind = strings.TrimPrefix(strings.ToLower(filepath.Ext(file)), ".")
		if file == "-" {
			kind = "csv"
		}
	}
	contentType := ""
	switch kind {
	case "csv", "tsv", "txt":
		contentType = "text/csv; charset=utf-8"
	case "jsonl", "ndjson":
		contentType = "application/x-ndjson"
	default:
		return nil, "", usage("%s: type %q is neither csv nor jsonl", file, kind)
	}
	if file == "-" {
		return io.NopCloser(a.in), contentType, nil
	}
	f, err := os.Open(file)
	return f, contentType, err
}

func (a *app) suppressionExport(account *string) *cobra.Command {
	return &cobra.Command{
		Use:   "export",
		Short: "Write the whole list to standard output as CSV, with -o json as one JSON list",
		Example: `  relayctl suppression export > suppressions.csv
  relayctl suppression export -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(func(c *api.Client) error {
				if a.format != "json" {
					_, err := c.ExportSuppressions(cmd.Context(), *account, "csv", &cleanWriter{out: a.out})
					return err
				}
				w := &jsonList{out: bufio.NewWriter(a.out)}
				if _, err := c.ExportSuppressions(cmd.Context(), *account, "jsonl", w); err != nil {
					return err
				}
				return w.close()
			})
		},
	}
}

// jsonList turns JSON lines into one list while they arrive.
type jsonList struct {
	out  *bufio.Writer
	line []byte
	any  bool
}

const maxJSONLine = 1 << 20

func (l *jsonList) Write(p []byte) (int, error) {
	l.line = append(l.line, p...)
	for {
		line, rest, ok := bytes.Cut(l.line, []byte("\n"))
		if !ok {
			break
		}
		if err := l.add(line); err != nil {
			return 0, err
		}
		l.line = rest
	}
	if len(l.line) > maxJSONLine {
		return 0, fmt.Errorf("read answer: a line is longer than %d bytes", maxJSONLine)
	}
	return len(p), nil
}

func (l *jsonList) add(line []byte) error {
	if len(bytes.TrimSpace(line)) == 0 {
		return nil
	}
	if !json.Valid(line) {
		return fmt.Errorf("read answer: not JSON: %.80s", line)
	}
	sep := ",\n"
	if !l.any {
		l.any, sep = true, "[\n"
	}
	_, err := l.out.WriteString(sep + string(escapeControls(line)))
	return err
}

func (l *jsonList) close() error {
	if err := l.add(l.line); err != nil {
		return err
	}
	end := "\n]\n"
	if !l.any {
		end = "[]\n"
	}
	if _, err := l.out.WriteString(end); err != nil {
		return err
	}
	return l.out.Flush()
}
