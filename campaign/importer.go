package campaign

import (
	"context"
	"errors"
	"fmt"
	"io"

	"relayd/internal/api"
	contacts "relayd/internal/contact"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

const (
	importBatch      = 1000 // rows in one transaction
	defaultMaxErrors = 1000
	mostMaxErrors    = 10_000
	maxErrorValue    = 200 // bytes
)

// importer streams an upload into a draft.
type importer struct {
	s       *Service
	id      mail.QueueID
	account string
	c       *composition
	opts    api.ImportOptions
	absent  contacts.Status // what rows without a status are
	report  api.ImportReport
	batch   []recipient
	rows    int64 // read, in this batch
}

// AddRecipients streams an upload of contacts into a draft: text/csv with a header row, or application/x-ndjson with one
// object per line. A row that is wrong is told in the report, and the others are imported; memory stays at one batch.
// When the stream breaks, the batches stored so far stay: sending all of it again doubles nothing.
func (s *Service) AddRecipients(ctx context.Context, account, id, contentType string, r io.Reader, opts api.ImportOptions) (api.ImportReport, error) {
	im := &importer{s: s, opts: opts, report: api.ImportReport{Errors: []api.ImportError{}}}
	if err := im.open(ctx, account, id); err != nil {
		return im.report, err
	}
	rows, err := im.reader(contentType, r)
	if err != nil {
		return im.report, err
	}
	for done := false; !done; {
		if done, err = im.fill(rows); err != nil {
			return im.report, err
		}
		if err := im.store(ctx); err != nil {
			return im.report, err
		}
	}
	im.report.BytesRead = rows.Read()
	t, err := s.total(ctx, im.id)
	im.report.Total = t.total
	s.log.Info("recipients.imported", "campaign", id, "account", im.account, "count", im.report.Created, "size", im.report.BytesRead)
	return im.report, err
}

// open checks the options and that the campaign takes recipients.
func (im *importer) open(ctx context.Context, account, id string) error {
	switch im.opts.DefaultStatus {
	case "", "subscribed":
		im.absent = contacts.Subscribed
	case "unsubscribed":
		im.absent = contacts.Unsubscribed
	case "error":
		im.absent = contacts.Invalid
	default:
		return invalidOption("default_status", `not "subscribed", "unsubscribed" or "error"`)
	}
	if im.opts.MaxErrors <= 0 {
		im.opts.MaxErrors = defaultMaxErrors
	}
	im.opts.MaxErrors = min(im.opts.MaxErrors, mostMaxErrors)
	var r *record
	err := im.s.db.View(ctx, func(tx kv.Tx) (err error) {
		r, err = im.s.owned(tx, account, id)
		return err
	})
	if err != nil {
		return err
	}
	if r.State != Draft {
		return &StateError{"upload of recipients", r.State}
	}
	im.id, im.account = r.ID, r.Account
	im.c, err = im.s.compile(ctx, r)
	return err
}

func invalidOption(name, detail string) error {
	return &Invalid{Code: api.CodeInvalidParameter, Errors: []api.FieldError{{Pointer: name, Code: api.CodeInvalidParameter, Detail: detail}}}
}

func (im *importer) reader(contentType string, r io.Reader) (*contacts.Reader, error) {
	columns := make(map[string]contacts.Column, len(im.opts.ColumnMap))
	for header, field := range im.opts.ColumnMap {
		columns[header] = contacts.Column{Field: field}
	}
	rows, err := contacts.NewReader(contentType, r, contacts.ReadOptions{
		ColumnMap: columns, Delimiter: im.opts.Delimiter, Plain: true, NoUTF8: true,
	})
	return rows, uploadError(err)
}

// uploadError puts our own errors in the place of the reader's.
func uploadError(err error) error {
	if e, ok := errors.AsType[*contacts.InvalidError](err); ok {
		return &Invalid{Code: e.Code, Detail: e.Detail, Errors: e.Errors}
	}
	if errors.Is(err, contacts.ErrContentType) {
		return ErrContentType
	}
	return err
}

// fill reads one batch; done tells that the upload has ended.
func (im *importer) fill(rows *contacts.Reader) (done bool, err error) {
	im.batch, im.rows = im.batch[:0], 0
	for im.rows < importBatch {
		row, err := rows.Next()
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		bad, isRow := errors.AsType[*contacts.RowError](err)
		if err != nil && !isRow {
			return false, uploadError(err)
		}
		im.rows++
		var r recipient
		if bad == nil {
			r, bad = im.check(&row)
		}
		if bad != nil {
			im.reject(rows, bad)
			continue
		}
		im.batch = append(im.batch, r)
	}
	return false, nil
}

// check turns a row into a recipient.
func (im *importer) check(row *contacts.Row) (recipient, *contacts.RowError) {
	var r recipient
	status := row.Status
	if status == contacts.Absent {
		status = im.absent
	}
	if status == contacts.Invalid {
		return r, &contacts.RowError{Code: "invalid_subscription_status", Detail: "not a subscription status"}
	}
	r = recipient{to: row.To, unsubscribed: status == contacts.Unsubscribed}
	if r.unsubscribed {
		return r, nil
	}
	for _, a := range row.Attributes {
		if a.Kind != contacts.Missing {
			r.attributes = append(r.attributes, attribute{a.Name, kind(a.Kind), a.Text})
		}
	}
	if err := checkAttributes(r.attributes); err != nil {
		return r, &contacts.RowError{Code: "invalid_attribute", Detail: err.Error()}
	}
	if bad := im.checkSubject(&r); bad != nil {
		return r, bad
	}
	return r, nil
}

// checkSubject refuses contacts whose data would break the subject's line.
func (im *importer) checkSubject(r *recipient) *contacts.RowError {
	for _, u := range im.c.subject.uses {
		for _, a := range r.attributes {
			if a.name == u.root && checkHeaderText(a.s) != nil {
				return &contacts.RowError{
					Column: a.name, Value: a.s, Code: "header_line_break",
					Detail: "the subject shows this value, and it holds a line break or control character",
				}
			}
		}
	}
	return nil
}

func (im *importer) reject(rows *contacts.Reader, bad *contacts.RowError) {
	im.report.Rejected++
	im.report.RowsRead++
	im.s.metrics.imported.WithLabelValues("rejected").Inc()
	if len(im.report.Errors) >= im.opts.MaxErrors {
		im.report.ErrorsTruncated = true
		return
	}
	line, offset := rows.Place()
	im.report.Errors = append(im.report.Errors, api.ImportError{
		Line: line, ByteOffset: offset, Column: mail.CleanText(bad.Column, maxErrorValue), Value: mail.CleanText(bad.Value, maxErrorValue),
		Code: bad.Code, Detail: bad.Detail,
	})
}

// store writes the batch with its count in one transaction, if the campaign is a draft still.
func (im *importer) store(ctx context.Context) error {
	if len(im.batch) == 0 {
		return nil
	}
	var sum added
	err := im.s.db.Update(ctx, func(tx kv.Tx) error {
		r, err := getRecord(tx, im.id)
		if err != nil {
			return err
		}
		if r.State != Draft {
			return &StateError{"upload of recipients", r.State}
		}
		if sum, err = putRecipients(tx, im.id, im.batch); err != nil {
			return err
		}
		return im.s.change(tx, im.id, func(t *tally) { t.total += sum.total })
	})
	if err != nil {
		return fmt.Errorf("store recipients: %w", err)
	}
	im.report.RowsRead += int64(len(im.batch))
	im.report.Created += sum.created
	im.report.Duplicates += sum.duplicates
	im.report.SkippedUnsubscribed += sum.skipped
	im.s.metrics.imported.WithLabelValues("created").Add(float64(sum.created))
	im.s.metrics.imported.WithLabelValues("duplicate").Add(float64(sum.duplicates))
	im.s.metrics.imported.WithLabelValues("skipped").Add(float64(sum.skipped))
	return nil
}
