package contact

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"relayd/internal/api"
	"relayd/internal/mail"
)

// RowError is what is wrong with one row; the rows behind it are taken all the same.
type RowError struct {
	Column string
	Value  string
	Code   string
	Detail string
}

func (e *RowError) Error() string { return e.Code + ": " + e.Detail }

// timeForm is how times stand in attributes: texts of it sort as the times do.
const timeForm = "2006-01-02T15:04:05.000Z"

// FormatTime writes a time as attributes hold it.
func FormatTime(t time.Time) string { return t.UTC().Format(timeForm) }

func checkSchema(schema map[string]api.AttributeSchema) error {
	if len(schema) > maxSchema {
		return invalid("/attributes_schema", "more than %d attributes", maxSchema)
	}
	for _, name := range sortedKeys(schema) {
		a := schema[name]
		at := "/attributes_schema/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
		if name == "" || len(name) > MaxAttributeName || mail.CleanText(name, MaxAttributeName) != name {
			return invalid(at, "a name of an attribute is 1 to %d bytes without control characters", MaxAttributeName)
		}
		switch a.Type {
		case "string", "number", "bool", "datetime":
		default:
			return invalid(at+"/type", `type is "string", "number", "bool" or "datetime"`)
		}
		if a.MaxLength < 0 || a.MaxLength > 0 && a.Type != "string" {
			return invalid(at+"/max_length", "max_length is a positive number of characters of a string")
		}
		if len(a.Enum) > maxEnum {
			return invalid(at+"/enum", "more than %d values", maxEnum)
		}
		for i, v := range a.Enum {
			if !fitsType(a.Type, v) {
				return invalid(fmt.Sprintf("%s/enum/%d", at, i), "not a %s and not null", a.Type)
			}
		}
	}
	return nil
}

func fitsType(kind string, v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case string:
		if kind == "datetime" {
			_, ok := parseTime(v)
			return ok
		}
		return kind == "string"
	case bool:
		return kind == "bool"
	case float64, json.Number:
		return kind == "number"
	}
	return false
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// parseTime reads an RFC 3339 time or a date (midnight UTC).
func parseTime(s string) (time.Time, bool) {
	if len(s) < 10 || len(s) > 40 || s[4] != '-' {
		return time.Time{}, false
	}
	for _, form := range []string{time.RFC3339Nano, time.DateOnly} {
		if t, err := time.Parse(form, s); err == nil && t.Year() > 0 {
			return t.UTC(), true
		}
	}
	return time.Time{}, false
}

// conform checks the attributes of a contact against the list's schema and brings them into its types: a text in a
// number's place that is one becomes one, a time becomes UTC. Of a row that is laid over a contact, whole is false:
// what it does not name is not asked for.
func (l *List) conform(list []Attribute, whole bool) *RowError {
	if len(l.Schema) == 0 {
		return nil
	}
	named := 0
	for i := range list {
		schema, ok := l.Schema[list[i].Name]
		if !ok {
			continue
		}
		named++
		if bad := conform(&list[i], schema); bad != "" {
			return &RowError{Column: list[i].Name, Value: list[i].Text, Code: "invalid_attribute", Detail: bad}
		}
	}
	if !whole || named == len(l.Schema) {
		return nil
	}
	for _, name := range sortedKeys(l.Schema) {
		if l.Schema[name].Required && !slices.ContainsFunc(list, func(a Attribute) bool { return a.Name == name && a.Kind != Missing }) {
			return &RowError{Column: name, Code: "invalid_attribute", Detail: "the list requires it"}
		}
	}
	return nil
}

// conform returns what is wrong, "" for nothing. An empty text, which is all that CSV has for nothing, is none where a text
// is not free to be empty.
func conform(a *Attribute, schema api.AttributeSchema) string {
	empty := a.Kind == String && a.Text == "" && (schema.Type != "string" || schema.Required || len(schema.Enum) > 0 && !slices.Contains(schema.Enum, any("")))
	if a.Kind == Missing || empty {
		a.Kind, a.Text = Missing, ""
		if schema.Required || len(schema.Enum) > 0 && !slices.Contains(schema.Enum, nil) {
			return "the list requires it"
		}
		return ""
	}
	switch schema.Type {
	case "string":
		if a.Kind == Number || a.Kind == Bool {
			a.Kind = String
		}
		if a.Kind != String {
			return "not a string"
		}
		if n := utf8.RuneCountInString(a.Text); schema.MaxLength > 0 && n > schema.MaxLength {
			return fmt.Sprintf("%d characters, at most %d are allowed", n, schema.MaxLength)
		}
	case "number":
		text := strings.TrimSpace(a.Text)
		if _, err := strconv.ParseFloat(text, 64); err != nil || a.Kind != Number && a.Kind != String || !json.Valid([]byte(text)) {
			return "not a number"
		}
		a.Kind, a.Text = Number, text
	case "bool":
		s := ParseStatus(a.Text)
		if a.Kind == JSONList || a.Kind == Object || s != Subscribed && s != Unsubscribed {
			return "not true or false"
		}
		a.Kind, a.Text = Bool, strconv.FormatBool(s == Subscribed)
	case "datetime":
		t, ok := parseTime(strings.TrimSpace(a.Text))
		if !ok || a.Kind != String {
			return "not a time such as 2026-11-20T09:00:00Z, nor a date such as 2026-11-20"
		}
		a.Text = FormatTime(t)
	}
	if len(schema.Enum) > 0 && !slices.ContainsFunc(schema.Enum, func(v any) bool { return enumHas(a, v) }) {
		return "not one of the list's values"
	}
	return ""
}

func enumHas(a *Attribute, v any) bool {
	switch v := v.(type) {
	case string:
		if t, ok := parseTime(v); ok && a.Text == FormatTime(t) {
			return true
		}
		return a.Text == v
	case bool:
		return a.Text == strconv.FormatBool(v)
	case json.Number:
		return sameNumber(a.Text, v.String())
	case float64:
		return sameNumber(a.Text, strconv.FormatFloat(v, 'g', -1, 64))
	}
	return false
}

func sameNumber(a, b string) bool {
	x, err := strconv.ParseFloat(a, 64)
	y, err2 := strconv.ParseFloat(b, 64)
	return err == nil && err2 == nil && x == y
}
