package campaign

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"strings"
	"unicode/utf8"

	"relayd/internal/api"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

const (
	importBatch      = 1000 // rows in one transaction
	defaultMaxErrors = 1000
	mostMaxErrors    = 10_000
	maxErrorValue    = 200
)

// contactReader yields the rows of an upload: io.EOF at the end, a *rowError for a row that is wrong, any other error
// when it cannot go on.
type contactReader interface {
	next() (contactRow, error)
	place() (line, offset int64) // of the row that next returned
	read() int64                 // bytes so far
}

// contactRow is one row before it is checked.
type contactRow struct {
	email       string
	emailColumn string
	status      subscription
	statusText  string
	statusName  string
	attributes  []attribute
}

// importer streams an upload into a draft.
type importer struct {
	s       *Service
	id      mail.QueueID
	account string
	c       *composition
	opts    api.ImportOptions
	absent  subscription // what rows without a status are
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
	im.report.BytesRead = rows.read()
	t, err := s.total(ctx, im.id)
	im.report.Total = t.total
	s.log.Info("recipients.imported", "campaign", id, "account", im.account, "count", im.report.Created, "size", im.report.BytesRead)
	return im.report, err
}

// open checks the options and that the campaign takes recipients.
func (im *importer) open(ctx context.Context, account, id string) error {
	switch im.opts.DefaultStatus {
	case "", "subscribed":
		im.absent = subscribed
	case "unsubscribed":
		im.absent = unsubscribed
	case "error":
		im.absent = statusInvalid
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

func (im *importer) reader(contentType string, r io.Reader) (contactReader, error) {
	kind, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return nil, ErrContentType
	}
	if c := strings.ToLower(params["charset"]); c != "" && c != "utf-8" && c != "us-ascii" && c != "utf8" {
		return nil, &Invalid{Code: "invalid_encoding", Detail: fmt.Sprintf("charset %q: UTF-8 is needed", clip(c, 40))}
	}
	switch kind {
	case "text/csv", "application/csv", "text/tab-separated-values":
		return im.csv(r)
	case "application/x-ndjson", "application/jsonl", "application/x-jsonlines", "application/ndjson", "application/jsonlines":
		return &jsonRows{r: bufio.NewReaderSize(r, 64<<10), columns: im.opts.ColumnMap}, nil
	}
	return nil, ErrContentType
}

// fill reads one batch; done tells that the upload has ended.
func (im *importer) fill(rows contactReader) (done bool, err error) {
	im.batch, im.rows = im.batch[:0], 0
	for im.rows < importBatch {
		row, err := rows.next()
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		bad, isRow := errors.AsType[*rowError](err)
		if err != nil && !isRow {
			return false, err
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
func (im *importer) check(row *contactRow) (recipient, *rowError) {
	var r recipient
	status := row.status
	if status == statusAbsent {
		status = im.absent
	}
	if status == statusInvalid {
		return r, &rowError{column: row.statusName, value: row.statusText, code: "invalid_subscription_status", detail: "not a subscription status"}
	}
	to, err := parseAddress(row.email)
	if err != nil {
		detail := strings.TrimPrefix(err.Error(), mail.ErrBadPath.Error()+": ")
		return r, &rowError{column: row.emailColumn, value: row.email, code: "invalid_email", detail: detail}
	}
	r = recipient{to: to, unsubscribed: status == unsubscribed}
	if r.unsubscribed {
		return r, nil
	}
	if err := checkAttributes(row.attributes); err != nil {
		return r, &rowError{code: "invalid_attribute", detail: err.Error()}
	}
	r.attributes = append([]attribute(nil), row.attributes...)
	if bad := im.checkSubject(&r); bad != nil {
		return r, bad
	}
	return r, nil
}

// checkSubject refuses contacts whose data would break the subject's line.
func (im *importer) checkSubject(r *recipient) *rowError {
	for _, u := range im.c.subject.uses {
		for _, a := range r.attributes {
			if a.name == u.root && checkHeaderText(a.s) != nil {
				return &rowError{
					column: a.name, value: a.s, code: "header_line_break",
					detail: "the subject shows this value, and it holds a line break or control character",
				}
			}
		}
	}
	return nil
}

func (im *importer) reject(rows contactReader, bad *rowError) {
	im.report.Rejected++
	im.report.RowsRead++
	im.s.metrics.imported.WithLabelValues("rejected").Inc()
	if len(im.report.Errors) >= im.opts.MaxErrors {
		im.report.ErrorsTruncated = true
		return
	}
	line, offset := rows.place()
	im.report.Errors = append(im.report.Errors, api.ImportError{
		Line: line, ByteOffset: offset, Column: mail.CleanText(bad.column, maxErrorValue), Value: mail.CleanText(bad.value, maxErrorValue),
		Code: bad.code, Detail: bad.detail,
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

// csvRows reads contacts from CSV.
type csvRows struct {
	*csvReader
	header  []string
	kinds   []field
	names   []string // of attributes
	scratch []attribute
	email   int
}

// csv reads the header row.
func (im *importer) csv(r io.Reader) (contactReader, error) {
	delim := byte(0)
	switch im.opts.Delimiter {
	case "", "auto":
	case ",", ";", "\t":
		delim = im.opts.Delimiter[0]
	case "tab", `\t`:
		delim = '\t'
	default:
		return nil, invalidOption("delimiter", `not "auto", ",", ";" or a TAB`)
	}
	rows := &csvRows{csvReader: newCSVReader(r, delim), email: -1}
	if err := rows.start(); err != nil {
		return nil, err
	}
	header, err := rows.csvReader.next()
	if bad, ok := errors.AsType[*rowError](err); ok {
		return nil, &Invalid{Code: bad.code, Detail: "header row, column " + bad.column + ": " + bad.detail}
	}
	if errors.Is(err, io.EOF) {
		return nil, &Invalid{Code: "csv_header_missing", Detail: "the upload is empty: a header row is needed"}
	}
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for i, h := range header {
		h = strings.TrimSpace(h)
		f, name := mappedColumn(h, im.opts.ColumnMap)
		if f == fieldEmail && rows.email < 0 {
			rows.email = i
		} else if f == fieldEmail || f == fieldAttribute && (seen[name] || name == "") {
			if h != "" && name != "" || f == fieldEmail {
				return nil, &Invalid{Code: "csv_header_duplicate", Detail: fmt.Sprintf("header row: column %d, %q, is there twice", i+1, clip(h, 60))}
			}
			f = fieldDrop // a column without a name
		}
		seen[name] = seen[name] || f == fieldAttribute
		rows.header, rows.kinds, rows.names = append(rows.header, h), append(rows.kinds, f), append(rows.names, name)
	}
	if rows.email < 0 {
		return nil, &Invalid{Code: "csv_header_missing", Detail: fmt.Sprintf(
			"header row: no column for the e-mail address among %s: name one email, or use column_map", clip(strings.Join(rows.header, ", "), 200))}
	}
	return rows, nil
}

func (c *csvRows) place() (line, offset int64) { return c.rowLine, c.rowOffset }

func (c *csvRows) read() int64 { return c.offset }

func (c *csvRows) next() (contactRow, error) {
	fields, err := c.csvReader.next()
	if err != nil {
		if bad, ok := errors.AsType[*rowError](err); ok {
			c.named(bad)
		}
		return contactRow{}, err
	}
	if len(fields) > len(c.kinds) {
		return contactRow{}, &rowError{code: "csv_field_count", detail: fmt.Sprintf("expected %d fields, got %d", len(c.kinds), len(fields))}
	}
	if len(fields) < len(c.kinds) {
		return contactRow{}, &rowError{code: "csv_field_count", detail: fmt.Sprintf("expected %d fields, got %d", len(c.kinds), len(fields))}
	}
	row := contactRow{attributes: c.scratch[:0], emailColumn: c.header[c.email]}
	for i, v := range fields {
		switch c.kinds[i] {
		case fieldEmail:
			row.email = v
		case fieldStatus:
			if s := parseStatus(v); s != statusAbsent || row.status == statusAbsent {
				row.status, row.statusText, row.statusName = s, v, c.header[i]
			}
		case fieldAttribute:
			row.attributes = append(row.attributes, attribute{c.names[i], kindString, v})
		}
	}
	c.scratch = row.attributes
	return row, nil
}

// named puts the column's name in the place of its number.
func (c *csvRows) named(bad *rowError) {
	for i := range c.header {
		if bad.column == fmt.Sprint(i+1) {
			bad.column = c.header[i]
			return
		}
	}
}

// jsonRows reads contacts from one JSON object per line.
type jsonRows struct {
	r          *bufio.Reader
	columns    map[string]string
	line       int64 // of the row last returned
	lines      int64 // read so far
	start, end int64
	buf        []byte
}

func (j *jsonRows) place() (line, offset int64) { return j.line, j.start }

func (j *jsonRows) read() int64 { return j.end }

func (j *jsonRows) next() (contactRow, error) {
	for {
		tooLong, err := j.readLine()
		if err != nil {
			return contactRow{}, err
		}
		b := bytes.TrimSpace(bytes.TrimPrefix(j.buf, []byte("\xef\xbb\xbf")))
		switch {
		case tooLong:
			return contactRow{}, &rowError{code: "row_too_long", detail: fmt.Sprintf("a row of more than %d bytes", maxRow)}
		case len(b) == 0:
			continue
		case !utf8.Valid(b):
			return contactRow{}, &rowError{code: "invalid_utf8", value: string(bytes.ToValidUTF8(b, []byte("?"))), detail: "bytes that are not UTF-8"}
		}
		return j.parse(b)
	}
}

// readLine reads one line into buf, of a long one only the beginning.
func (j *jsonRows) readLine() (tooLong bool, err error) {
	j.buf, j.start = j.buf[:0], j.end
	j.lines++
	j.line = j.lines
	for {
		part, err := j.r.ReadSlice('\n')
		j.end += int64(len(part))
		if len(j.buf)+len(part) <= maxRow+2 {
			j.buf = append(j.buf, part...)
		} else {
			tooLong = true
		}
		switch {
		case err == nil:
			return tooLong, nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && j.end > j.start:
			return tooLong, nil
		case errors.Is(err, io.EOF):
			return false, io.EOF
		default:
			return false, fmt.Errorf("read upload: %w", err)
		}
	}
}

func (j *jsonRows) parse(b []byte) (contactRow, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil || m == nil {
		detail := "not a JSON object"
		if err != nil {
			detail = err.Error()
		}
		return contactRow{}, &rowError{code: api.CodeInvalidJSON, value: string(b), detail: detail}
	}
	if d.More() {
		return contactRow{}, &rowError{code: api.CodeInvalidJSON, value: string(b), detail: "more than one value in a line"}
	}
	row := contactRow{emailColumn: "email"}
	all := map[string]any{}
	if nested, ok := m["attributes"]; ok && nested != nil {
		object, ok := nested.(map[string]any)
		if !ok {
			return row, &rowError{column: "attributes", code: "invalid_attribute", detail: "not an object"}
		}
		maps.Copy(all, object)
	}
	for _, k := range sortedKeys(m) {
		if k == "attributes" {
			continue
		}
		f, name := mappedColumn(k, j.columns)
		switch f {
		case fieldEmail:
			row.email, _ = m[k].(string)
			row.emailColumn = k
		case fieldStatus:
			if s := statusOf(m[k]); s != statusAbsent || row.status == statusAbsent {
				row.status, row.statusName, row.statusText = s, k, fmt.Sprint(m[k])
			}
		case fieldAttribute:
			all[name] = m[k]
		}
	}
	attributes, err := attributesOf(all)
	if err != nil {
		return row, &rowError{column: "attributes", code: "invalid_attribute", detail: err.Error()}
	}
	row.attributes = attributes
	return row, nil
}
