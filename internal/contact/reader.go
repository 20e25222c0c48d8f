package contact

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"strings"

	"relayd/internal/mail"
)

// ErrContentType tells that an upload is neither CSV nor JSON lines.
var ErrContentType = errors.New("contacts are uploaded as text/csv or application/x-ndjson")

// ReadOptions steer a Reader. The zero value recognises everything by itself.
type ReadOptions struct {
	ColumnMap map[string]Column // by header
	Delimiter string            // "auto" (default), ",", ";" or a TAB
	// Plain takes members of a JSON object that this package knows beside email, status and attributes for attributes too.
	Plain bool
	// NoUTF8 refuses addresses whose local part needs SMTPUTF8.
	NoUTF8 bool
}

// Reader yields the rows of an upload: CSV with a header row, or one JSON object per line. It takes UTF-8 with or without
// a byte order mark, UTF-16 with one, EUC-KR and CP949 as they are recognised, any other encoding that is declared, and
// all of that packed by gzip or zstd. Memory stays at one row.
type Reader struct {
	rows rowReader
	text *encodingOf
	raw  func() (row []byte, whole string)
}

// rowReader is what CSV and JSON lines have in common.
type rowReader interface {
	next() (Row, error)
	place() (line, offset int64)
	read() int64
}

// NewReader reads as far as the header row. An upload that cannot be read at all is an *InvalidError or ErrContentType.
func NewReader(contentType string, r io.Reader, o ReadOptions) (*Reader, error) {
	kind, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return nil, ErrContentType
	}
	delim := byte(0)
	switch o.Delimiter {
	case "", "auto":
	case ",", ";", "\t":
		delim = o.Delimiter[0]
	case "tab", `\t`:
		delim = '\t'
	default:
		return nil, invalid("delimiter", `not "auto", ",", ";" or a TAB`)
	}
	switch kind {
	case "text/csv", "application/csv", "text/tab-separated-values":
		in, text, err := openText(r, params["charset"])
		if err != nil {
			return nil, err
		}
		rows, err := openCSV(newCSVReader(in, text, delim), &o)
		if err != nil {
			return nil, err
		}
		return &Reader{rows, text, func() ([]byte, string) { return rows.raw, rows.whole }}, nil
	case "application/x-ndjson", "application/jsonl", "application/x-jsonlines", "application/ndjson", "application/jsonlines":
		in, text, err := openText(r, params["charset"])
		if err != nil {
			return nil, err
		}
		rows, err := openJSON(in, text, &o)
		if err != nil {
			return nil, err
		}
		return &Reader{rows, text, func() ([]byte, string) { return rows.buf, "" }}, nil
	}
	return nil, ErrContentType
}

// Next returns the next row, io.EOF behind the last, a *RowError for one that is wrong, another error when the upload
// cannot be read on. The row's attributes are valid until the next call.
func (r *Reader) Next() (Row, error) { return r.rows.next() }

// Place is where the row that Next returned last begins: its line from 1, its byte in the unpacked upload from 0.
func (r *Reader) Place() (line, offset int64) { return r.rows.place() }

// Read is how many bytes of the unpacked upload were read.
func (r *Reader) Read() int64 { return r.rows.read() }

// Encoding is the upload's character encoding, as far as it is known by now.
func (r *Reader) Encoding() string { return r.text.name }

// Raw is the row that Next returned last as UTF-8, without its line end, clipped at 64 KiB.
func (r *Reader) Raw() string {
	b, whole := r.raw()
	if whole != "" {
		return whole
	}
	if len(b) > maxRaw {
		b = b[:maxRaw]
	}
	if r.text.decoder != nil {
		if text, err := r.text.decoder.Bytes(b); err == nil {
			b = text
		}
	}
	return strings.ToValidUTF8(string(b), "\ufffd")
}

// Header returns the header row of a CSV and its delimiter, nil for JSON lines.
func (r *Reader) Header() (columns []string, delim byte) {
	c, ok := r.rows.(*csvRows)
	if !ok {
		return nil, 0
	}
	for i := range c.columns {
		columns = append(columns, c.columns[i].header)
	}
	return columns, c.delim
}

// csvRows reads contacts from CSV.
type csvRows struct {
	*csvReader
	columns []column
	scratch []Attribute
	noUTF8  bool
}

