package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
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

func (s *Server) listSuppressions(r *request) (api.Page[api.Suppression], error) {
	var none api.Page[api.Suppression]
	account, err := r.caller.account(r.URL.Query().Get("account"))
	if err != nil {
		return none, err
	}
	l, err := s.list(r)
	if err != nil {
		return none, err
	}
	entries, next, err := s.deps.Suppression.List(r.Context(), account, l.cursor, l.limit)
	if err != nil {
		return none, err
	}
	return pageOf(s, l, suppressionsOf(entries), next), nil
}

func suppressionsOf(entries []suppression.Entry) []api.Suppression {
	out := make([]api.Suppression, 0, len(entries))
	for _, e := range entries {
		out = append(out, suppressionOf(e))
	}
	return out
}

func suppressionOf(e suppression.Entry) api.Suppression {
	return api.Suppression{
		Account: e.Account, Email: e.Address, Scope: e.Scope, Reason: e.Reason, Source: e.Source, Note: e.Note,
		CreatedAt: e.CreatedAt, ExpiresAt: e.ExpiresAt,
	}
}

// entryOf checks what a caller sends. created_at is ours.
func entryOf(account string, in *api.Suppression, source string, now time.Time) (suppression.Entry, mail.Path, error) {
	to, err := mail.ParsePath(strings.TrimSpace(in.Email))
	if err != nil {
		return suppression.Entry{}, to, invalid("/email", api.CodeRecipientInvalid, sentence(err.Error()))
	}
	for pointer, text := range map[string]string{"/note": in.Note, "/source": in.Source} {
		if mail.CleanText(text, 1000) != text {
			return suppression.Entry{}, to, invalid(pointer, api.CodeInvalidParameter, "One line of at most 1000 bytes.")
		}
	}
	if !in.ExpiresAt.IsZero() && !in.ExpiresAt.After(now) {
		return suppression.Entry{}, to, invalid("/expires_at", api.CodeInvalidParameter, "expires_at is in the past.")
	}
	if in.Source != "" {
		source = in.Source
	}
	return suppression.Entry{
		Account: account, Address: to.String(), Scope: in.Scope, Reason: in.Reason, Source: source, Note: in.Note,
		ExpiresAt: in.ExpiresAt,
	}, to, nil
}

func (s *Server) addSuppression(r *request, in *api.Suppression) (api.SuppressionAdded, error) {
	var out api.SuppressionAdded
	account, err := r.caller.account(in.Account)
	if err != nil {
		return out, err
	}
	e, to, err := entryOf(account, in, "api", s.now())
	if err != nil {
		return out, err
	}
	if e.Scope == "" {
		e.Scope = suppression.Global
	}
	if out.Created, err = s.deps.Suppression.Add(r.Context(), e); err != nil {
		return out, err
	}
	if !out.Created {
		r.status = http.StatusOK
	}
	entries, err := s.deps.Suppression.Get(r.Context(), account, to)
	if err != nil {
		return out, err
	}
	for _, found := range entries {
		if found.Scope == e.Scope {
			out.Suppression = suppressionOf(found)
		}
	}
	return out, nil
}

func (s *Server) checkSuppression(r *request) (api.SuppressionCheck, error) {
	var out api.SuppressionCheck
	account, to, err := suppressionPath(r)
	if err != nil {
		return out, err
	}
	entries, err := s.deps.Suppression.Get(r.Context(), account, to)
	if err != nil {
		return out, err
	}
	out = api.SuppressionCheck{
		Email: to.String(), Entries: suppressionsOf(entries), Effective: api.SuppressionEffective{Transactional: "allowed", Broadcast: "allowed"},
	}
	for _, e := range entries {
		if !e.ExpiresAt.IsZero() && !e.ExpiresAt.After(s.now()) {
			continue
		}
		out.Effective.Broadcast = "blocked"
		if e.Scope == suppression.Global {
			out.Effective.Transactional = "blocked"
		}
	}
	return out, nil
}

func suppressionPath(r *request) (string, mail.Path, error) {
	account, err := r.caller.account(r.URL.Query().Get("account"))
	if err != nil {
		return "", mail.Path{}, err
	}
	to, err := mail.ParsePath(r.PathValue("email"))
	if err != nil {
		return "", to, badParameter("email", sentence(err.Error()))
	}
	return account, to, nil
}

func (s *Server) removeSuppression(r *request) (api.SuppressionRemoved, error) {
	var out api.SuppressionRemoved
	account, to, err := suppressionPath(r)
	if err != nil {
		return out, err
	}
	scope := r.URL.Query().Get("scope")
	if scope != "" && scope != suppression.Global && scope != suppression.Broadcast {
		return out, badParameter("scope", "scope must be global or broadcast.")
	}
	n, err := s.deps.Suppression.Remove(r.Context(), account, to, scope)
	if err != nil {
		return out, err
	}
	if n == 0 {
		return out, notFound("suppression")
	}
	return api.SuppressionRemoved{Email: to.String(), Removed: n}, nil
}

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
	if imp.account, err = r.caller.account(r.URL.Query().Get("account")); err != nil {
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

// exportSuppressions streams the list page by page: it never is in memory as a whole, and holds no transaction open.
func (s *Server) exportSuppressions(r *request) error {
	account, err := r.caller.account(r.URL.Query().Get("account"))
	if err != nil {
		return err
	}
	format := r.URL.Query().Get("format")
	if format != "" && format != "csv" && format != "jsonl" {
		return badParameter("format", "format must be csv or jsonl.")
	}
	page, next, err := s.deps.Suppression.List(r.Context(), account, "", api.MaxLimit)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(download(r), 32<<10)
	write := writeJSONLine
	if format == "jsonl" {
		r.w.Header().Set("Content-Type", "application/x-ndjson")
	} else {
		r.w.Header().Set("Content-Type", "text/csv; charset=utf-8")
		r.w.Header().Set("Content-Disposition", `attachment; filename="suppressions.csv"`)
		write = writeCSVRow
		if _, err := io.WriteString(out, "email,scope,reason,source,note,created_at,expires_at\r\n"); err != nil {
			return aborted(err)
		}
	}
	for {
		for _, e := range page {
			if err := write(out, e); err != nil {
				return aborted(err)
			}
		}
		if next == "" {
			break
		}
		if page, next, err = s.deps.Suppression.List(r.Context(), account, next, api.MaxLimit); err != nil {
			return aborted(err)
		}
	}
	if err := out.Flush(); err != nil {
		return aborted(err)
	}
	return nil
}

// aborted breaks the connection, in the way of net/http: an answer that has begun can only so be told to be incomplete.
func aborted(error) error { panic(http.ErrAbortHandler) }

func writeJSONLine(w io.Writer, e suppression.Entry) error {
	b, err := json.Marshal(suppressionOf(e))
	if err == nil {
		_, err = w.Write(append(b, '\n'))
	}
	return err
}

func writeCSVRow(w io.Writer, e suppression.Entry) error {
	row := csv.NewWriter(w)
	row.UseCRLF = true
	when := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format(time.RFC3339)
	}
	err := row.Write([]string{
		e.Address, e.Scope, e.Reason, inert(e.Source), inert(e.Note), when(e.CreatedAt), when(e.ExpiresAt),
	})
	row.Flush()
	return errors.Join(err, row.Error())
}

// inert keeps a spreadsheet from taking free text for a formula.
func inert(s string) string {
	if s != "" && strings.ContainsRune("=+-@\t", rune(s[0])) {
		return "'" + s
	}
	return s
}
