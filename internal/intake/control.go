package intake

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"relayd/internal/mail"
)

// Limits of the control fields.
const (
	maxTags           = 16
	maxTag            = 64
	maxIdempotencyKey = 255
	maxSendAt         = 30 * 24 * time.Hour
	maxTTL            = 30 * 24 * time.Hour
	epochDigits       = 12 // of a time in seconds; more would be milliseconds
)

// controls are what the X-Relay-* fields of a message ask for. They never leave.
type controls struct {
	key      string // of idempotency, "" for none
	campaign string // the message is a campaign of this name, "" for none
	list     string // to this list, "" for the recipients of the session
	natural  bool   // the message is its own idempotency key
}

// readControls takes the control fields of the section: each stands once, has a value that is right, or refuses the
// message, because a wrong one that is passed over sends mail twice, too early or too late. Unknown ones are removed.
func (h *header) readControls() error {
	t := h.taking
	if t.sub.Internal {
		return nil
	}
	for _, c := range []struct {
		name string
		set  func(*taking, string) error
	}{
		{"X-Relay-Stream", (*taking).setStream},
		{"X-Relay-Tags", (*taking).setTags},
		{"X-Relay-Idempotency-Key", (*taking).setKey},
		{"X-Relay-Send-At", (*taking).setSendAt},
		{"X-Relay-TTL", (*taking).setTTL},
		{"X-Relay-Campaign", (*taking).setCampaign},
		{"X-Relay-List", (*taking).setList},
	} {
		switch h.fields.Count(c.name) {
		case 0:
			continue
		case 1:
		default:
			return refuse(554, 6, 0, "Header field "+c.name+" stands more than once")
		}
		if err := c.set(t, strings.TrimSpace(h.fields.Get(c.name))); err != nil {
			return mail.Refuse(554, mail.Status{Class: 5, Subject: 6}, "Header field "+c.name+": "+err.Error(), err)
		}
	}
	return h.checkCampaign()
}

// badValue is a public text.
type badValue string

func (b badValue) Error() string { return string(b) }

func (t *taking) setStream(v string) error {
	if !isStream(v) {
		return badValue("give 1 to 64 letters, digits, '-' and '_'")
	}
	t.stream = v
	return nil
}

func (t *taking) setTags(v string) error {
	for tag := range strings.SplitSeq(v, ",") {
		tag = strings.TrimSpace(tag)
		if !isTag(tag) {
			return badValue("each tag has 1 to 64 letters, digits and any of -_.:=/, with commas between")
		}
		if !slices.Contains(t.tags, tag) {
			t.tags = append(t.tags, tag)
		}
		if len(t.tags) > maxTags {
			return badValue(fmt.Sprintf("more than %d tags", maxTags))
		}
	}
	return nil
}

func isTag(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isStream(s[i:i+1]) && !strings.ContainsRune(".:=/", rune(c)) {
			return false
		}
	}
	return s != "" && len(s) <= maxTag
}

func (t *taking) setKey(v string) error {
	if len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"' { // as the HTTP field of the same meaning may be written
		v = v[1 : len(v)-1]
	}
	if v == "" || len(v) > maxIdempotencyKey || strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return badValue(fmt.Sprintf("give 1 to %d printable ASCII characters without blanks", maxIdempotencyKey))
	}
	t.controls.key = v
	return nil
}

// setSendAt takes RFC 3339 or seconds since 1970. A time that is over means now.
func (t *taking) setSendAt(v string) error {
	var at time.Time
	if len(v) <= epochDigits && v != "" && strings.Trim(v, "0123456789") == "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return badValue("give a time as RFC 3339 or in seconds since 1970")
		}
		at = time.Unix(n, 0)
	} else {
		var err error
		if at, err = time.Parse(time.RFC3339, strings.ToUpper(v)); err != nil {
			return badValue("give a time as RFC 3339 (2026-11-20T12:00:00Z) or in seconds since 1970")
		}
	}
	if at.After(t.now.Add(maxSendAt)) {
		return badValue(fmt.Sprintf("more than %d days ahead", int(maxSendAt/(24*time.Hour))))
	}
	if at.After(t.sendAt) {
		t.sendAt = at.UTC()
	}
	return nil
}

func (t *taking) setTTL(v string) error {
	n, err := strconv.ParseInt(v, 10, 64)
	most := int64(maxTTL / time.Second)
	if err != nil || v[0] == '+' || n < 1 || n > most {
		return badValue(fmt.Sprintf("give whole seconds from 1 to %d", most))
	}
	t.ttl = time.Duration(n) * time.Second
	return nil
}

// deadline tells that the sender said how long the message is of use.
func (t *taking) deadline() bool { return t.ttl > 0 || t.sub.ExpiresAt.After(t.now) }

// times sets when the first attempt may be and after when there is none. Both count from the wished time, so that
// a message for tomorrow does not expire before it.
func (t *taking) times() (next, expires time.Time) {
	next = t.now
	if t.sendAt.After(next) {
		next = t.sendAt
	}
	switch {
	case t.ttl > 0:
		expires = next.Add(t.ttl)
	case t.sub.ExpiresAt.After(t.now):
		expires = t.sub.ExpiresAt
	default:
		expires = next.Add(t.in.cfg.MaxAge)
	}
	return next, expires
}