// openCSV reads the header row.
func openCSV(in *csvReader, o *ReadOptions) (*csvRows, error) {
	c := &csvRows{csvReader: in, noUTF8: o.NoUTF8}
	header, err := in.next()
	if bad, ok := errors.AsType[*RowError](err); ok {
		return nil, &InvalidError{Code: bad.Code, Detail: "header row, column " + bad.Column + ": " + bad.Detail}
	}
	if errors.Is(err, io.EOF) {
		return nil, &InvalidError{Code: "csv_header_missing", Detail: "the upload is empty: a header row is needed"}
	}
	if err != nil {
		return nil, err
	}
	seen, email := map[string]bool{}, -1
	for i, h := range header {
		col, err := mapped(strings.TrimSpace(h), o.ColumnMap)
		if err != nil {
			return nil, err
		}
		id := fmt.Sprint(col.field, " ", col.name)
		switch {
		case col.field == fieldStatus || col.field == fieldDrop:
		case col.field == fieldAttribute && col.name == "":
			col.field = fieldDrop // a column without a name
		case seen[id]:
			return nil, &InvalidError{Code: "csv_header_duplicate", Detail: fmt.Sprintf("header row: column %d, %q, is there twice", i+1, mail.CleanText(col.header, 60))}
		case col.field == fieldAttribute && len(col.name) > MaxAttributeName:
			return nil, &InvalidError{Code: "invalid_attribute", Detail: fmt.Sprintf("header row: column %d has a name of more than %d bytes", i+1, MaxAttributeName)}
		case col.field == fieldAttribute && mail.CleanText(col.name, MaxAttributeName) != col.name:
			return nil, &InvalidError{Code: "invalid_attribute", Detail: fmt.Sprintf("header row: column %d, %q, has a name with control characters", i+1, mail.CleanText(col.header, 60))}
		}
		if col.field == fieldEmail {
			email = i
		}
		seen[id] = true
		c.columns = append(c.columns, col)
	}
	if email < 0 {
		return nil, &InvalidError{Code: "csv_header_missing", Detail: fmt.Sprintf(
			"header row: no column for the e-mail address among %s: name one email, or use column_map", mail.CleanText(strings.Join(header, ", "), 200))}
	}
	return c, nil
}

func (c *csvRows) place() (line, offset int64) { return c.rowLine, c.rowOffset }

func (c *csvRows) read() int64 { return c.offset }

func (c *csvRows) next() (Row, error) {
	fields, err := c.csvReader.next()
	if err != nil {
		if bad, ok := errors.AsType[*RowError](err); ok {
			c.named(bad)
		}
		return Row{}, err
	}
	if len(fields) != len(c.columns) {
		return Row{}, &RowError{Code: "csv_field_count", Detail: fmt.Sprintf("expected %d fields, got %d", len(c.columns), len(fields))}
	}
	row := Row{Attributes: c.scratch[:0]}
	var bad *RowError
	for i, v := range fields {
		if e := c.set(&row, &c.columns[i], v); e != nil && bad == nil {
			e.Column, e.Value = c.columns[i].header, v
			bad = e
		}
	}
	c.scratch = row.Attributes
	if bad != nil {
		return Row{}, bad
	}
	SortAttributes(row.Attributes)
	return row, nil
}

// set puts a field into its place.
func (c *csvRows) set(row *Row, col *column, v string) *RowError {
	switch col.field {
	case fieldEmail:
		return setAddress(row, v, c.noUTF8)
	case fieldStatus:
		return setStatus(row, ParseStatus(v))
	case fieldAttribute:
		if col.format != "" && v != "" {
			t, ok := col.time(v)
			if !ok {
				return &RowError{Code: "invalid_time", Detail: "not a time of the form " + col.format}
			}
			v = FormatTime(t)
		}
		row.Attributes = append(row.Attributes, Attribute{col.name, String, v})
	case fieldTopic:
		return setTopic(row, col.name, ParseStatus(v))
	case fieldLocale:
		v = strings.TrimSpace(v)
		row.Locale = &v
	case fieldTimezone:
		v = strings.TrimSpace(v)
		row.Timezone = &v
	case fieldConsentAt:
		if v == "" {
			return nil
		}
		t, ok := col.time(v)
		if !ok {
			return &RowError{Code: "invalid_time", Detail: "not a time such as 2026-11-20T09:00:00Z"}
		}
		row.Consent.At = t
	case fieldConsentIP:
		row.Consent.IP = v
	case fieldConsentSource:
		row.Consent.Source = v
	case fieldConsentText:
		row.Consent.Text = v
	}
	return nil
}

func setAddress(row *Row, v string, noUTF8 bool) *RowError {
	to, err := ParseAddress(v)
	if err == nil && noUTF8 && to.NeedsUTF8() {
		err = fmt.Errorf("%w: the local part needs SMTPUTF8, which many hosts do not have", mail.ErrBadPath)
	}
	if err != nil {
		return &RowError{Code: "invalid_email", Detail: strings.TrimPrefix(err.Error(), mail.ErrBadPath.Error()+": ")}
	}
	row.To = to
	return nil
}

// setStatus takes the last of several columns that say something.
func setStatus(row *Row, s Status) *RowError {
	if s == Invalid {
		return &RowError{Code: "invalid_subscription_status", Detail: "not a subscription status"}
	}
	if s != Absent {
		row.Status = s
	}
	return nil
}

func setTopic(row *Row, name string, s Status) *RowError {
	switch s {
	case Invalid:
		return &RowError{Code: "invalid_subscription_status", Detail: "not a subscription status"}
	case Subscribed, Unsubscribed:
		row.Topics = append(row.Topics, TopicStatus{name, s})
	}
	return nil
}

// named puts the column's name in the place of its number.
func (c *csvRows) named(bad *RowError) {
	for i := range c.columns {
		if bad.Column == fmt.Sprint(i+1) {
			bad.Column = c.columns[i].header
			return
		}
	}
}
