package contact

import (
	"encoding/json"
	"strings"
)

// Status is what a list says of a contact's wish to hear from us.
type Status uint8

// The states of a subscription. Absent and Invalid are never stored.
const (
	Absent Status = iota // nothing is said: the list's default decides, or what stood there before
	Subscribed
	Unsubscribed
	Pending // on a list that wants a confirmation, before there is one
	Invalid
)

// String is the status's name in the API, "" for Absent and Invalid.
func (s Status) String() string {
	switch s {
	case Subscribed:
		return "subscribed"
	case Unsubscribed:
		return "unsubscribed"
	case Pending:
		return "pending"
	}
	return ""
}

// ParseStatus reads a subscription status in all its usual spellings, without regard to case and surrounding blanks.
func ParseStatus(s string) Status {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "":
		return Absent
	case "true", "1", "yes", "y", "t", "on", "subscribed", "opt_in":
		return Subscribed
	case "false", "0", "no", "n", "f", "off", "unsubscribed", "opt_out":
		return Unsubscribed
	}
	return Invalid
}

// StatusOf is ParseStatus for what JSON decoding or a database driver yields.
func StatusOf(x any) Status {
	switch x := x.(type) {
	case nil:
		return Absent
	case bool:
		if x {
			return Subscribed
		}
		return Unsubscribed
	case json.Number:
		return ParseStatus(x.String())
	case int64:
		switch x {
		case 0:
			return Unsubscribed
		case 1:
			return Subscribed
		}
	case float64:
		switch x {
		case 0:
			return Unsubscribed
		case 1:
			return Subscribed
		}
	case []byte:
		if len(x) == 1 && x[0] <= 1 { // BIT(1)
			return StatusOf(int64(x[0]))
		}
		return ParseStatus(string(x))
	case string:
		return ParseStatus(x)
	}
	return Invalid
}
