package campaign

import (
	"errors"
	"fmt"
	"html"
	"strings"
)

// escape says how a merged value is made harmless where it stands.
type escape uint8

const (
	escNone   escape = iota // subject and text part
	escText                 // between tags: what the author wrote is HTML, everything else is text
	escAttr                 // attribute value
	escURL                  // attribute value that is a URL, at its beginning: schemes are checked
	escScheme               // in a URL before its scheme is known: no colon
	escPath                 // in a URL behind its scheme
	escQuery                // in a URL behind ? or #
	escCSS                  // style attribute
	escRaw                  // the author's own text where nothing else may stand
	bare      escape = 0x80 // flag: the attribute value has no quotes
	bareBegin escape = 0x40 // flag: and this is its beginning
)

// escapeFor decides by the state how a value is escaped there; err says why none may stand there.
// raw tells {{{x}}}, author that the value is the campaign's own.
func (s htmlState) escapeFor(raw, author bool) (escape, error) {
	switch s.at {
	case inText, inTitle:
		return escText, nil
	case inRaw, inComment, inBogus, inMarkup, inMarkupDash:
		if raw && author {
			return escRaw, nil
		}
		return 0, fmt.Errorf("a merge tag may not stand in %s; {{{x}}} may, if x is in the campaign's data", s.where())
	case inDouble, inSingle:
		return s.attrEscape(author)
	case beforeValue:
		e, err := s.attrEscape(author)
		return e | bare | bareBegin, err
	case inBare:
		e, err := s.attrEscape(author)
		return e | bare, err
	}
	return 0, fmt.Errorf("a merge tag may not stand in %s", s.where())
}

func (s htmlState) attrEscape(author bool) (escape, error) {
	switch a := s.attr; {
	case strings.HasPrefix(a, "on"):
		return 0, fmt.Errorf("a merge tag may not stand in the attribute %s", a)
	case a == "style":
		return escCSS, nil
	case a == "srcset" || a == "srcdoc" || a == "ping":
		if author {
			return escAttr, nil
		}
		return 0, fmt.Errorf("a merge tag may not stand in the attribute %s", a)
	case isURLAttr(a):
		if s.at == beforeValue {
			return escURL, nil
		}
		return [...]escape{escURL, escScheme, escPath, escQuery}[s.url], nil
	}
	return escAttr, nil
}

func isURLAttr(a string) bool {
	switch a {
	case "href", "src", "action", "formaction", "background", "cite", "poster", "data", "longdesc", "usemap", "xlink:href",
		"manifest", "profile", "classid", "codebase", "icon", "dynsrc", "lowsrc":
		return true
	}
	return false
}

// merged is the state behind a merged value.
func (s htmlState) merged() htmlState {
	switch s.at {
	case beforeValue:
		s.at, s.url = inBare, urlPath
	case inDouble, inSingle, inBare:
		if s.url == urlStart {
			s.url = urlPath
		}
	default:
		return s
	}
	s.begun = true
	return s
}

// blockedURL takes the place of a URL with a scheme that is not allowed.
const blockedURL = "#"

// appendEscaped appends a value that may be anything. trusted is the author's: kept as HTML between tags.
func appendEscaped(b []byte, e escape, s string, trusted bool) []byte {
	if trusted && e&^(bare|bareBegin) > escText && e&^(bare|bareBegin) < escRaw {
		s = html.UnescapeString(s) // the author may have written &amp; in an address
	}
	switch e &^ (bare | bareBegin) {
	case escNone, escRaw:
		return append(b, s...)
	case escText:
		if trusted {
			return append(b, s...)
		}
		return appendHTML(b, s, false)
	case escAttr:
		return appendBareAware(b, s, e)
	case escCSS:
		if !trusted && !isPlainCSS(s) {
			s = ""
		}
		return appendBareAware(b, s, e)
	case escURL:
		s = strings.TrimFunc(s, func(r rune) bool { return r <= ' ' })
		if !isAllowedURL(s, trusted) {
			s = blockedURL
		}
		return appendURL(b, s, "", e)
	case escScheme:
		return appendURL(b, s, ":", e)
	case escPath:
		return appendURL(b, s, "", e)
	default: // escQuery
		return appendURL(b, s, ":/?#[]@!$&'()*+,;=%", e)
	}
}

// isAllowedURL takes relative URLs and those of a closed list of schemes; of the author all but script.
func isAllowedURL(s string, trusted bool) bool {
	end := strings.IndexAny(s, ":/?#&\\")
	if end < 0 || s[end] != ':' && s[end] != '&' {
		return true
	}
	if s[end] == '&' {
		return false // could be a reference that stands for a colon
	}
	switch scheme := strings.ToLower(s[:end]); scheme {
	case "http", "https", "mailto", "tel", "cid":
		return true
	case "javascript", "vbscript", "data":
		return false
	default:
		return trusted && isLetter(s[0]) && strings.Trim(scheme, "abcdefghijklmnopqrstuvwxyz0123456789+-.") == ""
	}
}

const hexDigits = "0123456789ABCDEF"

// appendURL percent-encodes what cannot stand in a URL, and the characters of more as well.
func appendURL(b []byte, s, more string, e escape) []byte {
	if s == "" && e&bareBegin != 0 {
		return append(b, `""`...)
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case c <= ' ' || c >= 0x7f || strings.IndexByte("\"<>\\^`{|}'", c) >= 0 || strings.IndexByte(more, c) >= 0:
			b = append(b, '%', hexDigits[c>>4], hexDigits[c&15])
		case c == '&':
			b = append(b, "&amp;"...)
		case c == '=' && e&bare != 0:
			b = append(b, "&#61;"...)
		default:
			b = append(b, c)
		}
	}
	return b
}

func appendBareAware(b []byte, s string, e escape) []byte {
	if s == "" && e&bareBegin != 0 {
		return append(b, `""`...)
	}
	return appendHTML(b, s, e&bare != 0)
}

// appendHTML escapes text for HTML; bareValue also what would end a value without quotes. Control characters that HTML
// forbids become U+FFFD.
func appendHTML(b []byte, s string, bareValue bool) []byte {
	last := 0
	for i := range len(s) {
		var esc string
		switch c := s[i]; c {
		case '&':
			esc = "&amp;"
		case '<':
			esc = "&lt;"
		case '>':
			esc = "&gt;"
		case '"':
			esc = "&#34;"
		case '\'':
			esc = "&#39;"
		case ' ', '\t', '\n', '\r', '=', '`':
			if !bareValue {
				continue
			}
			esc = fmt.Sprintf("&#%d;", c)
		default:
			if c >= ' ' && c != 0x7f {
				continue
			}
			esc = "\uFFFD"
		}
		b = append(append(b, s[last:i]...), esc...)
		last = i + 1
	}
	return append(b, s[last:]...)
}

// isPlainCSS takes values such as red, #fff, 12px and 50%: nothing that can end a declaration or load something.
func isPlainCSS(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !isLetter(c) && (c < '0' || c > '9') && strings.IndexByte(" #%.,-_", c) < 0 {
			return false
		}
	}
	return true
}

var errHeaderControl = errors.New("holds a line break or control character")

// checkHeaderText refuses what must not get into a header field: line breaks, control characters and marks that reorder
// text.
func checkHeaderText(s string) error {
	for _, r := range s {
		if isHeaderControl(r) {
			return errHeaderControl
		}
	}
	return nil
}

func isHeaderControl(r rune) bool {
	return r < ' ' && r != '\t' || r >= 0x7f && r < 0xa0 || r >= 0x2028 && r <= 0x202e || r >= 0x2066 && r <= 0x2069
}
