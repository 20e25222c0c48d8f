package campaign

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"
)

type kind uint8

const (
	kindMissing kind = iota
	kindString
	kindNumber
	kindBool
	kindList
	kindMap
)

// value is what an expression yields. trusted tells that it comes from the author of the campaign, so that in the HTML
// part it is HTML; what comes from a contact never is.
type value struct {
	kind    kind
	s       string // of strings, numbers and booleans, as it is shown
	list    []any
	fields  map[string]any
	trusted bool
}

func (v value) text() string {
	switch v.kind {
	case kindList, kindMap:
		return ""
	default:
		return v.s
	}
}

// truthy follows Handlebars: false, 0, "", missing and the empty list are not.
func (v value) truthy() bool {
	switch v.kind {
	case kindMissing:
		return false
	case kindBool:
		return v.s == "true"
	case kindNumber:
		f, err := strconv.ParseFloat(v.s, 64)
		return err != nil || f != 0
	case kindString:
		return v.s != ""
	case kindList:
		return len(v.list) > 0
	}
	return true
}

// valueOf wraps what JSON decoding yields.
func valueOf(x any, trusted bool) value {
	switch x := x.(type) {
	case string:
		return value{kind: kindString, s: x, trusted: trusted}
	case json.Number:
		return value{kind: kindNumber, s: x.String(), trusted: trusted}
	case float64:
		return value{kind: kindNumber, s: strconv.FormatFloat(x, 'f', -1, 64), trusted: trusted}
	case int:
		return value{kind: kindNumber, s: strconv.Itoa(x), trusted: trusted}
	case int64:
		return value{kind: kindNumber, s: strconv.FormatInt(x, 10), trusted: trusted}
	case bool:
		return value{kind: kindBool, s: strconv.FormatBool(x), trusted: trusted}
	case []any:
		return value{kind: kindList, list: x, trusted: trusted}
	case map[string]any:
		return value{kind: kindMap, fields: x, trusted: trusted}
	}
	return value{trusted: trusted}
}

// step follows one name or index.
func (v value) step(seg string) value {
	switch v.kind {
	case kindMap:
		x, ok := v.fields[seg]
		if ok {
			return valueOf(x, v.trusted)
		}
	case kindList:
		if i, err := strconv.Atoi(seg); err == nil && i >= 0 && i < len(v.list) {
			return valueOf(v.list[i], v.trusted)
		}
		if seg == "length" {
			return value{kind: kindNumber, s: strconv.Itoa(len(v.list)), trusted: true}
		}
	}
	return value{trusted: v.trusted}
}

// Limits of a contact's attributes.
const (
	maxAttributes     = 200
	maxAttributeName  = 128
	maxAttributeBytes = 64 << 10
)

// attribute is one name of a contact with its value: a text, or JSON for everything else.
type attribute struct {
	name string
	kind kind // kindString, kindNumber, kindBool, kindList or kindMap
	s    string
}

func (a attribute) value() value {
	switch a.kind {
	case kindList, kindMap:
		d := json.NewDecoder(strings.NewReader(a.s))
		d.UseNumber()
		var x any
		if d.Decode(&x) != nil {
			return value{}
		}
		return valueOf(x, false)
	}
	return value{kind: a.kind, s: a.s}
}

// attributesOf sorts the attributes of a contact by name and leaves out those that are null.
func attributesOf(m map[string]any) ([]attribute, error) {
	list := make([]attribute, 0, len(m))
	for name, x := range m {
		switch v := valueOf(x, false); v.kind {
		case kindMissing:
			if x != nil {
				return nil, fmt.Errorf("attribute %q has a type that JSON does not", clip(name, 40))
			}
		case kindList, kindMap:
			b, err := json.Marshal(x)
			if err != nil {
				return nil, fmt.Errorf("attribute %q: %w", clip(name, 40), err)
			}
			list = append(list, attribute{name, v.kind, string(b)})
		default:
			list = append(list, attribute{name, v.kind, v.s})
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].name < list[j].name })
	return list, checkAttributes(list)
}

func checkAttributes(list []attribute) error {
	if len(list) > maxAttributes {
		return fmt.Errorf("more than %d attributes", maxAttributes)
	}
	size := 0
	for _, a := range list {
		size += len(a.name) + len(a.s) + 8
		switch {
		case a.name == "" || len(a.name) > maxAttributeName:
			return fmt.Errorf("attribute name of %d bytes, not 1 to %d", len(a.name), maxAttributeName)
		case !utf8.ValidString(a.name) || !utf8.ValidString(a.s):
			return fmt.Errorf("attribute %q is not UTF-8", clip(strings.ToValidUTF8(a.name, "?"), 40))
		case size > maxAttributeBytes:
			return fmt.Errorf("attributes of more than %d bytes", maxAttributeBytes)
		}
	}
	return nil
}

var errBadRecord = errors.New("bad campaign record")

// appendAttributes writes count, then name, kind and value of each, texts with their length before them.
func appendAttributes(b []byte, list []attribute) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, a := range list {
		b = appendText(b, a.name)
		b = append(b, byte(a.kind))
		b = appendText(b, a.s)
	}
	return b
}

func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// readAttributes appends to list what appendAttributes wrote; s must end there. The texts share memory with s.
func readAttributes(list []attribute, s string) ([]attribute, error) {
	n, s, ok := cutUvarint(s)
	if !ok || n > maxAttributes {
		return list, fmt.Errorf("%w: attributes", errBadRecord)
	}
	for range n {
		var a attribute
		if a.name, s, ok = cutText(s); !ok || s == "" {
			return list, fmt.Errorf("%w: attribute", errBadRecord)
		}
		a.kind = kind(s[0])
		if a.s, s, ok = cutText(s[1:]); !ok || a.kind == kindMissing || a.kind > kindMap {
			return list, fmt.Errorf("%w: attribute", errBadRecord)
		}
		list = append(list, a)
	}
	if s != "" {
		return list, fmt.Errorf("%w: %d bytes too many", errBadRecord, len(s))
	}
	return list, nil
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
