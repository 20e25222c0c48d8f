package contact

import (
	"fmt"
	"strings"
	"time"

	"relayd/internal/mail"
)

// check is about what can be wrong with a row whatever is stored.
func (b *batch) check(r *Row) *RowError {
	if r.To.IsNull() || r.To.Domain == "" {
		return &RowError{Column: "email", Code: "invalid_email", Detail: "no address"}
	}
	if r.Status == Invalid {
		return &RowError{Column: "status", Code: "invalid_subscription_status", Detail: "not a subscription status"}
	}
	if err := checkAttributes(r.Attributes); err != nil {
		return &RowError{Column: "attributes", Code: "invalid_attribute", Detail: err.Error()}
	}
	if bad := b.list.conform(r.Attributes, false); bad != nil {
		return bad
	}
	for _, t := range r.Topics {
		if b.list.Topic(t.Name) == nil {
			return &RowError{Column: "topics", Value: t.Name, Code: "unknown_topic", Detail: "the list has no such topic"}
		}
		if t.Status != Subscribed && t.Status != Unsubscribed {
			return &RowError{Column: "topics", Value: t.Name, Code: "invalid_subscription_status", Detail: "neither subscribed nor unsubscribed"}
		}
	}
	if r.Locale != nil && !isLocale(*r.Locale) {
		return &RowError{Column: "locale", Value: *r.Locale, Code: "invalid_locale", Detail: "not a language tag such as fr or ko-KR"}
	}
	if r.Timezone != nil && !isTimezone(*r.Timezone) {
		return &RowError{Column: "timezone", Value: *r.Timezone, Code: "invalid_timezone", Detail: "not a time zone such as Europe/Paris"}
	}
	return checkConsent(r.Consent)
}

const maxConsentText = 4 << 10

func checkConsent(c Consent) *RowError {
	for name, f := range map[string]struct {
		text string
		most int
	}{"ip": {c.IP, 64}, "source": {c.Source, 1000}, "text": {c.Text, maxConsentText}} {
		if mail.CleanText(f.text, f.most) != f.text {
			return &RowError{Column: "consent." + name, Value: f.text, Code: "invalid_consent", Detail: fmt.Sprintf("one line of at most %d bytes", f.most)}
		}
	}
	if c.At.IsZero() && !c.IsZero() {
		return &RowError{Column: "consent.at", Code: "invalid_consent", Detail: "a proof of consent has its time"}
	}
	return nil
}

// isLocale takes the usual language tags (BCP 47), "" for none.
func isLocale(s string) bool {
	if len(s) > 35 {
		return false
	}
	for i, part := range strings.Split(s, "-") {
		if s != "" && (part == "" || len(part) > 8) || i == 0 && len(part) == 1 {
			return false
		}
		for j := range len(part) {
			c := part[j] | 0x20
			if (c < 'a' || c > 'z') && (i == 0 || part[j] < '0' || part[j] > '9') {
				return false
			}
		}
	}
	return true
}

// isTimezone takes names of the tz database, "" for none. Local is the server's and none of the contact's.
func isTimezone(s string) bool {
	if s == "" {
		return true
	}
	if s == "Local" || len(s) > 64 {
		return false
	}
	_, err := time.LoadLocation(s)
	return err == nil
}
