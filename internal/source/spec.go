package source

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"relayd/internal/api"
	"relayd/internal/contact"
	"relayd/internal/mail"
)

// Defaults and limits of a source.
const (
	defaultPageSize   = 2000
	maxPageSize       = 10_000
	defaultSafetyLag  = 30
	defaultLookback   = 600
	defaultMissing    = 5.0
	maxSeconds        = 366 * 24 * 3600
	minEverySeconds   = 5
	minFullSeconds    = 60
	maxTargets        = 100
	maxDeletedValue   = 200
	maxSourcesAccount = 100
)

var sourceName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)

// configOf lays the request over the defaults.
func configOf(in *api.CreateSource) api.SourceConfig {
	c := api.SourceConfig{
		Name: in.Name, Driver: in.Driver, DSNRef: in.DSNRef, List: in.List, Query: in.Query,
		PageSize: defaultPageSize, SafetyLagSeconds: defaultSafetyLag, LookbackSeconds: defaultLookback,
		SourceTimezone: in.SourceTimezone, FullResync: in.FullResync, AllowResubscribe: in.AllowResubscribe,
	}
	set(&c.Schedule, in.Schedule)
	set(&c.PageSize, in.PageSize)
	set(&c.SafetyLagSeconds, in.SafetyLagSeconds)
	set(&c.LookbackSeconds, in.LookbackSeconds)
	return c
}

