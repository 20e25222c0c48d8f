package source

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"relayd/internal/api"
)

var errNoTable = errors.New("no such table")

// mark is a place in the order of (updated_at, key): a watermark.
type mark struct {
	U     moment `json:"u"`
	K     string `json:"k"`
	Zoned bool   `json:"zoned,omitempty"` // U is a true time; else what the clock of source_timezone showed
}

func (m *mark) api(zone *time.Location) *api.SourceWatermark {
	if m == nil {
		return nil
	}
	if m.Zoned {
		zone = nil
	}
	return &api.SourceWatermark{UpdatedAt: m.U.time(zone), Key: m.K}
}

// target is one thing of a contact with the column that gives it.
type target struct {
	name string // email, status, locale, timezone, or of an attribute
	attr bool
	col  *column
}

// plan is how a source is read: its configuration held against the table as it is now.
type plan struct {
	cfg      *api.SourceConfig
	d        dialect
	t        *table
	u, k     *column
	targets  []target
	deleted  *column
	zone     *time.Location // of times without a zone; nil: not said
	lookback time.Duration
}

// findings is the error of a source that cannot be read as it is configured.
type findings []api.SourceFinding

func (f findings) Error() string {
	text := make([]string, len(f))
	for i, x := range f {
		text[i] = x.Code + ": " + x.Detail
	}
	return strings.Join(text, " ")
}

// look connects the configuration with what the database says. A findings error tells everything that is wrong.
func look(ctx context.Context, s *session, cfg *api.SourceConfig) (*plan, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*dialTimeout)
	defer cancel()
	t, err := s.d.inspect(ctx, s.tx, strings.Split(cfg.Query.Table, "."))
	if errors.Is(err, errNoTable) {
		return nil, findings{{
			Code: "table_missing", Field: "/query/table",
			Detail: fmt.Sprintf("There is no table %q, or the user may not see it.", cfg.Query.Table),
		}}
	}
	if err != nil {
		return nil, fmt.Errorf("inspect table: %w", s.clean(err))
	}
	p := &plan{cfg: cfg, d: s.d, t: t}
	if p.zone, err = parseZone(cfg.SourceTimezone); err != nil {
		return nil, err
	}
	if bad := p.bind(); len(bad) > 0 {
		return nil, bad
	}
	p.lookback = time.Duration(cfg.LookbackSeconds) * time.Second
	if p.u.decimals == 0 {
		p.lookback = max(p.lookback, 2*time.Second) // rows of one second may be written before and after a run
	}
	return p, nil
}

// bind finds every column.
func (p *plan) bind() (bad findings) {
	find := func(name, field string) *column {
		c := p.t.column(name)
		if c == nil {
			bad = append(bad, api.SourceFinding{Code: "column_missing", Field: field, Detail: fmt.Sprintf("The table has no column %q%s.", name, p.nearest(name))})
			return nil
		}
		if c.kind == kindTime && !c.zoned && p.zone == nil {
			bad = append(bad, api.SourceFinding{
				Code: "timezone_missing", Field: "/source_timezone",
				Detail: fmt.Sprintf("The column %q is %s, which has no time zone: say source_timezone.", c.name, c.typ),
			})
		}
		return c
	}
	q := &p.cfg.Query
	if p.u = find(q.Cursor.UpdatedAt, "/query/cursor/updated_at"); p.u != nil && p.u.kind != kindTime {
		bad = append(bad, api.SourceFinding{
			Code: "cursor_type", Field: "/query/cursor/updated_at",
			Detail: fmt.Sprintf("The column %q is %s, not a time with a date.", p.u.name, p.u.typ),
		})
	}
	if p.k = find(q.Cursor.Key, "/query/cursor/key"); p.k != nil {
		bad = append(bad, p.checkKey()...)
	}
	for _, name := range slices.Sorted(maps.Keys(q.Columns)) {
		field := "/query/columns/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
		c := find(q.Columns[name], field)
		if c != nil && c.kind == kindBytes {
			bad = append(bad, api.SourceFinding{Code: "column_type", Field: field, Detail: fmt.Sprintf("The column %q is %s, not a text, number or time.", c.name, c.typ)})
		}
		attr, isAttr := strings.CutPrefix(name, "attributes.")
		if !isAttr {
			attr = name
		}
		p.targets = append(p.targets, target{attr, isAttr, c})
	}
	if q.Deleted != nil {
		p.deleted = find(q.Deleted.Column, "/query/deleted/column")
	}
	return bad
}

