package contact

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"relayd/internal/api"
	"relayd/internal/mail"
)

// Condition is a question about one contact, compiled from JSON. It is one of
//
//	{"all":[…]} {"any":[…]} {"not":…}                          and, or, not
//	{"attr":"Gender","eq":"F"}                                 about an attribute
//	{"field":"domain","in":["a.example","b.example"]}          about the contact itself
//
// with one operator: eq ne lt le gt ge (also lte, gte), between [from, to), in, not_in, exists, contains, starts_with,
// ends_with, and within_days and older_than_days for times. Texts that are dates or times are compared as times, numbers
// as numbers, other texts as they are. A comparison with an attribute that a contact lacks is false, but for ne, not_in
// and exists false, which are true.
type Condition struct {
	op    string // "all", "any", "not", or an operator
	parts []*Condition
	attr  string // name of the attribute, "" for a field
	field string
	to    operand
	list  []operand
	flag  bool
	days  int
}

// operand is a value to compare with, read once.
type operand struct {
	text   string
	number float64
	at     time.Time
	kind   operandKind
}

type operandKind uint8

const (
	textOperand operandKind = iota
	numberOperand
	boolOperand
	timeOperand
)

// Limits of conditions.
const (
	maxConditionBytes = 256 << 10
	maxConditionDepth = 16
	maxConditionParts = 500
	maxOperands       = 10_000
	maxOperandText    = 1000
)

// conditionFields are what "field" may ask about.
var conditionFields = []string{"email", "domain", "locale", "timezone", "created_at", "updated_at"} //nolint:gochecknoglobals // constant

var operators = []string{ //nolint:gochecknoglobals // constant
	"eq", "ne", "lt", "le", "lte", "gt", "ge", "gte", "between", "in", "not_in", "exists", "contains", "starts_with", "ends_with",
	"within_days", "older_than_days",
}

