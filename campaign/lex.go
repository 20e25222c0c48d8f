package campaign

import "strings"

// token is a piece of template source: static text or one tag in braces.
type token struct {
	tag    bool
	raw    bool   // {{{x}}} or {{&x}}
	text   string // static text, or what stands between the braces without markers and surrounding blanks
	at     int    // offset of its beginning in the source
	inner  int    // tags: offset of text in the source
	trimL  bool   // {{~
	trimR  bool   // ~}}
	hidden bool   // comment
	source string // tags: as written
}

// lex cuts the source into tokens and applies ~ and, with lines set, the rule that a block tag alone on its line leaves
// no line behind.
func lex(part, src string, lines bool) ([]token, error) {
	toks, err := scan(part, src)
	if err == nil {
		trim(toks, lines)
	}
	return toks, err
}

// scan cuts the source into tokens.
func scan(part, src string) ([]token, error) {
	if len(src) > maxSource {
		return nil, errorAt(part, src, 0, "longer than %d bytes", maxSource)
	}
	var toks []token
	for at := 0; at < len(src); {
		i := strings.Index(src[at:], "{{")
		if i < 0 {
			toks = append(toks, token{text: src[at:], at: at})
			break
		}
		if i > 0 && src[at+i-1] == '\\' { // \{{ stands for {{ itself
			end := strings.Index(src[at+i:], "}}")
			if end < 0 {
				end = len(src) - at - i - 2
			}
			toks = append(toks, token{text: src[at : at+i-1], at: at}, token{text: src[at+i : at+i+end+2], at: at + i})
			at += i + end + 2
			continue
		}
		if i > 0 {
			toks = append(toks, token{text: src[at : at+i], at: at})
		}
		t, size, err := lexTag(part, src, at+i)
		if err != nil {
			return nil, err
		}
		t.source = src[at+i : at+i+size]
		toks = append(toks, t)
		at += i + size
	}
	return toks, nil
}

// lexTag reads the tag at src[at:] and returns its length.
func lexTag(part, src string, at int) (token, int, error) {
	t := token{tag: true, at: at}
	p, end := at+2, "}}"
	if strings.HasPrefix(src[p:], "{") {
		t.raw, end = true, "}}}"
		p++
	}
	if strings.HasPrefix(src[p:], "~") {
		t.trimL = true
		p++
	}
	if strings.HasPrefix(src[p:], "!--") {
		end = "--}}"
		if i, j := strings.Index(src[p:], "--}}"), strings.Index(src[p:], "--~}}"); j >= 0 && (i < 0 || j < i) {
			end, t.trimR = "--~}}", true
		}
	}
	size := strings.Index(src[p:], end)
	if size < 0 {
		return t, 0, errorAt(part, src, at, "{{ without its %s", end)
	}
	text, length := src[p:p+size], p+size+len(end)-at
	if strings.HasSuffix(text, "~") {
		t.trimR, text = true, text[:len(text)-1]
	}
	if strings.HasPrefix(text, "!") {
		t.hidden = true
		return t, length, nil
	}
	if len(text) > maxTag {
		return t, 0, errorAt(part, src, at, "tag longer than %d bytes", maxTag)
	}
	if strings.HasPrefix(text, "&") {
		t.raw, text = true, text[1:]
		p++
	}
	t.inner = p + len(text) - len(strings.TrimLeft(text, " \t\n"))
	t.text = strings.Trim(text, " \t\n")
	return t, length, nil
}

// isBlock tells tags that make no output of their own.
func (t token) isBlock() bool {
	if !t.tag || t.hidden {
		return t.tag
	}
	return !t.raw && (strings.HasPrefix(t.text, "#") || strings.HasPrefix(t.text, "/") || isElse(t.text))
}

// isPartial tells {{> name}}, which stands for other source.
func (t token) isPartial() bool { return t.tag && !t.raw && strings.HasPrefix(t.text, ">") }

func isElse(s string) bool { return s == "else" || s == "^" || strings.HasPrefix(s, "else ") }

func trim(toks []token, lines bool) {
	alone := make([]bool, len(toks))
	for i, t := range toks {
		alone[i] = lines && (t.isBlock() || t.isPartial()) && blankBefore(toks, i) && blankAfter(toks, i)
	}
	for i, t := range toks {
		if !t.tag {
			continue
		}
		if i > 0 && !toks[i-1].tag {
			if t.trimL {
				toks[i-1].text = strings.TrimRight(toks[i-1].text, " \t\n")
			} else if alone[i] {
				toks[i-1].text = strings.TrimRight(toks[i-1].text, " \t")
			}
		}
		if i+1 < len(toks) && !toks[i+1].tag {
			next := &toks[i+1]
			if was := next.text; t.trimR {
				next.text = strings.TrimLeft(was, " \t\n")
				next.at += len(was) - len(next.text)
			} else if alone[i] {
				next.text = strings.TrimPrefix(strings.TrimLeft(was, " \t"), "\n")
				next.at += len(was) - len(next.text)
			}
		}
	}
}

func blankBefore(toks []token, i int) bool {
	if i == 0 {
		return true
	}
	if toks[i-1].tag {
		return false
	}
	s := toks[i-1].text
	nl := strings.LastIndexByte(s, '\n')
	return strings.Trim(s[nl+1:], " \t") == "" && (nl >= 0 || i == 1)
}

func blankAfter(toks []token, i int) bool {
	if i == len(toks)-1 {
		return true
	}
	if toks[i+1].tag {
		return false
	}
	line, _, ends := strings.Cut(toks[i+1].text, "\n")
	return strings.Trim(line, " \t") == "" && (ends || i+2 == len(toks))
}
