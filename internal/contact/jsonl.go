package contact

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"time"

	"relayd/internal/api"
)

// jsonRows reads contacts from one JSON object per line.
type jsonRows struct {
	r          *bufio.Reader
	text       *encodingOf
	columns    map[string]Column
	o          *ReadOptions
	line       int64 // of the row last returned
	lines      int64 // read so far
	start, end int64
	buf        []byte
}

func openJSON(in *bufio.Reader, text *encodingOf, o *ReadOptions) (*jsonRows, error) {
	for header := range o.ColumnMap {
		if _, err := mapped(header, o.ColumnMap); err != nil {
			return nil, err
		}
	}
	return &jsonRows{r: in, text: text, columns: o.ColumnMap, o: o, start: text.skipped, end: text.skipped}, nil
}

func (j *jsonRows) place() (line, offset int64) { return j.line, j.start }

func (j *jsonRows) read() int64 { return j.end }

func (j *jsonRows) next() (Row, error) {
	for {
		tooLong, err := j.readLine()
		if err != nil {
			return Row{}, err
		}
		b := bytes.TrimSpace(j.buf)
		switch {
		case tooLong:
			return Row{}, &RowError{Code: "row_too_long", Detail: fmt.Sprintf("a row of more than %d bytes", MaxRow)}
		case len(b) == 0:
			continue
		}
		j.text.learn(b, j.r)
		text, bad := j.text.decode(b)
		if bad != nil {
			return Row{}, bad
		}
		return j.parse(text)
	}
}

// readLine reads one line into buf, of a long one only the beginning.
func (j *jsonRows) readLine() (tooLong bool, err error) {
	j.buf, j.start = j.buf[:0], j.end
	j.lines++
	j.line = j.lines
	begun := false
	for {
		part, err := j.r.ReadSlice('\n')
		j.count(part)
		begun = begun || len(part) > 0
		if len(j.buf)+len(part) <= MaxRow+2 {
			j.buf = append(j.buf, part...)
		} else {
			tooLong = true
		}
		switch {
		case err == nil:
			return tooLong, nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && begun:
			return tooLong, nil
		case errors.Is(err, io.EOF):
			return false, io.EOF
		default:
			return false, readError(err)
		}
	}
}

// count moves the end behind what was read.
func (j *jsonRows) count(part []byte) {
	if !j.text.wide {
		j.end += int64(len(part))
		return
	}
	for _, b := range part {
		j.end += j.text.width(b)
	}
}

func (j *jsonRows) parse(text string) (Row, error) {
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil || m == nil {
		detail := "not a JSON object"
		if err != nil {
			detail = err.Error()
		}
		return Row{}, &RowError{Code: api.CodeInvalidJSON, Value: text, Detail: detail}
	}
	if d.More() {
		return Row{}, &RowError{Code: api.CodeInvalidJSON, Value: text, Detail: "more than one value in a line"}
	}
	row := Row{}
	all := map[string]any{}
	if nested, ok := m["attributes"]; ok && nested != nil {
		object, ok := nested.(map[string]any)
		if !ok {
			return row, &RowError{Column: "attributes", Code: "invalid_attribute", Detail: "not an object"}
		}
		maps.Copy(all, object)
	}
	addressed := false
	for _, k := range sortedKeys(m) {
		if k == "attributes" {
			continue
		}
		col, _ := mapped(k, j.columns) // checked by openJSON
		if _, isMapped := j.columns[k]; !isMapped && !j.o.Plain {
			col = known(k, col)
		}
		addressed = addressed || col.field == fieldEmail
		if bad := j.set(&row, &col, m[k], all); bad != nil {
			if bad.Column == "" {
				bad.Column = k
			}
			return row, bad
		}
	}
	if !addressed {
		return row, &RowError{Column: "email", Code: "invalid_email", Detail: "no @"}
	}
	attributes, err := AttributesOf(all)
	if err != nil {
		return row, &RowError{Column: "attributes", Code: "invalid_attribute", Detail: err.Error()}
	}
	row.Attributes = attributes
	return row, nil
}

// known takes the members that a contact has in the API for what they are.
func known(member string, col column) column {
	if member == "topics" {
		col.name = ""
	}
	switch member {
	case "locale":
		col.field = fieldLocale
	case "timezone":
		col.field = fieldTimezone
	case "topics":
		col.field = fieldTopic
	case "consent":
		col.field = fieldConsentAt
	}
	return col
}

func (j *jsonRows) set(row *Row, col *column, v any, all map[string]any) *RowError {
	text, isText := v.(string)
	switch col.field {
	case fieldEmail:
		bad := setAddress(row, text, j.o.NoUTF8)
		if bad != nil {
			bad.Value = text
		}
		return bad
	case fieldStatus:
		bad := setStatus(row, StatusOf(v))
		if bad != nil {
			bad.Value = fmt.Sprint(v)
		}
		return bad
	case fieldAttribute:
		if col.format != "" && v != nil && text != "" {
			t, ok := col.time(fmt.Sprint(v))
			if !ok {
				return &RowError{Value: fmt.Sprint(v), Code: "invalid_time", Detail: "not a time of the form " + col.format}
			}
			v = FormatTime(t)
		}
		all[col.name] = v
	case fieldTopic:
		return setTopics(row, col, v)
	case fieldLocale, fieldTimezone:
		if v == nil {
			return nil
		}
		if !isText {
			return &RowError{Value: fmt.Sprint(v), Code: "invalid_" + col.header, Detail: "not a text"}
		}
		if col.field == fieldLocale {
			row.Locale = &text
		} else {
			row.Timezone = &text
		}
	case fieldConsentAt:
		return setConsent(row, col, v)
	case fieldConsentIP:
		row.Consent.IP = text
	case fieldConsentSource:
		row.Consent.Source = text
	case fieldConsentText:
		row.Consent.Text = text
	}
	return nil
}

func setTopics(row *Row, col *column, v any) *RowError {
	if col.name != "" {
		return setTopic(row, col.name, StatusOf(v))
	}
	topics, ok := v.(map[string]any)
	if !ok && v != nil {
		return &RowError{Code: "unknown_topic", Detail: "topics is an object of names and states"}
	}
	for _, name := range sortedKeys(topics) {
		if bad := setTopic(row, name, StatusOf(topics[name])); bad != nil {
			bad.Value = name
			return bad
		}
	}
	return nil
}

func setConsent(row *Row, col *column, v any) *RowError {
	object, ok := v.(map[string]any)
	if !ok {
		object = map[string]any{"at": v}
	}
	for _, k := range sortedKeys(object) {
		text, isText := object[k].(string)
		bad := &RowError{Column: "consent." + k, Value: fmt.Sprint(object[k]), Code: "invalid_consent", Detail: "consent has at, ip, source and text"}
		if object[k] == nil {
			continue
		}
		switch {
		case k == "at":
			t, ok := col.time(fmt.Sprint(object[k]))
			if !ok {
				bad.Detail = "not a time such as 2026-11-20T09:00:00Z"
				return bad
			}
			row.Consent.At = t.Truncate(time.Millisecond)
		case !isText:
			return bad
		case k == "ip":
			row.Consent.IP = text
		case k == "source":
			row.Consent.Source = text
		case k == "text":
			row.Consent.Text = text
		default:
			return bad
		}
	}
	return nil
}
