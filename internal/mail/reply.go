package mail

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Status is an enhanced status code, class.subject.detail (RFC 3463). The zero value means none was given.
type Status struct{ Class, Subject, Detail int }

// ParseStatus reads a status code at the start of s and returns what follows it without the blank.
func ParseStatus(s string) (st Status, rest string, ok bool) {
	word, rest, _ := strings.Cut(s, " ")
	a, bc, ok1 := strings.Cut(word, ".")
	b, c, ok2 := strings.Cut(bc, ".")
	if !ok1 || !ok2 || len(a) != 1 || len(b) > 3 || len(c) > 3 {
		return Status{}, s, false
	}
	x, e1 := parseDigits(a)
	y, e2 := parseDigits(b)
	z, e3 := parseDigits(c)
	if !e1 || !e2 || !e3 || x != 2 && x != 4 && x != 5 {
		return Status{}, s, false
	}
	return Status{x, y, z}, rest, true
}

func parseDigits(s string) (int, bool) {
	if s == "" {
		return 0, false
	}
	n := 0
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + int(s[i]-'0')
	}
	return n, true
}

// IsZero tells that there is no status code.
func (s Status) IsZero() bool { return s == Status{} }

// String returns "5.1.1", or "" for the zero value.
func (s Status) String() string {
	if s.IsZero() {
		return ""
	}
	return strconv.Itoa(s.Class) + "." + strconv.Itoa(s.Subject) + "." + strconv.Itoa(s.Detail)
}

// MarshalText makes the status a string in JSON.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText parses what MarshalText wrote.
func (s *Status) UnmarshalText(b []byte) error {
	*s = Status{}
	if len(b) == 0 {
		return nil
	}
	st, rest, ok := ParseStatus(string(b))
	if !ok || rest != "" {
		return fmt.Errorf("not a status code: %q", b)
	}
	*s = st
	return nil
}

// Reply is what one side of an SMTP session answers (RFC 5321 section 4.2). Text is public, holds no line break and
// tells nothing of our insides; on replies of other hosts it is truncated and cleaned by ReplyText.
type Reply struct {
	Code   int    `json:"code"`
	Status Status `json:"enhanced,omitzero"`
	Text   string `json:"text"`
}

// String returns "550 5.1.1 text".
func (r Reply) String() string {
	s := strconv.Itoa(r.Code)
	if !r.Status.IsZero() {
		s += " " + r.Status.String()
	}
	if r.Text != "" {
		s += " " + r.Text
	}
	return s
}

// IsZero tells that no reply was given.
func (r Reply) IsZero() bool { return r.Code == 0 }

// Temporary is true for 4yz, and for 0: an error without a reply is temporary.
func (r Reply) Temporary() bool { return r.Code == 0 || r.Code/100 == 4 }

// Permanent is true for 5yz.
func (r Reply) Permanent() bool { return r.Code/100 == 5 }

// Positive is true for 2yz.
func (r Reply) Positive() bool { return r.Code/100 == 2 }

// maxReplyText bounds what is kept of a remote reply.
const maxReplyText = 512

// ReplyText makes remote text safe to store, log and show: control characters, line breaks, invalid UTF-8 and
// bidirectional overrides become '?', and at most 512 bytes are kept.
func ReplyText(s string) string { return CleanText(s, maxReplyText) }

// CleanText is ReplyText with another bound, in bytes.
func CleanText(s string, most int) string {
	var b strings.Builder
	for _, r := range s {
		if r < 0x20 || r == 0x7f || r == 0xfffd || r >= 0x80 && r < 0xa0 || isLineOrBidi(r) {
			r = '?'
			if b.Len() > 0 && b.String()[b.Len()-1] == '?' {
				continue
			}
		}
		if b.Len()+len(string(r)) > most {
			break
		}
		b.WriteRune(r)
	}
	return b.String()
}

func isLineOrBidi(r rune) bool {
	return r == 0x2028 || r == 0x2029 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 || r == 0x200e || r == 0x200f
}

// Error is the one error type that crosses packages when SMTP or HTTP can see it. Reply is public; Err is for the log
// and may be nil.
type Error struct {
	Reply Reply
	Err   error
}

// Refuse makes an Error. The class of status must be that of code.
func Refuse(code int, status Status, text string, err error) *Error {
	return &Error{Reply{code, status, text}, err}
}

// Error returns the reply and, behind a colon, the private cause.
func (e *Error) Error() string {
	if e.Err != nil {
		return e.Reply.String() + ": " + e.Err.Error()
	}
	return e.Reply.String()
}

// Unwrap returns the private cause.
func (e *Error) Unwrap() error { return e.Err }

// ReplyOf returns the reply that err carries. An error without one is temporary: 451 4.3.0.
func ReplyOf(err error) Reply {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reply
	}
	return Reply{451, Status{4, 3, 0}, "Local error, please try again later"}
}
