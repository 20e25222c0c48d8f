package mail

import (
	"bytes"
	"errors"
	"fmt"
	"mime"
	"strings"
)

// ErrBadHeader is wrapped by every error of ParseHeader.
var ErrBadHeader = errors.New("bad header")

// Field is one header field as it stands in the message. Raw holds all of it with its folding and final CRLF and
// shares memory with the parsed bytes.
type Field struct {
	Name string // as written
	Raw  []byte
}

// Header is the header section in its order.
type Header []Field

// ParseHeader parses a header section with CRLF line ends, with or without the empty line that ends it. A line that is
// neither a field nor a continuation is an error naming its number.
func ParseHeader(b []byte) (Header, error) {
	h := make(Header, 0, 24)
	for line := 1; len(b) > 0; line++ {
		if bytes.HasPrefix(b, crlf) {
			break
		}
		end := fieldEnd(b)
		name, ok := fieldName(b[:end])
		if !ok {
			return nil, fmt.Errorf("%w: line %d is not a field", ErrBadHeader, line)
		}
		h = append(h, Field{name, b[:end]})
		line += bytes.Count(b[:end], crlf) - 1
		b = b[end:]
	}
	return h, nil
}

var crlf = []byte("\r\n")

// fieldEnd returns the length of the field at the start of b with its continuation lines.
func fieldEnd(b []byte) int {
	for at := 0; ; {
		i := bytes.Index(b[at:], crlf)
		if i < 0 {
			return len(b)
		}
		at += i + 2
		if at >= len(b) || b[at] != ' ' && b[at] != '\t' {
			return at
		}
	}
}

func fieldName(b []byte) (string, bool) {
	i := bytes.IndexByte(b, ':')
	if i <= 0 {
		return "", false
	}
	name := bytes.TrimRight(b[:i], " \t") // obsolete syntax, RFC 5322 section 4.5.8
	for _, c := range name {
		if c <= ' ' || c >= 0x7f {
			return "", false
		}
	}
	if known := usualNames[string(name)]; known != "" {
		return known, true
	}
	return string(name), len(name) > 0
}

// usualNames are names that most messages have, so that parsing a header does not make them anew.
var usualNames = func() map[string]string {
	names := map[string]string{}
	for _, n := range []string{
		"From", "To", "Cc", "Subject", "Date", "Message-ID", "Message-Id", "Reply-To", "Sender", "MIME-Version", "Mime-Version",
		"Content-Type", "Content-Transfer-Encoding", "In-Reply-To", "References", "Received", "List-Id", "List-Unsubscribe",
		"List-Unsubscribe-Post", "Precedence", "Feedback-ID", "DKIM-Signature",
	} {
		names[n] = n
	}
	return names
}()

// Value returns the unfolded value of the field without surrounding blanks, not decoded.
func (f Field) Value() string {
	_, v, _ := bytes.Cut(f.Raw, []byte(":"))
	return strings.TrimSpace(strings.ReplaceAll(string(v), "\r\n", ""))
}

// Is compares the name without regard to case.
func (f Field) Is(name string) bool { return strings.EqualFold(f.Name, name) }

// Get returns the value of the first field of that name, or "".
func (h Header) Get(name string) string {
	for _, f := range h {
		if f.Is(name) {
			return f.Value()
		}
	}
	return ""
}

// Count tells how many fields have that name.
func (h Header) Count(name string) int {
	n := 0
	for _, f := range h {
		if f.Is(name) {
			n++
		}
	}
	return n
}

// Bytes joins the fields, without the empty line that ends the section.
func (h Header) Bytes() []byte {
	var b []byte
	for _, f := range h {
		b = append(b, f.Raw...)
	}
	return b
}

// DecodeText decodes the encoded words (RFC 2047) of a header value; what cannot be decoded stays as it is.
func DecodeText(s string) string {
	if t, err := new(mime.WordDecoder).DecodeHeader(s); err == nil {
		return t
	}
	return s
}

// AppendField appends "Name: value" CRLF, the value as encoded words where it is not ASCII (RFC 2047), folded at blanks
// so that lines stay within 78 octets where they can and within 998 always (RFC 5322 section 2.1.1). A value with CR, LF
// or NUL is refused, never written.
func AppendField(b []byte, name, value string) ([]byte, error) {
	if i := strings.IndexAny(value, "\r\n\x00"); i >= 0 {
		return b, fmt.Errorf("%w: %s holds a line break or NUL at byte %d", ErrBadHeader, name, i)
	}
	return appendFolded(b, name, EncodeText(value)), nil
}

// AppendRawField is AppendField for a value that is already in its transport form, such as an address list.
func AppendRawField(b []byte, name, value string) ([]byte, error) {
	if i := strings.IndexFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r > '~' }); i >= 0 {
		return b, fmt.Errorf("%w: %s holds a character that a header cannot carry at byte %d", ErrBadHeader, name, i)
	}
	return appendFolded(b, name, value), nil
}

// EncodeText returns the value with encoded words where it is not printable ASCII.
func EncodeText(value string) string { return mime.QEncoding.Encode("utf-8", value) }

const foldAt = 78

func appendFolded(b []byte, name, value string) []byte {
	b = append(append(b, name...), ':')
	col := len(name) + 1
	for word := range strings.SplitSeq(value, " ") {
		if col > len(name)+1 && col+1+len(word) > foldAt && strings.TrimLeft(word, " \t") != "" {
			b = append(b, "\r\n"...)
			col = 0
		}
		b = append(append(b, ' '), word...)
		col += 1 + len(word)
	}
	return append(b, "\r\n"...)
}

// FormatAddress returns `Name <local@domain>` in transport form: the display name quoted or encoded as it needs.
func FormatAddress(name string, p Path) (string, error) {
	if i := strings.IndexAny(name, "\r\n\x00"); i >= 0 {
		return "", fmt.Errorf("%w: display name holds a line break or NUL at byte %d", ErrBadHeader, i)
	}
	if name == "" {
		return p.String(), nil
	}
	if enc := EncodeText(name); enc != name {
		return mime.BEncoding.Encode("utf-8", name) + " <" + p.String() + ">", nil
	}
	r := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	return `"` + r.Replace(name) + `" <` + p.String() + ">", nil
}
