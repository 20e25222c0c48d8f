package mail

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// ErrBadPath is wrapped by every error of ParsePath.
var ErrBadPath = errors.New("bad address")

// Path is a reverse-path or a forward-path (RFC 5321 section 4.1.2) without angle brackets. Local is unquoted; Domain
// is lower case, an A-label where it is international, and has no trailing dot, or is an address literal with its
// brackets. Two spellings of one mailbox give one Path, but for the case of Local, which is the receiver's to judge.
// The zero value is the null reverse-path.
type Path struct{ Local, Domain string }

// Limits of RFC 5321 section 4.5.3.1.
const (
	maxLocal  = 64
	maxDomain = 255
	maxPath   = 254
)

// ParsePath parses "local@domain". Source routes, comments and surrounding blanks are refused, and so are control
// characters and bytes that are not UTF-8. The empty string is not a path: the caller knows whether `<>` is allowed.
func ParsePath(s string) (Path, error) {
	if !utf8.ValidString(s) {
		return Path{}, fmt.Errorf("%w: not UTF-8", ErrBadPath)
	}
	local, rest, err := parseLocal(s)
	if err != nil {
		return Path{}, err
	}
	if !strings.HasPrefix(rest, "@") {
		return Path{}, fmt.Errorf("%w: no @ after the local part", ErrBadPath)
	}
	domain, err := ParseDomain(rest[1:], true)
	if err != nil {
		return Path{}, err
	}
	p := Path{local, domain}
	if len(p.String()) > maxPath {
		return Path{}, fmt.Errorf("%w: longer than %d octets", ErrBadPath, maxPath)
	}
	return p, nil
}

func parseLocal(s string) (local, rest string, err error) {
	if strings.HasPrefix(s, `"`) {
		local, rest, err = parseQuoted(s[1:])
	} else {
		end := strings.IndexByte(s, '@')
		if end < 0 {
			return "", "", fmt.Errorf("%w: no @", ErrBadPath)
		}
		local, rest = s[:end], s[end:]
		if !isDotAtom(local) {
			return "", "", fmt.Errorf("%w: local part %q", ErrBadPath, CleanText(local, 80))
		}
	}
	if err == nil && len(local) > maxLocal {
		err = fmt.Errorf("%w: local part longer than %d octets", ErrBadPath, maxLocal)
	}
	return local, rest, err
}

func parseQuoted(s string) (local, rest string, err error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '"':
			return b.String(), s[i+1:], nil
		case c == '\\' && i+1 < len(s):
			i++
			if c = s[i]; c < 0x20 || c > 0x7e {
				return "", "", fmt.Errorf("%w: quoted pair in the local part", ErrBadPath)
			}
		case c < 0x20 || c == 0x7f || c == '\\':
			return "", "", fmt.Errorf("%w: control character in the local part", ErrBadPath)
		}
		b.WriteByte(c)
	}
	return "", "", fmt.Errorf("%w: quoted local part without its end", ErrBadPath)
}

func isDotAtom(s string) bool {
	if s == "" || s[0] == '.' || s[len(s)-1] == '.' || strings.Contains(s, "..") {
		return false
	}
	for _, r := range s {
		if !isAtext(r) && r != '.' {
			return false
		}
	}
	return true
}

func isAtext(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' ||
		r < 0x80 && strings.ContainsRune("!#$%&'*+-/=?^_`{|}~", r) || r >= 0xa0 && !isLineOrBidi(r)
}

// ParseDomain returns the canonical form of a domain name: lower case, A-labels, no trailing dot. With literal set it
// takes an address literal (RFC 5321 section 4.1.3) as well.
func ParseDomain(s string, literal bool) (string, error) {
	if strings.HasPrefix(s, "[") {
		if !literal {
			return "", fmt.Errorf("%w: address literal where a domain is expected", ErrBadPath)
		}
		return parseLiteral(s)
	}
	d := strings.TrimSuffix(s, ".")
	for i := range len(d) {
		if d[i] >= 0x80 {
			a, err := idna.New(idna.MapForLookup(), idna.BidiRule(), idna.Transitional(false)).ToASCII(d)
			if err != nil {
				return "", fmt.Errorf("%w: domain %q", ErrBadPath, CleanText(s, 80))
			}
			d = a
			break
		}
	}
	d = strings.ToLower(d)
	if d == "" || len(d) > maxDomain {
		return "", fmt.Errorf("%w: domain of %d octets", ErrBadPath, len(d))
	}
	for label := range strings.SplitSeq(d, ".") {
		if !isLabel(label) {
			return "", fmt.Errorf("%w: domain %q", ErrBadPath, CleanText(s, 80))
		}
	}
	return d, nil
}

// isLabel takes letters, digits, '-' inside, and '_' (seen in real host names, RFC 2181 section 11).
func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

func parseLiteral(s string) (string, error) {
	inner, ok := strings.CutSuffix(strings.TrimPrefix(s, "["), "]")
	if ok {
		text, v6 := inner, false
		if len(inner) > 5 && strings.EqualFold(inner[:5], "IPv6:") {
			text, v6 = inner[5:], true
		}
		if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" && a.Is4() != v6 {
			if v6 {
				return "[IPv6:" + a.String() + "]", nil
			}
			return "[" + a.String() + "]", nil
		}
	}
	return "", fmt.Errorf("%w: address literal %q", ErrBadPath, CleanText(s, 80))
}

// MustParsePath is ParsePath for constants; it panics on a bad one.
func MustParsePath(s string) Path {
	p, err := ParsePath(s)
	if err != nil {
		panic(err)
	}
	return p
}

// IsNull tells the null reverse-path `<>`.
func (p Path) IsNull() bool { return p == Path{} }

// NeedsUTF8 tells that the local part can only travel with SMTPUTF8 (RFC 6531).
func (p Path) NeedsUTF8() bool {
	for i := range len(p.Local) {
		if p.Local[i] >= 0x80 {
			return true
		}
	}
	return false
}

// String returns local@domain, the local part quoted where it must be, or "" for the null reverse-path.
func (p Path) String() string {
	if p.IsNull() {
		return ""
	}
	if isDotAtom(p.Local) {
		return p.Local + "@" + p.Domain
	}
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(p.Local) {
		if c := p.Local[i]; c == '"' || c == '\\' {
			b.WriteByte('\\')
		}
		b.WriteByte(p.Local[i])
	}
	return b.String() + `"@` + p.Domain
}

// Key is the spelling under which lists remember the mailbox: like String, with the local part in lower case.
func (p Path) Key() string { return Path{strings.ToLower(p.Local), p.Domain}.String() }

// MarshalText makes the path a string in JSON.
func (p Path) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText parses what MarshalText wrote; the empty text is the null reverse-path.
func (p *Path) UnmarshalText(b []byte) (err error) {
	if len(b) == 0 {
		*p = Path{}
		return nil
	}
	*p, err = ParsePath(string(b))
	return err
}
