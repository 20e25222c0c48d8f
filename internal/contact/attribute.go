package contact

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"relayd/internal/mail"
)

// Kind is the type of an attribute's value.
type Kind uint8

// The kinds of values. They are stored: their numbers do not change.
const (
	Missing Kind = iota // in a Row: the attribute is to be removed
	String
	Number
	Bool
	JSONList
	Object
)

// Limits of a contact's attributes.
const (
	MaxAttributes     = 200
	MaxAttributeName  = 128      // bytes
	MaxAttributeBytes = 64 << 10 // names and values of one contact together
)

// Attribute is one name of a contact with its value: a text, or JSON for everything else.
type Attribute struct {
	Name string
	Kind Kind
	Text string
}

// ErrAttributes is wrapped by every error about attributes; its text is written for callers.
var ErrAttributes = errors.New("attributes")

// AttributesOf sorts the attributes that JSON decoding yields by name. A null is of kind Missing: it removes.
func AttributesOf(m map[string]any) ([]Attribute, error) {
	list := make([]Attribute, 0, len(m))
	for name, x := range m {
		a := Attribute{Name: name}
		switch x := x.(type) {
		case nil:
		case string:
			a.Kind, a.Text = String, x
		case json.Number:
			a.Kind, a.Text = Number, x.String()
		case float64:
			a.Kind, a.Text = Number, strconv.FormatFloat(x, 'f', -1, 64)
		case int64:
			a.Kind, a.Text = Number, strconv.FormatInt(x, 10)
		case int:
			a.Kind, a.Text = Number, strconv.Itoa(x)
		case bool:
			a.Kind, a.Text = Bool, strconv.FormatBool(x)
		case []any, map[string]any:
			b, err := json.Marshal(x)
			if err != nil {
				return nil, fmt.Errorf("%w: %q: %w", ErrAttributes, mail.CleanText(name, 40), err)
			}
			if a.Kind, a.Text = JSONList, string(b); b[0] == '{' {
				a.Kind = Object
			}
		default:
			return nil, fmt.Errorf("%w: %q has a type that JSON does not", ErrAttributes, mail.CleanText(name, 40))
		}
		list = append(list, a)
	}
	SortAttributes(list)
	return list, checkAttributes(list)
}

// SortAttributes puts them into the order in which they are stored.
func SortAttributes(list []Attribute) {
	slices.SortFunc(list, func(a, b Attribute) int { return strings.Compare(a.Name, b.Name) })
}

// Value is the attribute as encoding/json writes it.
func (a Attribute) Value() any {
	switch a.Kind {
	case String:
		return a.Text
	case Number, Bool, JSONList, Object:
		return json.RawMessage(a.Text)
	}
	return nil
}

// checkAttributes wants a sorted list within the limits, in which no name stands twice.
func checkAttributes(list []Attribute) error {
	if len(list) > MaxAttributes {
		return fmt.Errorf("%w: more than %d", ErrAttributes, MaxAttributes)
	}
	size := 0
	for i, a := range list {
		size += len(a.Name) + len(a.Text) + 8
		switch {
		case a.Name == "" || len(a.Name) > MaxAttributeName:
			return fmt.Errorf("%w: a name of %d bytes, not 1 to %d", ErrAttributes, len(a.Name), MaxAttributeName)
		case !utf8.ValidString(a.Name) || !utf8.ValidString(a.Text):
			return fmt.Errorf("%w: %q is not UTF-8", ErrAttributes, mail.CleanText(a.Name, 40))
		case mail.CleanText(a.Name, MaxAttributeName) != a.Name:
			return fmt.Errorf("%w: the name %q holds control characters", ErrAttributes, mail.CleanText(a.Name, 40))
		case i > 0 && list[i-1].Name >= a.Name:
			return fmt.Errorf("%w: %q stands twice, or out of order", ErrAttributes, mail.CleanText(a.Name, 40))
		case a.Kind > Object:
			return fmt.Errorf("%w: %q is of no kind", ErrAttributes, mail.CleanText(a.Name, 40))
		case size > MaxAttributeBytes:
			return fmt.Errorf("%w: more than %d bytes", ErrAttributes, MaxAttributeBytes)
		}
	}
	return nil
}

// merge lays the attributes of a row over those of a contact; both are sorted. replace drops what the row does not name.
// What it returns may be the row's.
func merge(old, row []Attribute, replace bool) []Attribute {
	if len(old) == 0 && !slices.ContainsFunc(row, func(a Attribute) bool { return a.Kind == Missing }) {
		return row
	}
	out := make([]Attribute, 0, len(old)+len(row))
	for len(old) > 0 || len(row) > 0 {
		switch {
		case len(row) == 0 || len(old) > 0 && old[0].Name < row[0].Name:
			if !replace {
				out = append(out, old[0])
			}
			old = old[1:]
		default:
			if len(old) > 0 && old[0].Name == row[0].Name {
				old = old[1:]
			}
			if row[0].Kind != Missing {
				out = append(out, row[0])
			}
			row = row[1:]
		}
	}
	return out
}

// AppendAttributes writes their number, then name, kind and value of each, texts with their length before them.
// Campaigns store the same form with an envelope.
func AppendAttributes(b []byte, list []Attribute) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, a := range list {
		b = appendText(b, a.Name)
		b = append(b, byte(a.Kind))
		b = appendText(b, a.Text)
	}
	return b
}

// ReadAttributes appends to list what AppendAttributes wrote; s must end there. The texts share memory with s.
func ReadAttributes(list []Attribute, s string) ([]Attribute, error) {
	n, s, ok := cutUvarint(s)
	if !ok || n > MaxAttributes {
		return list, fmt.Errorf("%w: attributes", errBadRecord)
	}
	for range n {
		var a Attribute
		if a, s, ok = cutAttribute(s); !ok {
			return list, errBadAttribute
		}
		list = append(list, a)
	}
	if s != "" {
		return list, fmt.Errorf("%w: %d bytes too many", errBadRecord, len(s))
	}
	return list, nil
}

func cutAttribute(s string) (a Attribute, rest string, ok bool) {
	if a.Name, s, ok = cutText(s); !ok || s == "" {
		return a, "", false
	}
	a.Kind = Kind(s[0])
	a.Text, s, ok = cutText(s[1:])
	return a, s, ok && a.Kind != Missing && a.Kind <= Object
}

// findAttribute looks for one name in what AppendAttributes wrote, and reads no further. The texts share memory with s.
func findAttribute(s, name string) (a Attribute, found bool, err error) {
	n, s, ok := cutUvarint(s)
	if !ok || n > MaxAttributes {
		return a, false, errBadAttribute
	}
	for range n {
		if a, s, ok = cutAttribute(s); !ok {
			return a, false, errBadAttribute
		}
		if a.Name >= name {
			return a, a.Name == name, nil
		}
	}
	return Attribute{}, false, nil
}

func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func cutUvarint(s string) (uint64, string, bool) {
	var v uint64
	for i := range min(len(s), binary.MaxVarintLen64) {
		v |= uint64(s[i]&0x7f) << (7 * i)
		if s[i] < 0x80 {
			return v, s[i+1:], true
		}
	}
	return 0, "", false
}

func cutText(s string) (text, rest string, ok bool) {
	n, s, ok := cutUvarint(s)
	if !ok || n > uint64(len(s)) {
		return "", "", false
	}
	return s[:n], s[n:], true
}
