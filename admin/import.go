package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"relayd/internal/api"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/internal/suppression"
)

const (
	importSlice  = 1000    // rows in one transaction
	maxRow       = 1 << 20 // bytes
	maxRowErrors = 100     // that are told
)

// suppressionImport takes the rows of one upload.
type suppressionImport struct {
	s       *Server
	ctx     context.Context
	account string
	report  api.SuppressionImport
	slice   []suppression.Entry
}

// importSuppressions streams CSV or JSON lines. Each slice of rows is durable before the next is read, and the whole
// upload may be repeated: what is on the list stays as it is.
func (s *Server) importSuppressions(r *request) (api.SuppressionImport, error) {
	imp := &suppressionImport{s: s, ctx: r.Context()}
	var err error
	if imp.account, err = r.account(); err != nil {
		return imp.report, err
	}
	if err := plainBody(r); err != nil {
		return imp.report, err
	}
	mediaType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch mediaType {
	case "text/csv":
		err = imp.readCSV(s.upload(r))
	case "application/x-ndjson", "application/jsonl":
		err = imp.readLines(s.upload(r))
	default:
		return imp.report, &api.Problem{
			Status: http.StatusUnsupportedMediaType, Code: api.CodeUnsupportedMediaType,
			Detail: "Suppressions are uploaded as text/csv or application/x-ndjson.",
		}
	}
	if err == nil {
		err = imp.flush()
	}
	return imp.report, err
}

func (imp *suppressionImport) reject(row int, column, value, code, detail string) {
	imp.report.Rejected++
	if len(imp.report.Errors) < maxRowErrors {
		imp.report.Errors = append(imp.report.Errors, api.RowError{
			Row: row, Column: column, Value: mail.CleanText(value, 200), Code: code, Detail: detail,
		})
	}
}

func (imp *suppressionImport) add(row int, in *api.Suppression) error {
	imp.report.Rows++
	e, _, err := entryOf(imp.account, in, "import", imp.s.now())
	if p, ok := errors.AsType[*api.Problem](err); ok && len(p.Errors) > 0 {
		column := strings.TrimPrefix(p.Errors[0].Pointer, "/")
		value := in.Email
		if column != "email" {
			value = ""
		}
		imp.reject(row, column, value, p.Code, p.Errors[0].Detail)
		return nil
	}
	if err := checkWords(&e); err != nil {
		imp.reject(row, "", "", api.CodeInvalidParameter, sentence(err.Error()))
		return nil
	}
	if imp.slice = append(imp.slice, e); len(imp.slice) >= importSlice {
		return imp.flush()
	}
	return nil
}

// checkWords maps the names that other systems export and refuses what is left.
func checkWords(e *suppression.Entry) error {
	switch reason := strings.ToLower(strings.TrimSpace(e.Reason)); reason {
	case "", suppression.Manual, suppression.HardBounce, suppression.Complaint, suppression.Unsubscribe, suppression.Invalid:
		e.Reason = reason
	case "bounce", "hardbounce", "bounces", "bounced":
		e.Reason = suppression.HardBounce
	case "spam", "spam_report", "complaints":
		e.Reason = suppression.Complaint
	case "unsubscribed", "unsubscribes", "opt_out":
		e.Reason = suppression.Unsubscribe
	default:
		return fmt.Errorf("reason %q is not known", mail.CleanText(reason, 40))
	}
	switch scope := strings.ToLower(strings.TrimSpace(e.Scope)); scope {
	case suppression.Global, suppression.Broadcast:
		e.Scope = scope
	case "":
		e.Scope = suppression.Global
		if e.Reason == suppression.Unsubscribe {
			e.Scope = suppression.Broadcast
		}
	default:
		return fmt.Errorf("scope %q is not global or broadcast", mail.CleanText(scope, 40))
	}
	return nil
}

