package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"relayd/internal/api"
)

func (a *app) importCommand() *cobra.Command {
	account := ""
	c := group(&cobra.Command{
		Use:     "import",
		Short:   "Import contacts and see what became of it",
		Example: "  relayctl import contacts customers.csv --list customers",
	})
	accountFlag(c, &account)
	c.AddCommand(a.importContacts(&account), a.importList(&account), a.importShow(), a.importErrors(), a.importCancel())
	return c
}

func (a *app) importContacts(account *string) *cobra.Command {
	in := api.CreateImport{}
	kind, charset, key := "", "", ""
	var columns map[string]string
	c := &cobra.Command{
		Use:   "contacts FILE",
		Short: "Import a CSV or JSON lines file into a list, - for standard input",
		Long: `Import a CSV or JSON lines file into a list, - for standard input. It may be packed by gzip or zstd (name it
FILE.csv.gz or FILE.csv.zst), and in UTF-8, UTF-16 with a byte order mark, EUC-KR or CP949; others want --charset. Rows that are wrong are told, and the others
are imported. Sending a file again doubles nobody. Whoever unsubscribed stays so unless --allow-resubscribe is given.`,
		Example: `  relayctl import contacts customers.csv --list customers --dry-run
  relayctl import contacts export.csv.gz --list customers --column 'E-Mail=email' --column 'Vorname=attributes.Name'
  relayctl import contacts old.csv --list customers --charset cp949 --column '가입일=attributes.CreateTime|2006-01-02 15:04:05|Asia/Seoul'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in.Account = *account
			in.Options.ColumnMap = columnsOf(columns)
			name := strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(args[0]), ".gz"), ".zst")
			if kind == "" && name != strings.ToLower(args[0]) {
				if kind = "csv"; strings.HasSuffix(name, ".jsonl") || strings.HasSuffix(name, ".ndjson") {
					kind = "jsonl"
				}
			}
			r, contentType, err := a.openUpload(args[0], kind)
			if err != nil {
				return err
			}
			defer r.Close()
			if charset != "" {
				contentType, _, _ = strings.Cut(contentType, ";")
				contentType += "; charset=" + charset
			} else if strings.HasPrefix(contentType, "text/csv") {
				contentType = "text/csv" // the encoding is recognised
			}
			var done api.Import
			err = a.call(func(c *api.Client) error {
				body, stop := a.uploadBar(r)
				defer stop()
				done, err = c.ImportContacts(cmd.Context(), in, contentType, body, key)
				return err
			})
			if err != nil {
				return err
			}
			if err := a.print(done, importPairs(done)); err != nil || a.format != "table" || done.Rejected == 0 {
				return err
			}
			return a.showImportErrors(cmd.Context(), done.ID)
		},
	}
	f := c.Flags()
	f.StringVar(&in.List, "list", "", "`list`, by name or ID")
	f.StringVar(&kind, "type", "", "`type` of the file: csv or jsonl; default: by its name")
	f.StringVar(&charset, "charset", "", "character `encoding` of the file; default: recognised")
	f.StringToStringVar(&columns, "column", nil, "what a column holds, `HEADER=email`, status, attributes.NAME, topics.NAME, locale, timezone or consent.at; "+
		"with a time's layout and zone behind bars; repeatable")
	f.StringVar(&in.OnConflict, "on-conflict", "", "for contacts who are there: upsert (default), replace or skip")
	f.StringVar(&in.Options.DefaultStatus, "default-status", "", "of new contacts without a `status`: subscribed (default), unsubscribed or error")
	f.BoolVar(&in.Options.AllowResubscribe, "allow-resubscribe", false, "rows that say subscribed bring back whoever unsubscribed")
	f.Int64Var(&in.MaxErrors, "max-errors", 0, "end the import after more rejected `rows`; 0: never")
	f.BoolVar(&in.DryRun, "dry-run", false, "tell what would happen and write no contact")
	f.StringVar(&key, "idempotency-key", "", "`key` that makes the command safe to repeat")
	_ = c.MarkFlagRequired("list")
	return c
}

// columnsOf reads FIELD|FORMAT|ZONE.
func columnsOf(flags map[string]string) map[string]api.ImportColumn {
	if len(flags) == 0 {
		return nil
	}
	m := map[string]api.ImportColumn{}
	for header, text := range flags {
		parts := append(strings.SplitN(text, "|", 3), "", "")
		m[header] = api.ImportColumn{Field: parts[0], Format: parts[1], Timezone: parts[2]}
	}
	return m
}

// uploadBar shows on a terminal how much of a file has gone up. stop ends the line.
func (a *app) uploadBar(r io.Reader) (body io.Reader, stop func()) {
	if !a.terminal {
		return r, func() {}
	}
	var size int64
	if f, ok := r.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			size = info.Size()
		}
	}
	counted := &countingReader{r: r}
	done, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for began := time.Now(); ; {
			fmt.Fprint(a.err, "\r\x1b[K"+uploadLine(counted.n.Load(), size, time.Since(began)))
			select {
			case <-tick.C:
			case <-done:
				fmt.Fprintln(a.err, "\r\x1b[K"+uploadLine(counted.n.Load(), size, time.Since(began)))
				return
			}
		}
	}()
	return counted, func() { close(done); <-gone }
}

// countingReader has no other methods, so that net/http streams it.
type countingReader struct {
	r io.Reader
	n atomic.Int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// uploadLine is "importing [#####-----]  50%  12.0/24.0 MB  3.1 MB/s".
func uploadLine(n, size int64, took time.Duration) string {
	const mb = 1e6
	rate := float64(n) / mb / max(took.Seconds(), 0.001)
	if size <= 0 {
		return fmt.Sprintf("importing  %.1f MB  %.1f MB/s", float64(n)/mb, rate)
	}
	filled := int(min(n, size) * barWidth / size)
	return fmt.Sprintf("importing [%s%s] %3d%%  %.1f/%.1f MB  %.1f MB/s", strings.Repeat("#", filled), strings.Repeat("-", barWidth-filled),
		min(n, size)*100/size, float64(n)/mb, float64(size)/mb, rate)
}

func importPairs(i api.Import) pairs {
	p := pairs{
		{"import", i.ID},
		{"list", i.List},
		{"state", i.State},
		{"reason", i.Reason},
		{"rows", number(i.RowsRead)},
		{"created", number(i.Created)},
		{"updated", number(i.Updated)},
		{"unchanged", number(i.Unchanged)},
		{"unsubscribed", number(i.SkippedUnsubscribed)},
		{"erased", number(i.SkippedErased)},
		{"existing", number(i.SkippedExisting)},
		{"rejected", number(i.Rejected)},
		{"duplicates", number(i.Duplicates)},
		{"role addresses", number(i.RoleAddresses)},
		{"rows/s", number(i.RowsPerSecond)},
		{"encoding", i.Encoding},
		{"started", moment(i.StartedAt)},
		{"finished", moment(i.FinishedAt)},
	}
	if i.DryRun {
		p = append(p, [2]string{"dry run", "no contact was written"})
	}
	return p
}

// showImportErrors tells the first rejected rows on standard error.
func (a *app) showImportErrors(ctx context.Context, id string) error {
	return a.call(func(c *api.Client) error {
		page, err := c.ImportErrors(ctx, id, api.List{Limit: maxShownErrors})
		if err != nil {
			return err
		}
		t := importErrorRows(page.Data)
		if page.HasMore {
			t.note = "There are more: relayctl import errors " + id + " --csv > rejected.csv"
		}
		return printTable(a.err, t)
	})
}

func importErrorRows(list []api.ContactImportError) *rows {
	t := &rows{header: []string{"chunk", "line", "byte", "column", "value", "error"}}
	for _, e := range list {
		t.add(number(e.Chunk), number(e.Line), number(e.ByteOffset), e.Column, e.Value, strings.TrimSpace(e.Code+" "+e.Detail))
	}
	return t
}

func (a *app) importList(account *string) *cobra.Command {
	limit := 0
	c := &cobra.Command{
		Use:     "list",
		Short:   "List imports, newest first",
		Example: "  relayctl import list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(func(c *api.Client) error {
				page, err := collect(cmd.Context(), limit, func(ctx context.Context, l api.List) (api.Page[api.Import], error) {
					return c.Imports(ctx, *account, l)
				})
				if err != nil {
					return err
				}
				t := &rows{header: []string{"id", "list", "state", "reason", "rows", "created", "updated", "rejected", "started"}, note: more(page.HasMore)}
				for _, i := range page.Data {
					t.add(i.ID, i.List, i.State, i.Reason, number(i.RowsRead), number(i.Created), number(i.Updated), number(i.Rejected), moment(i.StartedAt))
				}
				return a.print(page, t)
			})
		},
	}
	limitFlag(c, &limit)
	return c
}

func (a *app) importShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show ID",
		Short:   "Show how far an import has come",
		Example: "  relayctl import show imp_0k2c9xw4",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				i, err := c.Import(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return a.print(i, importPairs(i))
			})
		},
	}
}

func (a *app) importErrors() *cobra.Command {
	limit, asCSV := 0, false
	c := &cobra.Command{
		Use:   "errors ID",
		Short: "List the rows that were rejected",
		Long: `List the rows that were rejected. With --csv they are written as they stood in the file, with columns behind that say what
is wrong: mend them and import the file, which drops these columns.`,
		Example: `  relayctl import errors imp_0k2c9xw4
  relayctl import errors imp_0k2c9xw4 --csv > rejected.csv`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				if asCSV {
					_, err := c.DownloadImportErrors(cmd.Context(), args[0], &cleanWriter{out: a.out})
					return err
				}
				page, err := collect(cmd.Context(), limit, func(ctx context.Context, l api.List) (api.Page[api.ContactImportError], error) {
					return c.ImportErrors(ctx, args[0], l)
				})
				if err != nil {
					return err
				}
				t := importErrorRows(page.Data)
				t.note = more(page.HasMore)
				return a.print(page, t)
			})
		},
	}
	limitFlag(c, &limit)
	c.Flags().BoolVar(&asCSV, "csv", false, "write the rows themselves, to mend and import again")
	return c
}

func (a *app) importCancel() *cobra.Command {
	return &cobra.Command{
		Use:     "cancel ID",
		Short:   "End an import, whose rows so far stay, or forget one that has ended",
		Example: "  relayctl import cancel imp_0k2c9xw4",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				i, err := c.DeleteImport(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return a.print(i, importPairs(i))
			})
		},
	}
}
