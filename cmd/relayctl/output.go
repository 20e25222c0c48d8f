package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"relayd/internal/mail"
)

// view is how an answer looks to a person: as cells for a table or a CSV file.
type view interface {
	// cells returns the header (nil for none) and the rows.
	cells() (header []string, rows [][]string)
	// remark follows a table, "" for none. It is no part of a CSV file.
	remark() string
}

// rows is a list.
type rows struct {
	header []string
	data   [][]string
	note   string
}

func (r *rows) cells() ([]string, [][]string) { return r.header, r.data }
func (r *rows) remark() string                { return r.note }

func (r *rows) add(cells ...string) { r.data = append(r.data, cells) }

// pairs is one thing with its properties, one a line. Empty ones are left out.
type pairs [][2]string

func (p pairs) cells() ([]string, [][]string) {
	var out [][]string
	for _, kv := range p {
		if kv[1] != "" {
			out = append(out, []string{kv[0], kv[1]})
		}
	}
	return nil, out
}

func (p pairs) remark() string { return "" }

// print shows an answer in the format of --output: value as JSON, or v as a table or CSV.
func (a *app) print(value any, v view) error {
	switch a.format {
	case "json":
		return printJSON(a.out, value)
	case "csv":
		return printCSV(a.out, v)
	default:
		return printTable(a.out, v)
	}
}

// printJSON writes one indented value. Control characters that JSON allows in strings, and that a terminal obeys, are
// written as escapes.
func printJSON(w io.Writer, value any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(value); err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	_, err := w.Write(escapeControls(b.Bytes()))
	return err
}

// escapeControls writes DEL, C1 controls and bidirectional overrides of a JSON text as \u escapes. Outside its strings a
// JSON text has none of them.
func escapeControls(b []byte) []byte {
	if !bytes.ContainsFunc(b, dangerous) {
		return b
	}
	out := make([]byte, 0, len(b)+16)
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if dangerous(r) {
			out = fmt.Appendf(out, `\u%04x`, r)
		} else {
			out = append(out, b[:n]...)
		}
		b = b[n:]
	}
	return out
}

func dangerous(r rune) bool {
	return r >= 0x7f && r < 0xa0 || r >= 0x200e && r <= 0x200f || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069
}

func printCSV(w io.Writer, v view) error {
	header, data := v.cells()
	c := csv.NewWriter(w)
	if header != nil {
		_ = c.Write(header) // the error stays for Flush
	}
	for _, row := range data {
		_ = c.Write(clean(row))
	}
	c.Flush()
	return c.Error()
}

func printTable(w io.Writer, v view) error {
	header, data := v.cells()
	t := table.NewWriter()
	style := table.StyleLight
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	style.Format.Header = text.FormatUpper
	t.SetStyle(style)
	t.SuppressTrailingSpaces()
	if header != nil {
		t.AppendHeader(tableRow(header))
	}
	for _, row := range data {
		t.AppendRow(tableRow(clean(row)))
	}
	if header != nil {
		t.SetColumnConfigs(numericColumns(len(header), data))
	}
	out := t.Render()
	if out != "" {
		out += "\n"
	}
	if r := v.remark(); r != "" {
		out += mail.CleanText(r, 1000) + "\n"
	}
	_, err := io.WriteString(w, out)
	return err
}

// clean neutralises what a terminal would obey. Remote hosts and message authors choose much of what is shown.
func clean(cells []string) []string {
	out := make([]string, len(cells))
	for i, c := range cells {
		out[i] = mail.CleanText(c, 4<<10)
	}
	return out
}

// cleanWriter is clean for a stream of text: it lets line ends and tabs pass.
type cleanWriter struct {
	out io.Writer
	c2  bool // the last octet was 0xC2, which begins a C1 control
}

func (w *cleanWriter) Write(p []byte) (int, error) {
	out := make([]byte, 0, len(p)+1)
	for _, c := range p {
		if w.c2 {
			w.c2 = false
			if c >= 0x80 && c < 0xa0 {
				out = append(out, '?')
				continue
			}
			out = append(out, 0xc2)
		}
		switch {
		case c == 0xc2:
			w.c2 = true
		case c < 0x20 && c != '\n' && c != '\r' && c != '\t', c == 0x7f:
			out = append(out, '?')
		default:
			out = append(out, c)
		}
	}
	_, err := w.out.Write(out)
	return len(p), err
}

func tableRow(cells []string) table.Row {
	r := make(table.Row, len(cells))
	for i, c := range cells {
		r[i] = c
	}
	return r
}

// numericColumns aligns columns of numbers to the right.
func numericColumns(n int, data [][]string) []table.ColumnConfig {
	var out []table.ColumnConfig
	for i := range n {
		numeric := len(data) > 0
		for _, row := range data {
			if i >= len(row) {
				continue
			}
			if _, err := strconv.ParseFloat(row[i], 64); err != nil && row[i] != "" {
				numeric = false
			}
		}
		if numeric {
			out = append(out, table.ColumnConfig{Number: i + 1, Align: text.AlignRight, AlignHeader: text.AlignRight})
		}
	}
	return out
}

// moment shows a time in UTC to the second, "" for none.
func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}

func momentOf(t *time.Time) string {
	if t == nil {
		return ""
	}
	return moment(*t)
}

// number shows a count, "" for zero in places where a zero would be noise.
func number[T int | int64](n T) string { return strconv.FormatInt(int64(n), 10) }

func reply(r *mail.Reply) string {
	if r == nil || r.IsZero() {
		return ""
	}
	return r.String()
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

// orNull shows the null reverse-path as people write it.
func orNull(path string) string {
	if path == "" {
		return "<>"
	}
	return path
}

func joinComma(s []string) string { return strings.Join(s, ", ") }
