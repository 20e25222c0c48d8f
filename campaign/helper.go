package campaign

import (
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// helper is one of the few functions that a template may call. They are pure.
type helper struct {
	name        string
	least, most int
	strict      bool // its arguments must not be missing
	fn          func(args []value) (value, error)
}

func (h *helper) arity() string {
	switch {
	case h.least == h.most && h.least == 1:
		return "1 argument"
	case h.least == h.most:
		return fmt.Sprintf("%d arguments", h.least)
	}
	return fmt.Sprintf("%d to %d arguments", h.least, h.most)
}

func helperNamed(name string) *helper {
	switch name {
	case "default":
		return &helper{name, 2, maxArgs, true, helpDefault}
	case "upper":
		return &helper{name, 1, 1, true, textHelper(strings.ToUpper)}
	case "lower":
		return &helper{name, 1, 1, true, textHelper(strings.ToLower)}
	case "trim":
		return &helper{name, 1, 1, true, textHelper(strings.TrimSpace)}
	case "urlencode":
		return &helper{name, 1, 1, true, textHelper(url.QueryEscape)}
	case "truncate":
		return &helper{name, 2, 3, true, helpTruncate}
	case "date":
		return &helper{name, 2, 3, true, helpDate}
	case "number":
		return &helper{name, 1, 2, true, helpNumber}
	case "length":
		return &helper{name, 1, 1, false, helpLength}
	case "text": // not in helperNames: br in a part that is no HTML
		return &helper{name, 1, 1, true, textHelper(normalLines)}
	case "capitalize":
		return &helper{name, 1, 1, true, textHelper(capitalize)}
	case "currency":
		return &helper{name, 2, 2, true, helpCurrency}
	case "plural":
		return &helper{name, 3, 4, true, helpPlural}
	case "in":
		return &helper{name, 2, maxArgs, false, helpIn}
	case "json":
		return &helper{name, 1, 1, true, helpJSON}
	case "lookup":
		return &helper{name, 2, 2, true, func(a []value) (value, error) { return a[0].step(a[1].text()), nil }}
	case "join":
		return &helper{name, 1, 2, true, helpJoin}
	case "br":
		return &helper{name, 1, 1, true, helpBreaks}
	case "gt":
		return &helper{name, 2, 2, false, func(a []value) (value, error) { return boolean(compare(a[0], a[1]) > 0), nil }}
	case "lt":
		return &helper{name, 2, 2, false, func(a []value) (value, error) { return boolean(compare(a[0], a[1]) < 0), nil }}
	case "eq":
		return &helper{name, 2, 2, false, func(a []value) (value, error) { return boolean(a[0].text() == a[1].text()), nil }}
	case "ne":
		return &helper{name, 2, 2, false, func(a []value) (value, error) { return boolean(a[0].text() != a[1].text()), nil }}
	case "not":
		return &helper{name, 1, 1, false, func(a []value) (value, error) { return boolean(!a[0].truthy()), nil }}
	case "and":
		return &helper{name, 2, maxArgs, false, helpAnd}
	case "or":
		return &helper{name, 2, maxArgs, false, helpOr}
	}
	return nil
}

func helperNames() []string {
	return []string{
		"default", "upper", "lower", "capitalize", "trim", "truncate", "date", "number", "currency", "plural", "eq", "ne", "gt", "lt",
		"and", "or", "not", "in", "urlencode", "json", "lookup", "length", "join", "br",
	}
}

func boolean(b bool) value { return value{kind: kindBool, s: strconv.FormatBool(b), trusted: true} }

func textHelper(f func(string) string) func([]value) (value, error) {
	return func(a []value) (value, error) {
		return value{kind: kindString, s: f(a[0].text()), trusted: a[0].trusted}, nil
	}
}

// helpDefault returns the first argument that is neither missing nor empty, else the last.
func helpDefault(a []value) (value, error) {
	for _, v := range a {
		if v.kind != kindMissing && (v.kind != kindString || strings.TrimSpace(v.s) != "") {
			return v, nil
		}
	}
	return a[len(a)-1], nil
}

func helpAnd(a []value) (value, error) {
	for _, v := range a {
		if !v.truthy() {
			return boolean(false), nil
		}
	}
	return boolean(true), nil
}

func helpOr(a []value) (value, error) {
	for _, v := range a {
		if v.truthy() {
			return boolean(true), nil
		}
	}
	return boolean(false), nil
}

func helpLength(a []value) (value, error) {
	n := 0
	switch a[0].kind {
	case kindList:
		n = len(a[0].list)
	case kindMap:
		n = len(a[0].fields)
	case kindMissing:
	default:
		n = len([]rune(a[0].text()))
	}
	return value{kind: kindNumber, s: strconv.Itoa(n), trusted: true}, nil
}

// helpTruncate cuts at a number of characters and puts the third argument, default "…", in place of what is cut.
func helpTruncate(a []value) (value, error) {
	n, err := strconv.Atoi(a[1].text())
	if err != nil || n < 0 {
		return value{}, errors.New("truncate takes a number of characters as its second argument")
	}
	v := value{kind: kindString, s: a[0].text(), trusted: a[0].trusted}
	if r := []rune(v.s); len(r) > n {
		tail := "…"
		if len(a) == 3 {
			tail = a[2].text()
		}
		for n > 0 && unicode.Is(unicode.Mn, r[n]) { // not between a letter and its accent
			n--
		}
		v.s = strings.TrimRightFunc(string(r[:n]), unicode.IsSpace) + tail
	}
	return v, nil
}

// dateForms are the spellings of time that contact lists come with.
var dateForms = [...]string{
	time.RFC3339Nano, "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999",
	"2006-01-02 15:04", "2006-01-02", "2006/01/02 15:04:05", "2006/01/02", "2006.01.02", time.RFC1123Z, time.RFC1123,
}

// helpDate shows a time in a layout of Go's time package, in the zone of the third argument (default: as it is).
func helpDate(a []value) (value, error) {
	s := strings.TrimSpace(a[0].text())
	var t time.Time
	var err error
	if unix, e := strconv.ParseInt(s, 10, 64); e == nil && len(s) >= 9 && len(s) <= 11 {
		t = time.Unix(unix, 0).UTC()
	} else {
		for _, form := range dateForms {
			if t, err = time.Parse(form, s); err == nil {
				break
			}
		}
	}
	if err != nil {
		return value{}, fmt.Errorf("date cannot read %q", clip(s, 40))
	}
	if len(a) == 3 {
		zone, err := time.LoadLocation(a[2].text())
		if err != nil {
			return value{}, fmt.Errorf("date knows no time zone %q", clip(a[2].text(), 40))
		}
		t = t.In(zone)
	}
	return value{kind: kindString, s: t.Format(a[1].text()), trusted: a[1].trusted}, nil
}

// helpNumber groups thousands with a comma and rounds to the second argument's decimals (default: as many as there are).
func helpNumber(a []value) (value, error) {
	n, err := rational(a[0].text())
	if err != nil {
		return value{}, fmt.Errorf("number: %w", err)
	}
	_, frac, _ := strings.Cut(strings.TrimSpace(a[0].text()), ".")
	decimals := len(frac)
	if len(a) == 2 {
		d, err := strconv.Atoi(a[1].text())
		if err != nil || d < 0 || d > 20 {
			return value{}, errors.New("number takes 0 to 20 decimals as its second argument")
		}
		decimals = d
	}
	return value{kind: kindString, s: grouped(n, decimals), trusted: true}, nil
}

// grouped writes a number with commas between its thousands.
func grouped(n *big.Rat, decimals int) string {
	whole, frac, dotted := strings.Cut(n.FloatString(decimals), ".")
	sign := ""
	if strings.HasPrefix(whole, "-") {
		sign, whole = "-", whole[1:]
	}
	var b strings.Builder
	b.WriteString(sign)
	for i := range len(whole) {
		if i > 0 && (len(whole)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteByte(whole[i])
	}
	if dotted {
		b.WriteString("." + frac)
	}
	return b.String()
}

func clip(s string, most int) string {
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
