package contact

import (
	"fmt"
	"strings"
	"time"

	"relayd/internal/mail"
)

// field is what a column of an upload holds.
type field uint8

const (
	fieldAttribute field = iota
	fieldEmail
	fieldStatus
	fieldTopic
	fieldLocale
	fieldTimezone
	fieldConsentAt
	fieldConsentIP
	fieldConsentSource
	fieldConsentText
	fieldDrop
)

// Column says what a column of an upload holds.
type Column struct {
	Field    string // "email", "status", "attributes.NAME", "topics.NAME", "locale", "timezone", "consent.at", …; "" drops it
	Format   string // of a time: a layout of Go, "rfc3339", "unix" or "unix_ms"; "": the text as it is
	Timezone string // of a time that does not say: a name of the tz database, or an offset such as +09:00
}

// column is a Column, read.
type column struct {
	header string
	field  field
	name   string // of the attribute or topic
	format string
	zone   *time.Location
}

// reportPrefix begins the names of the columns that a report of rejected rows adds to theirs.
const reportPrefix = "relayd_"

// columnOf recognises the usual names of columns; any other column is an attribute of that name. Columns that our own
// reports of rejected rows add are dropped, so that a mended report can be sent again.
func columnOf(header string) (field, string) {
	if strings.HasPrefix(header, reportPrefix) {
		return fieldDrop, ""
	}
	switch strings.NewReplacer(" ", "", "_", "", "-", "", ".", "").Replace(strings.ToLower(header)) {
	case "email", "mail", "emailaddress", "mailaddress", "emailaddr", "이메일", "메일", "이메일주소":
		return fieldEmail, ""
	case "status", "subscriptionstatus", "subscribed", "subscription", "issubscribed", "optin", "subscribe", "수신동의", "구독여부", "구독상태":
		return fieldStatus, ""
	case "name", "fullname", "customername", "displayname", "이름", "성명", "고객명":
		return fieldAttribute, "Name"
	case "gender", "sex", "성별":
		return fieldAttribute, "Gender"
	case "createtime", "createdat", "created", "createdtime", "creationtime", "createdate", "creationdate", "signupdate", "registeredat", "가입일", "가입일시", "생성일", "생성일시":
		return fieldAttribute, "CreateTime"
	}
	return fieldAttribute, header
}

// mapped is columnOf with what the upload's column map says.
func mapped(header string, columns map[string]Column) (column, error) {
	c := column{header: header}
	to, ok := columns[header]
	if !ok {
		c.field, c.name = columnOf(header)
		return c, nil
	}
	attribute, isAttribute := strings.CutPrefix(to.Field, "attributes.")
	topic, isTopic := strings.CutPrefix(to.Field, "topics.")
	switch {
	case isAttribute:
		c.field, c.name = fieldAttribute, attribute
	case isTopic:
		c.field, c.name = fieldTopic, topic
	default:
		switch to.Field {
		case "":
			c.field = fieldDrop
		case "email":
			c.field = fieldEmail
		case "status", "subscription_status":
			c.field = fieldStatus
		case "name", "gender", "create_time":
			c.field, c.name = columnOf(to.Field)
		case "locale":
			c.field = fieldLocale
		case "timezone":
			c.field = fieldTimezone
		case "consent.at":
			c.field = fieldConsentAt
		case "consent.ip":
			c.field = fieldConsentIP
		case "consent.source":
			c.field = fieldConsentSource
		case "consent.text":
			c.field = fieldConsentText
		default:
			c.field, c.name = fieldAttribute, to.Field
		}
	}
	var err error
	c.format = to.Format
	c.zone, err = parseZone(to.Timezone)
	if err == nil && to.Timezone != "" && to.Format == "" {
		err = fmt.Errorf("a timezone without a format")
	}
	if err == nil && to.Format != "" && c.field != fieldAttribute && c.field != fieldConsentAt {
		err = fmt.Errorf("a format is for attributes and consent.at")
	}
	if err == nil && to.Format != "" {
		err = checkFormat(to.Format, c.zone)
	}
	if err != nil {
		return c, invalid("column_map", "column_map, %q: %v", mail.CleanText(header, 60), err)
	}
	return c, nil
}

// parseZone reads a time zone; nil for "".
func parseZone(s string) (*time.Location, error) {
	if s == "" {
		return nil, nil
	}
	if t, err := time.Parse("-07:00", s); err == nil {
		_, offset := t.Zone()
		return time.FixedZone("", offset), nil
	}
	if !isTimezone(s) {
		return nil, fmt.Errorf("timezone %q is neither a name such as Asia/Seoul nor an offset such as +09:00", mail.CleanText(s, 40))
	}
	return time.LoadLocation(s)
}

// checkFormat wants a layout that names year, month and day, and a zone where the layout has none.
func checkFormat(format string, zone *time.Location) error {
	switch format {
	case "rfc3339", "unix", "unix_ms":
		return nil
	}
	probe := time.Date(2031, 11, 23, 17, 48, 59, 0, time.FixedZone("", 3*3600))
	text := probe.Format(format)
	got, err := time.Parse(format, text)
	if err != nil || got.Year() != 2031 || got.YearDay() != probe.YearDay() {
		return fmt.Errorf("format %q is not a layout of Go such as 2006-01-02 15:04:05, nor rfc3339, unix or unix_ms", mail.CleanText(format, 60))
	}
	if _, offset := got.Zone(); offset == 0 && zone == nil {
		return fmt.Errorf("format %q has no zone: a timezone is needed, so that nobody has to guess", mail.CleanText(format, 60))
	}
	return nil
}

// time reads a text in the column's format.
func (c *column) time(s string) (time.Time, bool) {
	s = strings.TrimSpace(s)
	switch c.format {
	case "", "rfc3339":
		return parseTime(s)
	case "unix", "unix_ms":
		var n int64
		if _, err := fmt.Sscanf(s, "%d", &n); err != nil || fmt.Sprint(n) != s {
			return time.Time{}, false
		}
		t := time.Unix(n, 0)
		if c.format == "unix_ms" {
			t = time.UnixMilli(n)
		}
		return t.UTC(), t.Year() > 0 && t.Year() < 10_000
	}
	zone := c.zone
	if zone == nil {
		zone = time.UTC
	}
	t, err := time.ParseInLocation(c.format, s, zone)
	return t.UTC(), err == nil && t.Year() > 0
}

// ParseAddress reads the address of a contact: one that can get mail over the internet.
func ParseAddress(s string) (mail.Path, error) {
	p, err := mail.ParsePath(strings.TrimSpace(s))
	switch {
	case err != nil:
		return p, err
	case strings.HasPrefix(p.Domain, "["):
		return p, fmt.Errorf("%w: address literal in place of a domain", mail.ErrBadPath)
	case !strings.Contains(p.Domain, "."):
		return p, fmt.Errorf("%w: domain has no dot", mail.ErrBadPath)
	}
	return p, nil
}
