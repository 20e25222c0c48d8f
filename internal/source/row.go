package source

import (
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"relayd/internal/api"
	"relayd/internal/contact"
	"relayd/internal/mail"
)

const (
	maxKey        = 256 // bytes of a row's key
	maxErrorValue = 200
)

// digest tells one content of a row from another.
type digest [16]byte

// row is one row of the table.
type row struct {
	key     string
	at      moment // updated_at; the smallest where it has none
	hasAt   bool
	contact contact.Row
	deleted bool
	print   digest
	bad     *api.SourceRowError
}

// noTime is the place of rows without a time: before all others.
const noTime = moment(-1 << 62)

// row reads the cells of one row. What is wrong with it is in bad: a row never ends a run.
func (p *plan) row(cells []sql.NullString) row {
	r := row{key: cells[0].String, at: noTime}
	if cells[1].Valid {
		if at, ok := parseMoment(cells[1].String); ok {
			r.at, r.hasAt = at, true
		}
	}
	cells = cells[2:]
	h := sha256.New()
	put := func(b ...[]byte) {
		for _, x := range b {
			_, _ = h.Write(binary.AppendUvarint(nil, uint64(len(x))))
			_, _ = h.Write(x)
		}
	}
	if p.deleted != nil {
		r.deleted = p.isDeleted(cells[len(p.targets)])
		put([]byte{1})
		if r.deleted {
			put([]byte(p.cfg.Query.Deleted.Action))
		}
	}
	for i, t := range p.targets {
		kind := []byte{byte(t.col.kind), 0}
		if cells[i].Valid {
			kind[1] = 1
		}
		put([]byte(t.name), kind, []byte(cells[i].String))
		if r.bad == nil {
			r.bad = p.take(&r, t, cells[i])
		}
	}
	copy(r.print[:], h.Sum(nil))
	if r.print == (digest{}) {
		r.print[0] = 1 // zero stands for a row that must be applied again
	}
	contact.SortAttributes(r.contact.Attributes)
	switch {
	case r.key == "" || len(r.key) > maxKey || !utf8.ValidString(r.key):
		r.bad = &api.SourceRowError{Code: "invalid_key", Value: r.key, Detail: fmt.Sprintf("a key of %d bytes, not 1 to %d", len(r.key), maxKey)}
	case r.deleted && r.contact.To.IsNull():
		r.bad = nil // it is known by its key
	}
	if r.bad != nil {
		r.bad.Key, r.bad.Value = mail.CleanText(r.key, maxErrorValue), mail.CleanText(r.bad.Value, maxErrorValue)
	}
	return r
}

// take puts one cell where it belongs.
func (p *plan) take(r *row, t target, cell sql.NullString) *api.SourceRowError {
	bad := func(code, format string, args ...any) *api.SourceRowError {
		return &api.SourceRowError{Column: t.col.name, Value: cell.String, Code: code, Detail: fmt.Sprintf(format, args...)}
	}
	if !utf8.ValidString(cell.String) {
		return bad("invalid_utf8", "bytes that are not UTF-8")
	}
	if t.attr {
		a, detail := p.attribute(t, cell)
		if detail != "" {
			return bad("invalid_attribute", "%s", detail)
		}
		r.contact.Attributes = append(r.contact.Attributes, a)
		return nil
	}
	text := strings.TrimSpace(cell.String)
	switch t.name {
	case "email":
		to, err := parseAddress(text)
		if err != nil {
			return bad("invalid_email", "%s", strings.TrimPrefix(err.Error(), mail.ErrBadPath.Error()+": "))
		}
		r.contact.To = to
	case "status":
		if r.contact.Status = contact.ParseStatus(text); r.contact.Status == contact.Invalid {
			return bad("invalid_subscription_status", "not a subscription status")
		}
	case "locale":
		r.contact.Locale = &text
	case "timezone":
		r.contact.Timezone = &text
	}
	return nil
}

// parseAddress takes addresses that mail can be sent to.
func parseAddress(s string) (mail.Path, error) {
	to, err := mail.ParsePath(s)
	switch {
	case err != nil:
		return to, err
	case to.IsNull() || to.Domain == "":
		return to, fmt.Errorf("%w: no address", mail.ErrBadPath)
	case strings.HasPrefix(to.Domain, "["):
		return to, fmt.Errorf("%w: address literal in place of a domain", mail.ErrBadPath)
	case !strings.Contains(to.Domain, "."):
		return to, fmt.Errorf("%w: domain has no dot", mail.ErrBadPath)
	}
	return to, nil
}

// attribute makes the value of a contact's attribute. NULL removes it.
func (p *plan) attribute(t target, cell sql.NullString) (a contact.Attribute, detail string) {
	a = contact.Attribute{Name: t.name}
	if !cell.Valid {
		return a, ""
	}
	s := cell.String
	switch t.col.kind {
	case kindInteger, kindNumber:
		if !json.Valid([]byte(s)) { // NaN, Infinity
			return a, "not a number"
		}
		a.Kind, a.Text = contact.Number, s
	case kindBool:
		switch s {
		case "true", "1":
			a.Kind, a.Text = contact.Bool, "true"
		case "false", "0":
			a.Kind, a.Text = contact.Bool, "false"
		default: // tinyint(1) holds any small number
			a.Kind, a.Text = contact.Number, s
		}
	case kindTime:
		at, ok := parseMoment(s)
		if !ok {
			if strings.HasPrefix(s, "0000-") {
				return a, "" // MySQL's way to say that there is none
			}
			return a, "not a time that can be told"
		}
		zone := p.zone
		if t.col.zoned {
			zone = nil
		}
		a.Kind, a.Text = contact.String, contact.FormatTime(at.time(zone))
	case kindDate:
		if !strings.HasPrefix(s, "0000-") {
			a.Kind, a.Text = contact.String, s
		}
	default:
		if len(s) > contact.MaxAttributeBytes {
			return a, fmt.Sprintf("more than %d bytes", contact.MaxAttributeBytes)
		}
		a.Kind, a.Text = contact.String, s
	}
	return a, ""
}

// isDeleted applies the rule to the value of its column.
func (p *plan) isDeleted(cell sql.NullString) bool {
	if !cell.Valid {
		return false
	}
	switch d := p.cfg.Query.Deleted; d.When {
	case "true":
		return contact.ParseStatus(cell.String) == contact.Subscribed // the same words mean yes
	case "equals":
		return cell.String == d.Value
	}
	return !strings.HasPrefix(cell.String, "0000-00-00")
}