// checkKey wants a key by which pages can go on.
func (p *plan) checkKey() (bad findings) {
	const field = "/query/cursor/key"
	switch p.k.kind {
	case kindInteger, kindText, kindBytes:
		if p.k.kind == kindBytes && p.t.server[0] == 'P' {
			bad = append(bad, api.SourceFinding{Code: "key_type", Field: field, Detail: fmt.Sprintf("The key %q is %s: an integer, text or UUID is needed.", p.k.name, p.k.typ)})
		}
	default:
		bad = append(bad, api.SourceFinding{Code: "key_type", Field: field, Detail: fmt.Sprintf("The key %q is %s: an integer, text or UUID is needed.", p.k.name, p.k.typ)})
	}
	if p.t.view {
		return bad
	}
	if p.k.nullable {
		bad = append(bad, api.SourceFinding{Code: "key_nullable", Field: field, Detail: fmt.Sprintf("The key %q may be NULL.", p.k.name)})
	}
	if !p.t.unique(p.k) {
		bad = append(bad, api.SourceFinding{Code: "key_not_unique", Field: field, Detail: fmt.Sprintf("The key %q has no unique index: two rows could be taken for one.", p.k.name)})
	}
	return bad
}

// nearest names a column that looks like what was meant.
func (p *plan) nearest(name string) string {
	for i := range p.t.columns {
		if c := p.t.columns[i].name; strings.EqualFold(c, name) ||
			strings.EqualFold(strings.ReplaceAll(c, "_", ""), strings.ReplaceAll(name, "_", "")) {
			return fmt.Sprintf("; did you mean %q?", c)
		}
	}
	return ""
}

// columns are the expressions that are selected, in the order that plan.row reads.
func (p *plan) columns() (list string, n int) {
	all := []string{p.d.text(p.k), p.d.text(p.u)}
	for _, t := range p.targets {
		all = append(all, p.d.text(t.col))
	}
	if p.deleted != nil {
		all = append(all, p.d.text(p.deleted))
	}
	return strings.Join(all, ", "), len(all)
}

func (p *plan) selectFrom() (string, int) {
	list, n := p.columns()
	return "SELECT " + list + " FROM " + p.t.quoted, n
}

// ordered ends a query of one page.
func (p *plan) ordered(by ...*column) string {
	names := make([]string, len(by))
	for i, c := range by {
		names[i] = p.d.quote(c.name)
	}
	return fmt.Sprintf(" ORDER BY %s LIMIT %d", strings.Join(names, ", "), p.cfg.PageSize)
}

// changes is the query for one page of rows from a place on, up to a bound. at nil begins at from, included.
func (p *plan) changes(from string, at *mark, until moment) (text string, args []any, width int) {
	text, width = p.selectFrom()
	condition := p.d.quote(p.u.name) + " >= " + p.d.param(1, p.u)
	args = []any{from}
	if at != nil {
		condition, args = p.d.after(1, p.u, p.k, *at)
	}
	text += " WHERE " + condition + " AND " + p.d.quote(p.u.name) + " <= " + p.d.param(len(args)+1, p.u)
	return text + p.ordered(p.u, p.k), append(args, until.sql()), width
}

// all is the query for one page of the whole table, in the order of keys.
func (p *plan) all(after *string) (text string, args []any, width int) {
	text, width = p.selectFrom()
	if after != nil {
		text += " WHERE " + p.d.quote(p.k.name) + " > " + p.d.param(1, p.k)
		args = []any{*after}
	}
	return text + p.ordered(p.k), args, width
}

// some is the query for rows by their keys.
func (p *plan) some(keys []string) (text string, args []any, width int) {
	text, width = p.selectFrom()
	params := make([]string, len(keys))
	for i, k := range keys {
		params[i] = p.d.param(i+1, p.k)
		args = append(args, k)
	}
	return text + " WHERE " + p.d.quote(p.k.name) + " IN (" + strings.Join(params, ", ") + ")", args, width
}

// maxFuture is how many rows of the future are counted.
const maxFuture = 1000

// count is a query for the number of rows for which a condition on updated_at holds, up to maxFuture.
func (p *plan) count(condition string) string {
	return fmt.Sprintf("SELECT COUNT(*) FROM (SELECT 1 AS one FROM %s WHERE %s %s LIMIT %d) counted", p.t.quoted, p.d.quote(p.u.name), condition, maxFuture)
}