// patched lays a patch over a configuration.
func patched(c api.SourceConfig, in *api.PatchSource) api.SourceConfig {
	set(&c.Name, in.Name)
	set(&c.Driver, in.Driver)
	set(&c.DSNRef, in.DSNRef)
	set(&c.List, in.List)
	set(&c.Query, in.Query)
	set(&c.Schedule, in.Schedule)
	set(&c.PageSize, in.PageSize)
	set(&c.SafetyLagSeconds, in.SafetyLagSeconds)
	set(&c.LookbackSeconds, in.LookbackSeconds)
	set(&c.SourceTimezone, in.SourceTimezone)
	set(&c.AllowResubscribe, in.AllowResubscribe)
	if in.FullResync != nil {
		c.FullResync = in.FullResync
	}
	return c
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

// check fills in defaults and tells, as *Invalid, everything that is wrong without asking the database.
func check(c *api.SourceConfig) error {
	bad := &Invalid{}
	if !sourceName.MatchString(c.Name) {
		bad.add("/name", "A name is 1 to 64 of a-z, 0-9, - and _, and begins with a letter or digit.")
	}
	if c.Driver == "mariadb" || c.Driver == "postgresql" {
		c.Driver = map[string]string{"mariadb": "mysql", "postgresql": "postgres"}[c.Driver]
	}
	if c.Driver != "mysql" && c.Driver != "postgres" {
		bad.add("/driver", `The driver must be "mysql" (MariaDB too) or "postgres".`)
	}
	if detail := checkRef(c.DSNRef); detail != "" {
		bad.add("/dsn_ref", detail)
		c.DSNRef = ""
	}
	if c.List == "" || mail.CleanText(c.List, 128) != c.List {
		bad.add("/list", "The name of a list is needed.")
	}
	checkQuery(&c.Query, bad)
	within := func(pointer string, n, least, most int64) {
		if n < least || n > most {
			bad.add(pointer, fmt.Sprintf("%d is not between %d and %d.", n, least, most))
		}
	}
	within("/page_size", int64(c.PageSize), 1, maxPageSize)
	within("/safety_lag_seconds", c.SafetyLagSeconds, 0, 24*3600)
	within("/lookback_seconds", c.LookbackSeconds, 0, 30*24*3600)
	if c.Schedule.EverySeconds != 0 {
		within("/schedule/every_seconds", c.Schedule.EverySeconds, minEverySeconds, maxSeconds)
	}
	if _, err := parseZone(c.SourceTimezone); err != nil {
		bad.add("/source_timezone", mail.CleanText(err.Error(), 200))
	}
	if f := c.FullResync; f != nil {
		full := *f
		c.FullResync = &full
		full.MissingRows = cmp.Or(full.MissingRows, "report")
		if full.EverySeconds != 0 {
			within("/full_resync/every_seconds", full.EverySeconds, minFullSeconds, maxSeconds)
		}
		if !slices.Contains([]string{"report", "unsubscribe", "delete"}, full.MissingRows) {
			bad.add("/full_resync/missing_rows", `This must be "report", "unsubscribe" or "delete".`)
		}
		if p := full.MaxDeletePercent; p != nil && (*p < 0 || *p > 100) {
			bad.add("/full_resync/max_delete_percent", "This is not between 0 and 100.")
		}
	}
	if len(bad.Errors) > 0 {
		return bad
	}
	return nil
}

func checkQuery(q *api.SourceQuery, bad *Invalid) {
	name := func(pointer, s string) {
		if detail := checkName(s); detail != "" {
			bad.add(pointer, detail)
		}
	}
	parts := strings.Split(q.Table, ".")
	if len(parts) > 2 {
		bad.add("/query/table", "A table is TABLE or SCHEMA.TABLE.")
	}
	for _, part := range parts {
		if detail := checkName(part); detail != "" {
			bad.add("/query/table", detail)
			break
		}
	}
	name("/query/cursor/updated_at", q.Cursor.UpdatedAt)
	name("/query/cursor/key", q.Cursor.Key)
	if q.Columns["email"] == "" {
		bad.add("/query/columns/email", "The column of the e-mail address is needed.")
	}
	if len(q.Columns) > maxTargets {
		bad.add("/query/columns", fmt.Sprintf("More than %d columns.", maxTargets))
	}
	for _, t := range slices.Sorted(maps.Keys(q.Columns)) {
		pointer := "/query/columns/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(mail.CleanText(t, 100))
		attr, isAttr := strings.CutPrefix(t, "attributes.")
		switch {
		case isAttr && (attr == "" || len(attr) > contact.MaxAttributeName || mail.CleanText(attr, contact.MaxAttributeName) != attr):
			bad.add(pointer, fmt.Sprintf("The name of an attribute has 1 to %d printable bytes.", contact.MaxAttributeName))
		case !isAttr && !slices.Contains([]string{"email", "status", "locale", "timezone"}, t):
			bad.add(pointer, `This is not "email", "status", "locale", "timezone" or "attributes.NAME".`)
		default:
			name(pointer, q.Columns[t])
		}
	}
	if q.Deleted == nil {
		return
	}
	d := *q.Deleted
	q.Deleted = &d
	d.When, d.Action = cmp.Or(d.When, "not_null"), cmp.Or(d.Action, "delete")
	name("/query/deleted/column", d.Column)
	if !slices.Contains([]string{"not_null", "true", "equals"}, d.When) {
		bad.add("/query/deleted/when", `This must be "not_null", "true" or "equals".`)
	}
	if d.When != "equals" && d.Value != "" || len(d.Value) > maxDeletedValue {
		bad.add("/query/deleted/value", fmt.Sprintf(`A value of at most %d bytes goes with "equals" only.`, maxDeletedValue))
	}
	if d.Action != "delete" && d.Action != "unsubscribe" {
		bad.add("/query/deleted/action", `This must be "delete" or "unsubscribe".`)
	}
}

// anew tells whether another configuration is about other rows: what was read before means nothing then.
func anew(a, b *api.SourceConfig) bool {
	return a.Driver != b.Driver || a.DSNRef != b.DSNRef || a.List != b.List || a.Query.Table != b.Query.Table || a.Query.Cursor != b.Query.Cursor
}

// again tells whether another configuration reads other things of the same rows: all must be read again.
func again(a, b *api.SourceConfig) bool {
	x, y := a.Query.Deleted, b.Query.Deleted
	return !maps.Equal(a.Query.Columns, b.Query.Columns) || (x == nil) != (y == nil) || x != nil && *x != *y ||
		a.SourceTimezone != b.SourceTimezone
}
