package campaign

import (
	"context"
	"encoding/json"
	"fmt"
	"html"
	"strings"
	"time"
	"unicode/utf8"

	"relayd/internal/api"
	"relayd/internal/kv"
)

// rules are what the law of an account's country asks of all its campaigns (docs/decisions/0026).
type rules struct {
	api.Compliance
}

const (
	adLabel           = "(광고)"
	defaultQuietFrom  = "21:00"
	defaultQuietUntil = "08:00"
	defaultQuietZone  = "Asia/Seoul"
	maxFooter         = 500
)

// Compliance returns the account's rules; the zero value where it has none.
func (s *Service) Compliance(ctx context.Context, account string) (api.Compliance, error) {
	var r *rules
	err := s.db.View(ctx, func(tx kv.Tx) (err error) {
		r, err = getRules(tx, account)
		return err
	})
	if err != nil || r == nil {
		return api.Compliance{}, err
	}
	return r.Compliance, nil
}

// SetCompliance replaces the account's rules. They hold for campaigns that start from now on.
func (s *Service) SetCompliance(ctx context.Context, account string, in *api.Compliance) (api.Compliance, error) {
	r := &rules{*in}
	if err := s.checkRules(r); err != nil {
		return api.Compliance{}, err
	}
	b, err := json.Marshal(r)
	if err != nil {
		return api.Compliance{}, fmt.Errorf("encode rules: %w", err)
	}
	err = s.db.Update(ctx, func(tx kv.Tx) error {
		return tx.Put(tableRules, []byte(account), append([]byte{recordVersion}, b...))
	})
	if err != nil {
		return api.Compliance{}, fmt.Errorf("write rules: %w", err)
	}
	s.log.Info("compliance.changed", "account", account)
	return r.Compliance, nil
}

// checkRules refuses what is wrong, and sets the defaults of quiet hours.
func (s *Service) checkRules(r *rules) error {
	bad := &Invalid{}
	for _, f := range []struct{ pointer, text string }{
		{"/postal_address", r.PostalAddress}, {"/sender_name", r.SenderName}, {"/contact", r.Contact},
	} {
		switch {
		case len(f.text) > maxFooter || !utf8.ValidString(f.text):
			bad.add(f.pointer, api.CodeInvalidParameter, "longer than %d bytes, or not UTF-8", maxFooter)
		case strings.Contains(f.text, "{{"):
			bad.add(f.pointer, api.CodeInvalidParameter, "holds {{: merge tags do not stand here")
		case strings.ContainsFunc(f.text, func(c rune) bool { return c < ' ' && c != '\n' || c == 0x7f }):
			bad.add(f.pointer, api.CodeInvalidParameter, "holds a control character")
		}
	}
	if r.QuietHours {
		for text, usual := range map[*string]string{&r.QuietFrom: defaultQuietFrom, &r.QuietUntil: defaultQuietUntil, &r.Timezone: defaultQuietZone} {
			if *text == "" {
				*text = usual
			}
		}
	}
	for pointer, text := range map[string]string{"/quiet_from": r.QuietFrom, "/quiet_until": r.QuietUntil} {
		if text != "" {
			if _, err := clockOf(text); err != nil {
				bad.add(pointer, api.CodeInvalidParameter, "%q is not a time of day such as 21:00", clip(text, 40))
			}
		}
	}
	if r.QuietFrom != "" && r.QuietFrom == r.QuietUntil {
		bad.add("/quiet_until", api.CodeInvalidParameter, "is the same as quiet_from")
	}
	if r.Timezone != "" {
		if _, err := s.zones.find(r.Timezone); err != nil {
			bad.add("/timezone", api.CodeInvalidParameter, "%s", err)
		}
	}
	return bad.orNil()
}

func getRules(tx kv.Tx, account string) (*rules, error) {
	b, err := tx.Get(tableRules, []byte(account))
	if err != nil {
		return nil, fmt.Errorf("read rules: %w", err)
	}
	if b == nil {
		return nil, nil
	}
	if b[0] != recordVersion {
		return nil, fmt.Errorf("%w: unknown version of rules", errBadRecord)
	}
	r := &rules{}
	if err := json.Unmarshal(b[1:], r); err != nil {
		return nil, fmt.Errorf("%w: %w", errBadRecord, err)
	}
	return r, nil
}

// apply puts label and footer into a request's template, before it is compiled.
func (r *rules) apply(req *api.CreateCampaign) {
	if r == nil {
		return
	}
	t := &req.Template
	if r.AdLabel && !strings.HasPrefix(strings.TrimSpace(t.Subject), adLabel) {
		t.Subject = adLabel + " " + strings.TrimSpace(t.Subject)
	}
	lines := r.footer()
	if len(lines) == 0 {
		return
	}
	if t.HTML != "" {
		escaped := make([]string, len(lines))
		for i, l := range lines {
			escaped[i] = html.EscapeString(l)
		}
		footer := `<p style="font-size:12px;color:#666666">` + strings.Join(escaped, "<br>") + `</p>`
		if i := lastTag(t.HTML, "</body"); i >= 0 {
			t.HTML = t.HTML[:i] + footer + t.HTML[i:]
		} else {
			t.HTML += footer
		}
	}
	if strings.TrimSpace(t.Text) != "" {
		t.Text = strings.TrimRight(t.Text, "\r\n") + "\n\n" + strings.Join(lines, "\n") + "\n"
	}
}

// lastTag finds a tag of ASCII letters in any case, -1 for none.
func lastTag(s, tag string) int {
	for i := len(s) - len(tag); i >= 0; i-- {
		if strings.EqualFold(s[i:i+len(tag)], tag) {
			return i
		}
	}
	return -1
}

// footer is the sender's identity, line by line.
func (r *rules) footer() (lines []string) {
	for _, text := range []string{r.SenderName, r.PostalAddress, r.Contact} {
		for l := range strings.SplitSeq(text, "\n") {
			if l = strings.TrimSpace(l); l != "" {
				lines = append(lines, l)
			}
		}
	}
	return lines
}

// quiet is a time of day at which nothing is sent.
type quiet struct {
	from, until time.Duration // since midnight
	zone        *time.Location
}

// quiet returns the account's quiet hours, nil for none.
func (r *rules) quiet() *quiet {
	if r == nil || !r.QuietHours {
		return nil
	}
	from, err := clockOf(r.QuietFrom)
	until, err2 := clockOf(r.QuietUntil)
	if err != nil || err2 != nil {
		return nil // never stored
	}
	zone, err := (&zones{}).find(r.Timezone)
	if err != nil {
		zone = time.UTC
	}
	return &quiet{from, until, zone}
}

func clockOf(s string) (time.Duration, error) {
	t, err := time.Parse("15:04", s)
	return time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute, err
}

// after returns at, or the end of the quiet time in which it falls where the recipient is; loc nil is the account's zone.
func (q *quiet) after(at time.Time, loc *time.Location) time.Time {
	if loc == nil {
		loc = q.zone
	}
	l := at.In(loc)
	clock := time.Duration(l.Hour())*time.Hour + time.Duration(l.Minute())*time.Minute + time.Duration(l.Second())*time.Second
	day := l.Day()
	switch {
	case q.from < q.until && clock >= q.from && clock < q.until:
	case q.from > q.until && clock >= q.from:
		day++
	case q.from > q.until && clock < q.until:
	default:
		return at
	}
	return time.Date(l.Year(), l.Month(), day, int(q.until/time.Hour), int(q.until%time.Hour/time.Minute), 0, 0, loc).UTC()
}
