package intake

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"strings"

	"golang.org/x/text/encoding/htmlindex"
	"golang.org/x/text/unicode/norm"

	"relayd/internal/mail"
)

// address is the one mailbox of a From or Sender field.
type address struct {
	name string // display name, decoded
	path mail.Path
}

// Errors of parseMailbox are public texts.
var (
	errNotOne     = errors.New("must hold exactly one address")
	errBadMailbox = errors.New("is not a mail address")
)

// parseMailbox reads "local@domain", "Name <local@domain>" or "local@domain (comment)" and nothing else: no lists, no
// groups, no comments inside an address, no routes. Readers of mail differ in what they make of those.
func parseMailbox(v string) (address, error) {
	var a address
	s := strings.Trim(v, " \t")
	name, rest, err := cutName(s)
	if err != nil {
		return a, err
	}
	if !strings.HasPrefix(rest, "<") {
		return bareMailbox(s)
	}
	end := closing(rest)
	if end < 0 {
		return a, errBadMailbox
	}
	tail := strings.Trim(rest[end+1:], " \t")
	if tail != "" && !isComment(tail) {
		return a, errNotOne
	}
	if a.path, err = mail.ParsePath(rest[1:end]); err != nil {
		return a, errBadMailbox
	}
	return a, a.setName(strings.TrimSpace(name + " " + strings.Trim(tail, "()"))) // some readers show the comment as the name
}

// bareMailbox reads an address without angle brackets.
func bareMailbox(s string) (address, error) {
	var a address
	addr, tail := s, ""
	if i := strings.IndexByte(s, '('); i >= 0 && !strings.HasPrefix(s, `"`) {
		addr, tail = strings.TrimRight(s[:i], " \t"), s[i:]
		if !isComment(tail) {
			return a, errBadMailbox
		}
	}
	p, err := mail.ParsePath(addr)
	if err != nil {
		if strings.ContainsAny(addr, ",;") {
			return a, errNotOne
		}
		return a, errBadMailbox
	}
	a.path = p
	return a, a.setName(strings.Trim(tail, "()"))
}

// cutName reads a display name, words and quoted strings, up to the '<' behind it. Without such a '<' rest is empty, and
// all of s must be an address.
// Deviation: RFC 5322 section 3.2.5 wants brackets and parentheses quoted; many programs do not, and nobody is misled.
func cutName(s string) (name, rest string, err error) {
	var b strings.Builder
	for i := 0; i < len(s); {
		switch c := s[i]; c {
		case '"':
			text, n := unquote(s[i:])
			if n == 0 {
				return "", "", errBadMailbox
			}
			b.WriteString(text)
			i += n
		case '<':
			return strings.TrimSpace(b.String()), s[i:], nil
		case ',', ';':
			return "", "", errNotOne
		case '@', ':', '>', '\\':
			return "", "", nil
		default:
			b.WriteByte(c)
			i++
		}
	}
	return "", "", nil
}

// unquote reads the quoted string at the start of s; n is 0 where it has no end.
func unquote(s string) (text string, n int) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), i + 1
		case '\\':
			if i++; i == len(s) {
				return "", 0
			}
		}
		b.WriteByte(s[i])
	}
	return "", 0
}

// closing finds the '>' of the '<' at the start of s, outside of quotes.
func closing(s string) int {
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '>':
			return i
		case '"':
			_, n := unquote(s[i:])
			if n == 0 {
				return -1
			}
			i += n - 1
		}
	}
	return -1
}

// isComment takes one comment without others inside it.
func isComment(s string) bool {
	return len(s) >= 2 && s[0] == '(' && s[len(s)-1] == ')' && !strings.ContainsAny(s[1:len(s)-1], `()\`)
}

// setName takes a display name as it is written, and refuses one that hides something from the reader.
func (a *address) setName(written string) (err error) {
	if a.name, err = decodeName(written); err != nil {
		return err
	}
	if strings.ContainsAny(a.name, "\r\n\x00") {
		return errors.New("has a display name with a line break")
	}
	if mail.CleanText(a.name, len(a.name)) != a.name {
		return errors.New("has a display name with control characters")
	}
	return nil
}

// CheckDisplayName tells why a display name must not stand before an address of that domain: it hides something from the
// reader, or shows an address elsewhere. The error is for whoever sends.
func CheckDisplayName(name, domain string) error {
	a := address{path: mail.Path{Domain: domain}}
	if err := a.setName(name); err != nil {
		return err
	}
	if other := a.foreignDomain(); other != "" {
		return fmt.Errorf("shows an address at %s", clean(other))
	}
	return nil
}

// decodeName decodes the encoded words of a display name, in every character set that readers of mail know. Where one
// is left, of an unknown character set, malformed, or inside another, nobody can tell what a reader shows.
func decodeName(s string) (string, error) {
	words := mime.WordDecoder{CharsetReader: func(charset string, in io.Reader) (io.Reader, error) {
		charset, _, _ = strings.Cut(charset, "*") // its language (RFC 2231 section 5)
		known, err := htmlindex.Get(charset)
		if err != nil {
			return nil, err
		}
		return known.NewDecoder().Reader(in), nil
	}}
	name, err := words.DecodeHeader(s)
	if err != nil || strings.Contains(name, "=?") {
		return "", errors.New("has a display name with an encoded word that cannot be read")
	}
	return name, nil
}

// foreignDomain returns the domain of an address in the display name that is not the mailbox's own: many readers show
// nothing but the name.
func (a address) foreignDomain() string {
	rest := norm.NFKC.String(a.name) // a wide or small '@' is read as one
	for {
		local, after, found := strings.Cut(rest, "@")
		if !found {
			return ""
		}
		end := strings.IndexFunc(after, func(r rune) bool { return strings.ContainsRune(" \t<>()[]\",;:'/", r) })
		if end < 0 {
			end = len(after)
		}
		d, err := mail.ParseDomain(strings.TrimRight(after[:end], ".!?"), false)
		if err == nil && local != "" && strings.Contains(d, ".") && d != a.path.Domain {
			return d
		}
		rest = after
	}
}
