package event

import (
	"encoding/json"
	"strconv"
	"unicode/utf8"
)

// timeText is RFC 3339 in UTC with milliseconds, the time format of the API.
const timeText = "2006-01-02T15:04:05.000Z"

// size estimates the length of the record, so that Append allocates once.
func (e *Event) size() int {
	n := 320 + len(e.Type) + len(e.Account) + len(e.Envelope) + len(e.Stream) + len(e.Campaign) + len(e.From) + len(e.To) +
		len(e.Host) + len(e.TLS) + len(e.Reason)
	if e.Reply != nil {
		n += 48 + len(e.Reply.Text)
	}
	return n
}

// appendRecord appends the JSON of e with the ID of key. It is written by hand because every message passes here: it
// takes one allocation, encoding/json five (BenchmarkAppend). The order of the fields is part of the format: matcher.quick looks for it.
func appendRecord(b, key []byte, e *Event) ([]byte, error) {
	b = append(b, `{"id":"evt_`...)
	b = idText.AppendEncode(b, key)
	b = append(b, `","type":`...)
	b = appendString(b, e.Type)
	b = append(b, `,"version":`...)
	b = strconv.AppendInt(b, recordVersion, 10)
	b = append(b, `,"at":"`...)
	b = e.At.UTC().AppendFormat(b, timeText)
	b = append(b, '"')
	b = appendField(b, "account", e.Account)
	b = appendField(b, "envelope", e.Envelope)
	b = appendField(b, "stream", e.Stream)
	b = appendField(b, "campaign", e.Campaign)
	b = appendField(b, "from", e.From)
	b = appendField(b, "to", e.To)
	if e.Attempt != 0 {
		b = append(b, `,"attempt":`...)
		b = strconv.AppendInt(b, int64(e.Attempt), 10)
	}
	if e.Reply != nil {
		b = append(b, `,"reply":{"code":`...)
		b = strconv.AppendInt(b, int64(e.Reply.Code), 10)
		if !e.Reply.Status.IsZero() {
			b = append(b, `,"enhanced":"`...)
			b = strconv.AppendInt(b, int64(e.Reply.Status.Class), 10)
			b = append(b, '.')
			b = strconv.AppendInt(b, int64(e.Reply.Status.Subject), 10)
			b = append(b, '.')
			b = strconv.AppendInt(b, int64(e.Reply.Status.Detail), 10)
			b = append(b, '"')
		}
		b = append(b, `,"text":`...)
		b = appendString(b, e.Reply.Text)
		b = append(b, '}')
	}
	b = appendField(b, "host", e.Host)
	b = appendField(b, "tls", e.TLS)
	b = appendField(b, "reason", e.Reason)
	if len(e.Data) > 0 {
		data, err := json.Marshal(e.Data)
		if err != nil {
			return b, err
		}
		b = append(append(b, `,"data":`...), data...)
	}
	return append(b, '}'), nil
}

// appendField appends ,"name":"value" unless value is empty.
func appendField(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	b = append(append(append(b, `,"`...), name...), `":`...)
	return appendString(b, value)
}

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string. Bytes that are not UTF-8 become U+FFFD; line and paragraph separators are
// escaped, so that a record is one line wherever it is shown.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= ' ' && c != '"' && c != '\\' && c != 0x7f {
				i++
				continue
			}
			b = append(b, s[start:i]...)
			if c == '"' || c == '\\' {
				b = append(b, '\\', c)
			} else {
				b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			start = i
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			b = append(append(b, s[start:i]...), `\ufffd`...)
			start = i + 1
		case r == 0x2028 || r == 0x2029:
			b = append(append(b, s[start:i]...), `\u202`...)
			b = append(b, hexDigits[r&15])
			start = i + n
		}
		i += n
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}
