package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"relayd/internal/api"
)

func (a *app) sourceCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "source",
		Short: "Keep lists in step with tables of MySQL, MariaDB and PostgreSQL",
		Long: `A source feeds a list from a table: changed rows are found by the time of their change and their key.

The DSN of the database is not given here: it stands in an environment variable of relayd or in a file that relayd may
read, and the source names that (env:CRM_DSN, file:/etc/relayd/crm.dsn).`,
		Example: `  relayctl source add crm --driver mysql --dsn-ref env:CRM_DSN --list customers --table customers \
      --column email=email --column attributes.Name=name --column status=subscribed --every 300
  relayctl source test src_01k…
  relayctl source sync src_01k…`,
	})
	c.AddCommand(a.sourceAdd(), a.sourceList(), a.sourceShow(), a.sourceTest(), a.sourceSync(), a.sourceRuns(), a.sourceRemove())
	return c
}

// sourceID finds a source by its ID or its name.
func sourceID(ctx context.Context, c *api.Client, ref string) (string, error) {
	if strings.HasPrefix(ref, "src_") {
		return ref, nil
	}
	var found []string
	page, err := collect(ctx, 1000, func(ctx context.Context, l api.List) (api.Page[api.Source], error) { return c.Sources(ctx, "", l) })
	if err != nil {
		return "", err
	}
	for _, s := range page.Data {
		if s.Name == ref {
			found = append(found, s.ID)
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("there is no source %q: relayctl source list shows them", ref)
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("%d accounts have a source %q: use its ID, one of %s", len(found), ref, strings.Join(found, " "))
}

func (a *app) sourceAdd() *cobra.Command {
	in := api.CreateSource{}
	var file, deleted string
	var columns []string
	var every, full, lag, lookback int64
	var page int
	c := &cobra.Command{
		Use:   "add NAME",
		Short: "Add a source",
		Example: `  relayctl source add crm --driver postgres --dsn-ref file:/etc/relayd/crm.dsn --list customers --table public.customers \
      --column email=email --column attributes.Name=name --deleted deleted_at --every 300
  relayctl source add crm --file source.json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if file != "" {
				if err := readJSONFile(file, a.in, &in); err != nil {
					return err
				}
			}
			in.Name = args[0]
			if len(columns) > 0 && in.Query.Columns == nil {
				in.Query.Columns = map[string]string{}
			}
			for _, pair := range columns {
				to, col, ok := strings.Cut(pair, "=")
				if !ok || to == "" || col == "" {
					return usage("--column %q is not like attributes.Name=name", pair)
				}
				in.Query.Columns[to] = col
			}
			if file == "" && len(columns) == 0 {
				in.Query.Columns = map[string]string{"email": "email"}
			}
			if deleted != "" {
				in.Query.Deleted = &api.SourceDeleted{Column: deleted}
			}
			f := cmd.Flags()
			if f.Changed("every") {
				in.Schedule = &api.SourceSchedule{EverySeconds: every}
			}
			if f.Changed("full-every") {
				in.FullResync = &api.SourceFullResync{EverySeconds: full}
			}
			if f.Changed("page-size") {
				in.PageSize = &page
			}
			if f.Changed("safety-lag") {
				in.SafetyLagSeconds = &lag
			}
			if f.Changed("lookback") {
				in.LookbackSeconds = &lookback
			}
			if in.Query.Cursor.UpdatedAt == "" {
				in.Query.Cursor.UpdatedAt = "updated_at"
			}
			if in.Query.Cursor.Key == "" {
				in.Query.Cursor.Key = "id"
			}
			return a.call(func(c *api.Client) error {
				s, err := c.CreateSource(cmd.Context(), in, "")
				if err != nil {
					return err
				}
				return a.printSource(s)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&file, "file", "", "JSON `file` with the body of POST /v1/sources, - for standard input; flags add to it")
	f.StringVar(&in.Account, "account", "", "`account`; default: the caller's own")
	f.StringVar(&in.Driver, "driver", "", "`mysql` (MariaDB too) or postgres")
	f.StringVar(&in.DSNRef, "dsn-ref", "", "where relayd finds the DSN: `env:NAME` or file:/PATH")
	f.StringVar(&in.List, "list", "", "`name` of the list to feed")
	f.StringVar(&in.Query.Table, "table", "", "`table` or schema.table")
	f.StringArrayVar(&columns, "column", nil, "`TARGET=COLUMN`, once for each: email, status, locale, timezone, attributes.NAME; default email=email")
	f.StringVar(&in.Query.Cursor.UpdatedAt, "updated-at", "", "`column` with the time of the last change; default updated_at")
	f.StringVar(&in.Query.Cursor.Key, "key-column", "", "unique `column`; default id")
	f.StringVar(&deleted, "deleted", "", "`column` that is not NULL in deleted rows")
	f.StringVar(&in.SourceTimezone, "timezone", "", "`zone` of times that the table stores without one: +09:00 or Asia/Seoul")
	f.Int64Var(&every, "every", 0, "`seconds` between runs; default: only when asked")
	f.Int64Var(&full, "full-every", 0, "`seconds` between runs that read the whole table; default: only when asked")
	f.IntVar(&page, "page-size", 0, "`rows` in one page; default 2000")
	f.Int64Var(&lag, "safety-lag", 0, "`seconds` before now from which on rows wait for the next run; default 30")
	f.Int64Var(&lookback, "lookback", 0, "`seconds` of overlap that are read again; default 600")
	f.BoolVar(&in.AllowResubscribe, "allow-resubscribe", false, "a row that changes to subscribed brings back who left")
	return c
}

// readJSONFile decodes a file, or standard input for -, and refuses what it does not know.
func readJSONFile(name string, stdin io.Reader, v any) error {
	r := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, 1<<20))
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return usage("%s: %v", name, err)
	}
	return nil
}

func (a *app) sourceList() *cobra.Command {
	limit, account := 0, ""
	c := &cobra.Command{
		Use:     "list",
		Short:   "List sources",
		Example: "  relayctl source list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(func(c *api.Client) error {
				page, err := collect(cmd.Context(), limit, func(ctx context.Context, l api.List) (api.Page[api.Source], error) {
					return c.Sources(ctx, account, l)
				})
				if err != nil {
					return err
				}
				t := &rows{header: []string{"id", "name", "account", "list", "table", "state", "watermark", "next run", "error"}, note: more(page.HasMore)}
				for _, s := range page.Data {
					t.add(s.ID, s.Name, s.Account, s.List, s.Query.Table, s.State, watermark(s.Watermark), momentOf(s.NextRunAt), s.Error)
				}
				return a.print(page, t)
			})
		},
	}
	limitFlag(c, &limit)
	c.Flags().StringVar(&account, "account", "", "`account`; default: the caller's own")
	return c
}

func watermark(w *api.SourceWatermark) string {
	if w == nil {
		return ""
	}
	return moment(w.UpdatedAt) + " " + w.Key
}

// sourceCall is a command about one source, by its ID or name.
func (a *app) sourceCall(use, short, example string, fn func(ctx context.Context, c *api.Client, id string) error) *cobra.Command {
	return &cobra.Command{
		Use: use + " SOURCE", Short: short, Example: example, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				id, err := sourceID(cmd.Context(), c, args[0])
				if err != nil {
					return err
				}
				return fn(cmd.Context(), c, id)
			})
		},
	}
}

func (a *app) sourceShow() *cobra.Command {
	return a.sourceCall("show", "Show a source with its watermark and last run", "  relayctl source show crm",
		func(ctx context.Context, c *api.Client, id string) error {
			s, err := c.Source(ctx, id)
			if err != nil {
				return err
			}
			return a.printSource(s)
		})
}

func (a *app) printSource(s api.Source) error {
	var columns []string
	for to, col := range s.Query.Columns {
		columns = append(columns, to+"="+col)
	}
	slices.Sort(columns)
	p := pairs{
		{"source", s.ID},
		{"name", s.Name},
		{"account", s.Account},
		{"list", s.List},
		{"database", s.Driver + ", DSN in " + s.DSNRef},
		{"table", s.Query.Table},
		{"columns", joinComma(columns)},
		{"cursor", s.Query.Cursor.UpdatedAt + ", " + s.Query.Cursor.Key},
		{"state", s.State},
		{"error", s.Error},
		{"watermark", watermark(s.Watermark)},
		{"next run", momentOf(s.NextRunAt)},
	}
	if s.LastRun != nil {
		p = append(p, [2]string{"last run", s.LastRun.ID + " " + s.LastRun.State + ", " + runCounts(*s.LastRun)})
	}
	return a.print(s, p)
}

func runCounts(r api.SourceRun) string {
	out := []string{number(r.Read) + " read"}
	for _, x := range []struct {
		n    int64
		name string
	}{
		{r.Created, "created"},
		{r.Updated, "updated"},
		{r.Unchanged, "unchanged"},
		{r.Unsubscribed, "unsubscribed"},
		{r.Deleted, "deleted"},
		{r.Duplicates, "duplicate"},
		{r.SkippedUnsubscribed, "unsubscribed before"},
		{r.SkippedErased, "erased before"},
		{r.Rejected, "rejected"},
		{r.Missing, "missing"},
		{r.Future, "in the future"},
	} {
		if x.n > 0 {
			out = append(out, number(x.n)+" "+x.name)
		}
	}
	return joinComma(out)
}

func (a *app) sourceTest() *cobra.Command {
	return a.sourceCall("test", "Connect and tell what a run would meet; exit 1 when it would fail", "  relayctl source test crm",
		func(ctx context.Context, c *api.Client, id string) error {
			t, err := c.TestSource(ctx, id)
			if err != nil {
				return err
			}
			p := pairs{
				{"server", t.Server},
				{"database time", momentOf(t.DatabaseTime)},
				{"updated_at", t.UpdatedAtType},
				{"precision", t.Precision},
				{"index", t.IndexUsed},
				{"rows, about", number(t.EstimatedRows)},
			}
			for _, w := range t.Warnings {
				p = append(p, [2]string{"warning", w.Code + ": " + w.Detail})
			}
			for _, s := range t.Sample {
				b, _ := json.Marshal(s)
				p = append(p, [2]string{"sample", string(b)})
			}
			for _, w := range t.Problems {
				p = append(p, [2]string{"problem", w.Code + ": " + w.Detail})
			}
			if err := a.print(t, p); err != nil {
				return err
			}
			if !t.OK {
				var why []string
				for _, w := range t.Problems {
					why = append(why, w.Code)
				}
				return fmt.Errorf("a run would fail: %s", joinComma(why))
			}
			return nil
		})
}

func (a *app) sourceSync() *cobra.Command {
	full, detach := false, false
	c := a.sourceCall("sync", "Run a source now and wait for the end; exit 1 when the run fails", "  relayctl source sync crm\n  relayctl source sync crm --full",
		func(ctx context.Context, c *api.Client, id string) error {
			run, err := c.SyncSource(ctx, id, api.SyncSource{Full: full})
			for err == nil && !detach && run.FinishedAt == nil {
				run, err = c.SourceRun(ctx, id, run.ID, 20)
			}
			if err != nil {
				return err
			}
			if err := a.print(run, runRows([]api.SourceRun{run}, "")); err != nil {
				return err
			}
			if run.State == "failed" {
				return fmt.Errorf("the run failed: %s", run.Error)
			}
			return nil
		})
	c.Flags().BoolVar(&full, "full", false, "read the whole table, and look for rows that are gone")
	c.Flags().BoolVar(&detach, "no-wait", false, "return at once")
	return c
}

func runRows(runs []api.SourceRun, note string) *rows {
	t := &rows{header: []string{"run", "state", "full", "started", "seconds", "watermark", "rows", "error"}, note: note}
	for _, r := range runs {
		t.add(r.ID, r.State, yesNo(r.Full), momentOf(r.StartedAt), fmt.Sprintf("%.2f", r.Seconds), watermark(r.To), runCounts(r), r.Error)
		for _, w := range r.Warnings {
			t.add("", "warning", "", "", "", "", w, "")
		}
		if len(runs) == 1 {
			for _, e := range r.Errors {
				t.add("", "row "+e.Key, "", "", "", "", strings.TrimSpace(e.Column+" "+e.Value), e.Code+": "+e.Detail)
			}
		}
	}
	return t
}

func (a *app) sourceRuns() *cobra.Command {
	limit := 0
	c := a.sourceCall("runs", "List the runs of a source, newest first", "  relayctl source runs crm --limit 5",
		func(ctx context.Context, c *api.Client, id string) error {
			page, err := collect(ctx, limit, func(ctx context.Context, l api.List) (api.Page[api.SourceRun], error) {
				return c.SourceRuns(ctx, id, l)
			})
			if err != nil {
				return err
			}
			return a.print(page, runRows(page.Data, more(page.HasMore)))
		})
	limitFlag(c, &limit)
	return c
}

func (a *app) sourceRemove() *cobra.Command {
	return a.sourceCall("remove", "Remove a source; its contacts stay", "  relayctl source remove crm",
		func(ctx context.Context, c *api.Client, id string) error {
			if err := c.DeleteSource(ctx, id); err != nil {
				return err
			}
			return a.print(map[string]string{"removed": id}, pairs{{"removed", id}})
		})
}
