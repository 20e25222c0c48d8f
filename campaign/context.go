package campaign

import "strings"

// htmlState says where in an HTML text one stands: it decides how a merged value is escaped. It is comparable, so that
// the branches of a condition can be required to end in the same place.
type htmlState struct {
	at      place
	elem    string // tag name being read, or the element whose text this is (script, title…)
	attr    string // attribute name
	closing bool   // an end tag
	match   int    // what was seen of the end of a comment or of raw text
	url     urlState
	begun   bool // the attribute's value has begun
}

type place uint8

const (
	inText        place = iota
	inTagOpen           // after <
	inMarkup            // after <!
	inMarkupDash        // after <!-
	inBogus             // <!doctype …, <? …
	inComment           // <!-- …
	inTagName           //
	inTag               // between attributes
	inAttrName          //
	afterAttrName       //
	beforeValue         // after =
	inDouble            // "value
	inSingle            // 'value
	inBare              // value without quotes
	inRaw               // text of script, style…
	inTitle             // text of title and textarea: no tags, but references
)

type urlState uint8

const (
	urlStart  urlState = iota
	urlScheme          // no : / ? # yet
	urlPath
	urlQuery // after ? or #
)

const maxName = 64

// advance moves the state over static text. body is called with the offset behind each <body …> tag.
func (s htmlState) advance(text string, body func(end int)) htmlState {
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch s.at {
		case inText:
			lt := strings.IndexByte(text[i:], '<')
			if lt < 0 {
				return s
			}
			i += lt
			s = htmlState{at: inTagOpen}
		case inTagOpen:
			switch {
			case c == '!':
				s.at = inMarkup
			case c == '?':
				s.at = inBogus
			case c == '/' && !s.closing:
				s.closing = true
			case isLetter(c):
				s.at, s.elem = inTagName, lower(c)
			default:
				s = htmlState{}
				i--
			}
		case inMarkup, inMarkupDash:
			s = s.markup(c)
		case inBogus:
			if c == '>' {
				s = htmlState{}
			}
		case inComment:
			s = s.comment(c)
		case inRaw, inTitle:
			s = s.rawText(c)
		case inTagName:
			switch {
			case c == '>':
				s = s.tagEnd(i+1, body)
			case isSpace(c) || c == '/':
				s.at = inTag
			case len(s.elem) < maxName:
				s.elem += lower(c)
			}
		default:
			s = s.inside(c, i, body)
		}
	}
	return s
}

// inside handles what stands in a tag behind its name.
func (s htmlState) inside(c byte, i int, body func(int)) htmlState {
	switch s.at {
	case inTag, afterAttrName:
		switch {
		case c == '>':
			return s.tagEnd(i+1, body)
		case c == '=' && s.at == afterAttrName:
			s.at = beforeValue
		case isSpace(c) || c == '/':
			if c == '/' {
				s.at = inTag
			}
		default:
			s.at, s.attr = inAttrName, lower(c)
		}
	case inAttrName:
		switch {
		case c == '>':
			return s.tagEnd(i+1, body)
		case c == '=':
			s.at = beforeValue
		case isSpace(c):
			s.at = afterAttrName
		case c == '/':
			s.at = inTag
		case len(s.attr) < maxName:
			s.attr += lower(c)
		}
	case beforeValue:
		s.url, s.begun = urlStart, false
		switch {
		case c == '"':
			s.at = inDouble
		case c == '\'':
			s.at = inSingle
		case c == '>':
			return s.tagEnd(i+1, body)
		case !isSpace(c):
			s.at = inBare
			s = s.value(c)
		}
	case inDouble, inSingle:
		if c == '"' && s.at == inDouble || c == '\'' && s.at == inSingle {
			return s.endValue()
		}
		s = s.value(c)
	case inBare:
		switch {
		case c == '>':
			return s.tagEnd(i+1, body)
		case isSpace(c):
			return s.endValue()
		}
		s = s.value(c)
	}
	return s
}

func (s htmlState) endValue() htmlState {
	return htmlState{at: inTag, elem: s.elem, closing: s.closing}
}

// value moves over one character of an attribute's value.
func (s htmlState) value(c byte) htmlState {
	switch {
	case s.url == urlStart && isSpace(c):
		return s
	case c == '?' || c == '#':
		s.url = urlQuery
	case (c == ':' || c == '/') && s.url <= urlScheme:
		s.url = urlPath
	case s.url == urlStart:
		s.url = urlScheme
	}
	s.begun = true
	return s
}

func (s htmlState) markup(c byte) htmlState {
	switch {
	case c == '>':
		return htmlState{}
	case c == '-' && s.at == inMarkup:
		return htmlState{at: inMarkupDash}
	case c == '-':
		return htmlState{at: inComment, match: 0}
	}
	return htmlState{at: inBogus}
}

func (s htmlState) comment(c byte) htmlState {
	switch {
	case c == '-':
		s.match = min(s.match+1, 2)
	case c == '>' && s.match == 2:
		return htmlState{}
	default:
		s.match = 0
	}
	return s
}

// rawText looks for the end tag of the element that it is in.
func (s htmlState) rawText(c byte) htmlState {
	want := "</" + s.elem
	switch {
	case s.match == len(want) && (isSpace(c) || c == '/'):
		return htmlState{at: inTag, elem: s.elem, closing: true}
	case s.match == len(want) && c == '>':
		return htmlState{}
	case s.match < len(want) && lower(c) == want[s.match:s.match+1]:
		s.match++
	case c == '<':
		s.match = 1
	default:
		s.match = 0
	}
	return s
}

func (s htmlState) tagEnd(end int, body func(int)) htmlState {
	if s.closing {
		return htmlState{}
	}
	switch s.elem {
	case "script", "style", "iframe", "xmp", "noembed", "noframes":
		return htmlState{at: inRaw, elem: s.elem}
	case "title", "textarea":
		return htmlState{at: inTitle, elem: s.elem}
	case "body":
		if body != nil {
			body(end)
		}
	}
	return htmlState{}
}

// join returns the state after two branches, and whether they end in the same place.
func join(a, b htmlState) (htmlState, bool) {
	if a == b {
		return a, true
	}
	x, y := a, b
	x.url, x.begun, y.url, y.begun = 0, false, 0, false
	if x != y {
		return a, false
	}
	a.begun = a.begun || b.begun
	switch { // the stricter one
	case a.url == urlQuery || b.url == urlQuery:
		a.url = urlQuery
	case a.url == urlScheme || b.url == urlScheme:
		a.url = urlScheme
	default:
		a.url = max(a.url, b.url)
	}
	return a, true
}

// where names the place for an error.
func (s htmlState) where() string {
	switch s.at {
	case inComment, inMarkup, inMarkupDash, inBogus:
		return "a comment"
	case inRaw, inTitle:
		return "<" + s.elem + ">"
	case inText:
		return "text"
	case inDouble, inSingle, inBare, beforeValue:
		return "the attribute " + s.attr
	case inAttrName, afterAttrName:
		return "an attribute's name"
	case inTagName, inTagOpen:
		return "a tag's name"
	}
	return "a tag"
}

func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' }

func lower(c byte) string {
	if c >= 'A' && c <= 'Z' {
		c += 'a' - 'A'
	}
	return string(rune(c))
}
