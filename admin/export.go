package admin

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"relayd/internal/api"
	"relayd/internal/suppression"
)

// exportSuppressions streams the list page by page: it never is in memory as a whole, and holds no transaction open.
func (s *Server) exportSuppressions(r *request) error {
	account, err := r.account()
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