// flush makes the slice durable.
func (imp *suppressionImport) flush() error {
	if len(imp.slice) == 0 {
		return nil
	}
	created := 0
	err := imp.s.deps.DB.Update(imp.ctx, func(tx kv.Tx) error {
		created = 0
		for _, e := range imp.slice {
			isNew, err := imp.s.deps.Suppression.AddNewTx(tx, e)
			if err != nil {
				return err
			}
			if isNew {
				created++
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	imp.report.Created += created
	imp.report.Unchanged += len(imp.slice) - created
	imp.slice = imp.slice[:0]
	return nil
}

// csvColumns are the names under which columns are known, those of other systems' exports among them.
var csvColumns = map[string]string{ //nolint:gochecknoglobals // a constant table
	"email": "email", "address": "email", "emailaddress": "email", "email_address": "email", "recipient": "email",
	"scope": "scope", "reason": "reason", "type": "reason", "source": "source", "note": "note", "expires_at": "expires_at",
}

func (imp *suppressionImport) readCSV(body io.Reader) error {
	in := bufio.NewReader(body)
	if bom, _ := in.Peek(3); bytes.Equal(bom, []byte("\xef\xbb\xbf")) {
		_, _ = in.Discard(3)
	}
	rows := csv.NewReader(&rowLimit{r: in})
	rows.FieldsPerRecord, rows.LazyQuotes, rows.ReuseRecord, rows.TrimLeadingSpace = -1, true, true, true
	var columns []string
	for {
		record, err := rows.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			if _, ok := errors.AsType[*csv.ParseError](err); !ok {
				return err
			}
			imp.report.Rows++
			line, _ := rows.FieldPos(0)
			imp.reject(line, "", "", "csv_syntax", sentence(err.Error()))
			continue
		}
		line, _ := rows.FieldPos(0)
		if columns == nil {
			var header bool
			if columns, header = columnsOf(record); header {
				continue
			}
		}
		in := &api.Suppression{}
		bad := false
		for i, value := range record {
			if i >= len(columns) {
				break
			}
			value = strings.TrimSpace(value)
			switch columns[i] {
			case "email":
				in.Email = value
			case "scope":
				in.Scope = value
			case "reason":
				in.Reason = value
			case "source":
				in.Source = value
			case "note":
				in.Note = value
			case "expires_at":
				if value != "" {
					if in.ExpiresAt, err = time.Parse(time.RFC3339, value); err != nil {
						imp.report.Rows++
						imp.reject(line, "expires_at", value, api.CodeInvalidParameter, "This is not a time such as 2026-11-20T09:00:00Z.")
						bad = true
					}
				}
			}
		}
		if bad {
			continue
		}
		if err := imp.add(line, in); err != nil {
			return err
		}
	}
}

// columnsOf reads the header, or takes a first row that holds an address for a list of addresses.
func columnsOf(record []string) (columns []string, header bool) {
	known := false
	for _, name := range record {
		column := csvColumns[strings.ToLower(strings.TrimSpace(name))]
		known = known || column == "email"
		columns = append(columns, column)
	}
	if known {
		return columns, true
	}
	return []string{"email"}, false
}

// rowLimit ends a stream in which a line goes on for too long: encoding/csv would keep all of it in memory.
type rowLimit struct {
	r    io.Reader
	line int
}

var errRowTooLong = invalid("", api.CodeInvalidParameter, "A row is longer than 1 MiB.")

func (l *rowLimit) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	for rest := p[:n]; ; {
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			l.line += len(rest)
			break
		}
		if l.line+i > maxRow {
			return n, errRowTooLong
		}
		l.line, rest = 0, rest[i+1:]
	}
	if l.line > maxRow {
		return n, errRowTooLong
	}
	return n, err
}

func (imp *suppressionImport) readLines(body io.Reader) error {
	lines := bufio.NewScanner(body)
	lines.Buffer(make([]byte, 64<<10), maxRow)
	for line := 1; lines.Scan(); line++ {
		b := bytes.TrimSpace(lines.Bytes())
		if len(b) == 0 {
			continue
		}
		var in api.Suppression
		err := checkJSON(b)
		if err == nil {
			err = (&request{body: b}).decode(&in)
		}
		if p, ok := errors.AsType[*api.Problem](err); ok {
			imp.report.Rows++
			imp.reject(line, "", string(b), p.Code, p.Detail)
			continue
		}
		if err := imp.add(line, &in); err != nil {
			return err
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return errRowTooLong
	}
	return lines.Err()
}
