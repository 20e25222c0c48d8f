package source

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"time"

	"relayd/internal/api"
	"relayd/internal/contact"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

const (
	testTimeout = 30 * time.Second
	sampleRows  = 5
	sampleText  = 200
)

// ErrBusy is returned by Test when too many tests are under way.
var ErrBusy = errors.New("too many tests of sources are under way")

// Test connects and tells what a run would meet: what is wrong, what is slow, and how rows would look as contacts. It
// changes nothing. What is wrong with the source is in the answer; an error is about the call.
func (s *Service) Test(ctx context.Context, account, ref string) (api.SourceTest, error) {
	out := api.SourceTest{Problems: []api.SourceFinding{}, Warnings: []api.SourceFinding{}, Sample: []api.SourceSample{}}
	select {
	case s.tests <- struct{}{}:
		defer func() { <-s.tests }()
	default:
		return out, ErrBusy
	}
	var rec *record
	problem := func(code, field string, err error) {
		out.Problems = append(out.Problems, api.SourceFinding{Code: code, Field: field, Detail: mail.CleanText(err.Error(), 500)})
	}
	err := s.deps.DB.View(ctx, func(tx kv.Tx) (err error) {
		if rec, err = find(tx, account, ref); err != nil {
			return err
		}
		if _, err := s.deps.Contacts.ListTx(tx, rec.Account, rec.Config.List); errors.Is(err, contact.ErrNotFound) {
			problem("list_missing", "/list", fmt.Errorf("There is no list %q.", rec.Config.List)) //nolint:revive,staticcheck // a sentence of the answer
		} else if err != nil {
			return err
		}
		return nil
	})
	if err != nil {
		return out, fmt.Errorf("test source: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, testTimeout)
	defer cancel()
	dsn, err := readRef(rec.Config.DSNRef, s.deps.Env)
	if err != nil {
		problem("dsn_unreadable", "/dsn_ref", err)
		return out, nil
	}
	session, err := openSession(ctx, rec.Config.Driver, dsn)
	if err != nil {
		code := "connect_failed"
		if errors.Is(err, errDSN) {
			code = "dsn_unreadable"
		}
		problem(code, "/dsn_ref", err)
		return out, nil
	}
	defer session.close()
	now := session.now.time(nil)
	out.DatabaseTime = &now
	p, err := look(ctx, session, &rec.Config)
	if bad, ok := errors.AsType[findings](err); ok {
		out.Problems = append(out.Problems, bad...)
		return out, nil
	}
	if err == nil {
		err = p.probe(ctx, session, &out)
	}
	if err == nil {
		err = p.sample(ctx, session, &out)
	}
	if err != nil {
		problem("query_failed", "/query", err)
	}
	out.OK = len(out.Problems) == 0
	return out, nil
}

// probe fills in what is known about the table, and the warnings.
func (p *plan) probe(ctx context.Context, s *session, out *api.SourceTest) error {
	warn := func(code, field, format string, args ...any) {
		out.Warnings = append(out.Warnings, api.SourceFinding{Code: code, Field: field, Detail: fmt.Sprintf(format, args...)})
	}
	out.Server, out.EstimatedRows = p.t.server, p.t.rows
	out.UpdatedAtType = p.u.typ
	switch {
	case p.u.decimals == 0:
		out.Precision = "second"
		warn("second_precision", "/query/cursor/updated_at", "%q holds whole seconds: an overlap of at least 2 seconds is read again with every run.", p.u.name)
	case p.u.decimals <= 3:
		out.Precision = "millisecond"
	default:
		out.Precision = "microsecond"
	}
	if out.IndexUsed = p.t.orders(p.u, p.k); out.IndexUsed == "" {
		if p.t.view {
			warn("view", "/query/table", "This is a view: whether an index serves (%s, %s), and whether the key is unique, cannot be seen.", p.u.name, p.k.name)
		} else {
			warn("index_missing", "/query/cursor", "No index on (%s, %s): every page reads the whole table.", p.u.name, p.k.name)
		}
	}
	if s.d == (mySQL{}) && !p.t.view && !p.u.touched {
		warn("not_automatic", "/query/cursor/updated_at", "%q has no ON UPDATE CURRENT_TIMESTAMP: changes of a program that forgets to set it are seen by full runs only.", p.u.name)
	}
	can, err := s.d.writable(ctx, s.tx, p.t)
	if err != nil {
		return s.clean(err)
	}
	if can {
		warn("writable", "/dsn_ref", "The user may change the table: give relayd one that may only read.")
	}
	clock := p.zone
	if p.u.zoned {
		clock = nil
	}
	counts := []struct {
		code, condition, what string
		args                  []any
	}{
		{"updated_at_null", "IS NULL", "have no time of change: only a full run sees them", nil},
		{"updated_at_future", "> " + p.d.param(1, p.u), "changed later than now by their own account: they wait until then, or for a full run", []any{momentOf(s.now.time(nil), clock).sql()}},
	}
	if !p.u.nullable {
		counts = counts[1:]
	}
	for _, c := range counts {
		err := s.query(ctx, p.count(c.condition), c.args, 1, func(cells []sql.NullString) (bool, error) {
			if n, _ := strconv.Atoi(cells[0].String); n > 0 {
				least := ""
				if n >= maxFuture {
					least = "at least "
				}
				warn(c.code, "/query/cursor/updated_at", "%s%d rows %s.", least, n, c.what)
			}
			return false, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// sample shows the rows that changed last, any rows where that would read the whole table.
func (p *plan) sample(ctx context.Context, s *session, out *api.SourceTest) error {
	text, width := p.selectFrom()
	if out.IndexUsed != "" {
		text += fmt.Sprintf(" WHERE %s IS NOT NULL ORDER BY %s DESC", p.d.quote(p.u.name), p.d.quote(p.u.name))
	}
	text += fmt.Sprintf(" LIMIT %d", sampleRows)
	return s.query(ctx, text, nil, width, func(cells []sql.NullString) (bool, error) {
		r := p.row(cells)
		one := api.SourceSample{
			Key: mail.CleanText(r.key, sampleText), UpdatedAt: mail.CleanText(cells[1].String, sampleText), Deleted: r.deleted,
			Status: r.contact.Status.String(), Attributes: map[string]any{},
		}
		if !r.contact.To.IsNull() {
			one.Email = r.contact.To.String()
		}
		if r.bad != nil {
			one.Error = r.bad.Column + ": " + r.bad.Code + ": " + r.bad.Detail
		}
		for _, a := range r.contact.Attributes {
			if a.Kind != contact.Missing {
				if len(a.Text) > sampleText {
					a.Kind, a.Text = contact.String, mail.CleanText(a.Text, sampleText)
				}
				one.Attributes[a.Name] = a.Value()
			}
		}
		out.Sample = append(out.Sample, one)
		return true, nil
	})
}