// ParseCondition reads a condition. Its errors are *InvalidError and point to the place.
func ParseCondition(b []byte) (*Condition, error) {
	if len(b) > maxConditionBytes {
		return nil, invalid("", "a condition of more than %d bytes", maxConditionBytes)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var x any
	if err := d.Decode(&x); err != nil {
		return nil, &InvalidError{Code: api.CodeInvalidJSON, Detail: "the condition is not JSON: " + mail.CleanText(err.Error(), 200)}
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, &InvalidError{Code: api.CodeInvalidJSON, Detail: "more than one JSON value"}
	}
	p := &conditionParser{}
	return p.parse(x, "", 1)
}

type conditionParser struct{ parts int }

func (p *conditionParser) parse(x any, at string, depth int) (*Condition, error) {
	m, ok := x.(map[string]any)
	if p.parts++; p.parts > maxConditionParts {
		return nil, invalid(at, "more than %d conditions", maxConditionParts)
	}
	switch {
	case !ok:
		return nil, invalid(at, `a condition is an object such as {"attr":"Gender","eq":"F"}`)
	case depth > maxConditionDepth:
		return nil, invalid(at, "conditions nest deeper than %d", maxConditionDepth)
	case len(m) == 0:
		return nil, invalid(at, `an empty condition: all, any, not, attr or field is needed`)
	}
	for _, op := range []string{"all", "any", "not"} {
		if v, ok := m[op]; ok {
			return p.group(m, op, v, at, depth)
		}
	}
	return parseComparison(m, at)
}

func (p *conditionParser) group(m map[string]any, op string, v any, at string, depth int) (*Condition, error) {
	if len(m) > 1 {
		for _, k := range sortedKeys(m) {
			if k != op {
				return nil, invalid(at+"/"+k, "%q stands beside %q: put both into one all or any", mail.CleanText(k, 40), op)
			}
		}
	}
	c := &Condition{op: op}
	if op == "not" {
		part, err := p.parse(v, at+"/not", depth+1)
		c.parts = []*Condition{part}
		return c, err
	}
	list, ok := v.([]any)
	if !ok || len(list) == 0 {
		return nil, invalid(at+"/"+op, "%s is a list of at least one condition", op)
	}
	for i, x := range list {
		part, err := p.parse(x, fmt.Sprintf("%s/%s/%d", at, op, i), depth+1)
		if err != nil {
			return nil, err
		}
		c.parts = append(c.parts, part)
	}
	return c, nil
}

func parseComparison(m map[string]any, at string) (*Condition, error) {
	c := &Condition{}
	for _, k := range sortedKeys(m) {
		v := m[k]
		switch {
		case k == "attr":
			name, ok := v.(string)
			if !ok || name == "" || len(name) > MaxAttributeName {
				return nil, invalid(at+"/attr", "attr is the name of an attribute")
			}
			c.attr = name
		case k == "field":
			name, ok := v.(string)
			if !ok || !slices.Contains(conditionFields, name) {
				return nil, invalid(at+"/field", "field is one of %s", strings.Join(conditionFields, ", "))
			}
			c.field = name
		case !slices.Contains(operators, k):
			return nil, invalid(at+"/"+mail.CleanText(k, 40), "%q is not known: a comparison has attr or field and one of %s",
				mail.CleanText(k, 40), strings.Join(operators, ", "))
		case c.op != "":
			return nil, invalid(at+"/"+k, "%q stands beside %q: one comparison has one operator", k, c.op)
		default:
			c.op = k
			if err := c.operands(v, at+"/"+k); err != nil {
				return nil, err
			}
		}
	}
	switch {
	case c.attr == "" && c.field == "":
		return nil, invalid(at, "a comparison names an attr or a field")
	case c.attr != "" && c.field != "":
		return nil, invalid(at+"/field", "field stands beside attr: one comparison is about one of them")
	case c.op == "":
		return nil, invalid(at, "an operator is missing: one of %s", strings.Join(operators, ", "))
	}
	c.op = strings.NewReplacer("lte", "le", "gte", "ge").Replace(c.op)
	return c, nil
}

// operands reads what an operator compares with.
func (c *Condition) operands(v any, at string) (err error) {
	switch c.op {
	case "exists":
		var ok bool
		if c.flag, ok = v.(bool); !ok {
			return invalid(at, "exists is true or false")
		}
	case "within_days", "older_than_days":
		n, ok := v.(json.Number)
		days, err := strconv.Atoi(n.String())
		if !ok || err != nil || days < 0 || days > 36_500 {
			return invalid(at, "%s is a whole number of days, at most 36500", c.op)
		}
		c.days = days
	case "in", "not_in", "between":
		list, ok := v.([]any)
		if !ok || len(list) == 0 || len(list) > maxOperands {
			return invalid(at, "%s is a list of 1 to %d values", c.op, maxOperands)
		}
		if c.op == "between" && len(list) != 2 {
			return invalid(at, "between is [from, to): two values")
		}
		for i, x := range list {
			o, err := operandOf(x, fmt.Sprintf("%s/%d", at, i))
			if err != nil {
				return err
			}
			c.list = append(c.list, o)
		}
		if c.op == "between" && (c.list[0].kind != c.list[1].kind || c.list[0].kind == boolOperand) {
			return invalid(at, "between compares two numbers, two times or two texts")
		}
	case "contains", "starts_with", "ends_with":
		s, ok := v.(string)
		if !ok || s == "" || len(s) > maxOperandText {
			return invalid(at, "%s is a text of 1 to %d bytes", c.op, maxOperandText)
		}
		c.to = operand{text: strings.ToLower(s)}
	default:
		if c.to, err = operandOf(v, at); err != nil {
			return err
		}
		if c.to.kind == boolOperand && c.op != "eq" && c.op != "ne" {
			return invalid(at, "true and false have no order: use eq or ne")
		}
	}
	return nil
}

func operandOf(x any, at string) (operand, error) {
	switch x := x.(type) {
	case string:
		if len(x) > maxOperandText {
			return operand{}, invalid(at, "a text of more than %d bytes", maxOperandText)
		}
		if t, ok := parseTime(x); ok {
			return operand{text: x, at: t, kind: timeOperand}, nil
		}
		return operand{text: x}, nil
	case bool:
		return operand{text: strconv.FormatBool(x), kind: boolOperand}, nil
	case json.Number:
		f, err := strconv.ParseFloat(x.String(), 64)
		if err != nil {
			return operand{}, invalid(at, "a number out of range")
		}
		return operand{text: x.String(), number: f, kind: numberOperand}, nil
	case nil:
		return operand{}, invalid(at, "null: use exists to ask whether there is a value")
	}
	return operand{}, invalid(at, "a text, a number, true or false is needed")
}

// candidate is a contact under question.
type candidate struct {
	contact *Contact
	data    string // its attributes, as AppendAttributes writes them: only those that a condition names are read
	now     time.Time
	err     error // data that cannot be read
}

// Match tells whether the contact meets the condition. now is what within_days counts from.
func (c *Condition) Match(contact *Contact, now time.Time) bool {
	return c.match(&candidate{contact: contact, data: string(AppendAttributes(nil, contact.Attributes)), now: now})
}

func (c *Condition) match(v *candidate) bool {
	switch c.op {
	case "all":
		for _, p := range c.parts {
			if !p.match(v) {
				return false
			}
		}
		return true
	case "any":
		for _, p := range c.parts {
			if p.match(v) {
				return true
			}
		}
		return false
	case "not":
		return !c.parts[0].match(v)
	}
	a, ok := v.value(c)
	if c.op == "exists" {
		return ok == c.flag
	}
	if !ok {
		return c.op == "ne" || c.op == "not_in"
	}
	return c.compare(a, v.now)
}

// value returns what a comparison is about.
func (v *candidate) value(c *Condition) (Attribute, bool) {
	if c.attr != "" {
		a, ok, err := findAttribute(v.data, c.attr)
		if err != nil {
			v.err = err
		}
		return a, ok
	}
	s := ""
	switch c.field {
	case "email":
		s = v.contact.To.Key()
	case "domain":
		s = v.contact.To.Domain
	case "locale":
		s = v.contact.Locale
	case "timezone":
		s = v.contact.Timezone
	case "created_at":
		s = FormatTime(v.contact.Created)
	case "updated_at":
		s = FormatTime(v.contact.Updated)
	}
	return Attribute{Kind: String, Text: s}, s != ""
}

func (c *Condition) compare(a Attribute, now time.Time) bool {
	switch c.op {
	case "contains":
		return strings.Contains(strings.ToLower(a.Text), c.to.text)
	case "starts_with":
		return strings.HasPrefix(strings.ToLower(a.Text), c.to.text)
	case "ends_with":
		return strings.HasSuffix(strings.ToLower(a.Text), c.to.text)
	case "in", "not_in":
		found := slices.ContainsFunc(c.list, func(o operand) bool { d, ok := o.order(a); return ok && d == 0 })
		return found == (c.op == "in")
	case "between":
		from, ok := c.list[0].order(a)
		to, ok2 := c.list[1].order(a)
		return ok && ok2 && from >= 0 && to < 0
	case "within_days", "older_than_days":
		t, ok := parseTime(a.Text)
		if !ok {
			return false
		}
		edge := now.AddDate(0, 0, -c.days)
		if c.op == "within_days" {
			return !t.Before(edge) && !t.After(now)
		}
		return t.Before(edge)
	}
	d, ok := c.to.order(a)
	if !ok {
		return c.op == "ne"
	}
	switch c.op {
	case "eq":
		return d == 0
	case "ne":
		return d != 0
	case "lt":
		return d < 0
	case "le":
		return d <= 0
	case "gt":
		return d > 0
	default:
		return d >= 0
	}
}

// order compares the attribute with the operand: negative where the attribute is less. ok is false where the two have no
// order, as a text and a number.
func (o *operand) order(a Attribute) (d int, ok bool) {
	switch o.kind {
	case numberOperand:
		f, err := strconv.ParseFloat(a.Text, 64)
		switch {
		case err != nil || f != f || a.Kind == JSONList || a.Kind == Object:
			return 0, false
		case f < o.number:
			return -1, true
		case f > o.number:
			return 1, true
		}
		return 0, true
	case timeOperand:
		if t, ok := parseTime(a.Text); ok {
			return t.Compare(o.at), true
		}
	case boolOperand:
		if a.Kind != Bool && a.Kind != String || a.Text != "true" && a.Text != "false" {
			return 0, false
		}
	}
	if a.Kind == JSONList || a.Kind == Object {
		return 0, false
	}
	return strings.Compare(a.Text, o.text), true
}
