package campaign

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// capitalize makes the first letter one that begins a title.
func capitalize(s string) string {
	r, size := utf8.DecodeRuneInString(s)
	if size == 0 || r == utf8.RuneError {
		return s
	}
	return string(unicode.ToTitle(r)) + s[size:]
}

// compare orders numbers by their value and everything else by its text. What is missing stands before all.
func compare(a, b value) int {
	if a.kind == kindMissing || b.kind == kindMissing {
		return int(min(a.kind, 1)) - int(min(b.kind, 1))
	}
	x, errX := rational(a.text())
	y, errY := rational(b.text())
	if errX == nil && errY == nil {
		return x.Cmp(y)
	}
	return strings.Compare(a.text(), b.text())
}

// rational reads a decimal number exactly, with or without commas between its thousands.
func rational(s string) (*big.Rat, error) {
	s = strings.ReplaceAll(strings.TrimSpace(s), ",", "")
	if len(s) > 64 || strings.ContainsAny(s, "eExXpP_/") {
		return nil, fmt.Errorf("cannot read the number %q", clip(s, 40))
	}
	n, ok := new(big.Rat).SetString(s)
	if !ok {
		return nil, fmt.Errorf("cannot read the number %q", clip(s, 40))
	}
	return n, nil
}

// helpIn tells whether the first argument is one of the others, or of the list that is the second.
func helpIn(a []value) (value, error) {
	if len(a) == 2 && a[1].kind == kindList {
		for _, x := range a[1].list {
			if v := valueOf(x, false); v.kind != kindMissing && v.text() == a[0].text() {
				return boolean(true), nil
			}
		}
		return boolean(false), nil
	}
	for _, v := range a[1:] {
		if v.kind != kindMissing && v.text() == a[0].text() {
			return boolean(true), nil
		}
	}
	return boolean(false), nil
}

// helpPlural picks a word by a number: {{plural n "item" "items"}}, or with a word for none before them.
func helpPlural(a []value) (value, error) {
	n, err := rational(a[0].text())
	if err != nil {
		return value{}, fmt.Errorf("plural: %w", err)
	}
	words := a[1:]
	if len(words) == 3 {
		if n.Sign() == 0 {
			return words[0], nil
		}
		words = words[1:]
	}
	if n.Cmp(big.NewRat(1, 1)) == 0 {
		return words[0], nil
	}
	return words[1], nil
}

// money says how amounts of a currency are written.
type money struct {
	symbol   string
	decimals int
}

func moneyOf(code string) money {
	switch code {
	case "USD":
		return money{"$", 2}
	case "EUR":
		return money{"€", 2}
	case "GBP":
		return money{"£", 2}
	case "KRW":
		return money{"₩", 0}
	case "JPY":
		return money{"¥", 0}
	case "CNY":
		return money{"CN¥", 2}
	case "TWD":
		return money{"NT$", 2}
	case "HKD":
		return money{"HK$", 2}
	case "AUD":
		return money{"A$", 2}
	case "CAD":
		return money{"CA$", 2}
	case "INR":
		return money{"₹", 2}
	case "BRL":
		return money{"R$", 2}
	case "ILS":
		return money{"₪", 2}
	case "VND":
		return money{"₫", 0}
	case "CLP", "ISK", "UGX", "PYG", "XAF", "XOF":
		return money{code + "\u00a0", 0}
	case "BHD", "JOD", "KWD", "OMR", "TND":
		return money{code + "\u00a0", 3}
	}
	return money{code + "\u00a0", 2}
}

// helpCurrency writes an amount with the symbol of an ISO 4217 currency, or its code, before it.
func helpCurrency(a []value) (value, error) {
	code := strings.ToUpper(a[1].text())
	if len(code) != 3 || strings.Trim(code, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return value{}, errors.New("currency takes a code of ISO 4217 such as EUR as its second argument")
	}
	n, err := rational(a[0].text())
	if err != nil {
		return value{}, fmt.Errorf("currency: %w", err)
	}
	m := moneyOf(code)
	text, negative := strings.CutPrefix(grouped(n, m.decimals), "-")
	if text = m.symbol + text; negative {
		text = "-" + text
	}
	return value{kind: kindString, s: text, trusted: true}, nil
}

// helpJSON writes a value as JSON.
func helpJSON(a []value) (value, error) {
	var x any
	switch v := a[0]; v.kind {
	case kindString:
		x = v.s
	case kindNumber, kindBool:
		return value{kind: kindString, s: v.s, trusted: true}, nil
	case kindList:
		x = v.list
	case kindMap:
		x = v.fields
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(x); err != nil {
		return value{}, fmt.Errorf("json: %w", err)
	}
	return value{kind: kindString, s: strings.TrimSuffix(b.String(), "\n")}, nil
}

// helpJoin writes the values of a list with a text between them, by default a comma and a blank.
func helpJoin(a []value) (value, error) {
	between := ", "
	if len(a) == 2 {
		between = a[1].text()
	}
	if a[0].kind != kindList {
		return value{kind: kindString, s: a[0].text(), trusted: a[0].trusted}, nil
	}
	texts := make([]string, len(a[0].list))
	for i, x := range a[0].list {
		texts[i] = valueOf(x, false).text()
	}
	return value{kind: kindString, s: strings.Join(texts, between), trusted: a[0].trusted}, nil
}

// helpBreaks makes <br> of line ends. Text that is not the author's is escaped first: the result is HTML.
func helpBreaks(a []value) (value, error) {
	lines := strings.Split(normalLines(a[0].text()), "\n")
	if !a[0].trusted {
		for i, line := range lines {
			lines[i] = string(appendHTML(nil, line, false))
		}
	}
	return value{kind: kindString, s: strings.Join(lines, "<br>\n"), trusted: true}, nil
}

// makesHTML tells expressions that use br, whose result may stand only between tags.
func (e *expr) makesHTML() bool {
	return e.helper != nil && (e.helper.name == "br" || slices.ContainsFunc(e.args, (*expr).makesHTML))
}
