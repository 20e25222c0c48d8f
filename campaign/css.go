package campaign

import (
	"strings"
)

// Limits of style sheets.
const (
	maxRules   = 2000       // selectors of all <style> elements
	maxMatches = 20_000_000 // simple selectors times elements
)

// hole stands in a style sheet for each byte of a merge tag: what holds one is not written into style attributes.
const hole = '\x02'

// cssRule is one selector with its declarations.
type cssRule struct {
	selector string
	decls    []cssDecl
}

// cssDecl is one declaration. Its texts are as written, without blanks and comments around them.
type cssDecl struct {
	name, value string
	important   bool
}

// cssScanner reads the rules of a style sheet that hold on every screen and in every state. It takes everything for CSS,
// as browsers do: what it does not understand it leaves out (CSS Syntax Level 3).
type cssScanner struct {
	s   string
	pos int
}

// parseCSS returns the rules outside of @media and other at-rules, in their order.
func parseCSS(s string) []cssRule {
	var rules []cssRule
	p := &cssScanner{s: s}
	for {
		p.blanks()
		if p.pos >= len(p.s) {
			return rules
		}
		if p.s[p.pos] == '@' {
			p.until("{;")
			if p.pos < len(p.s) && p.s[p.pos] == '{' {
				p.block()
			} else {
				p.pos++
			}
			continue
		}
		if p.s[p.pos] == '}' { // closes nothing
			p.pos++
			continue
		}
		start := p.pos
		p.until("{")
		if p.pos >= len(p.s) {
			return rules
		}
		selectors := p.s[start:p.pos]
		start = p.pos + 1
		p.block()
		decls := parseDecls(strings.TrimSuffix(p.s[min(start, p.pos):p.pos], "}"))
		if len(decls) == 0 {
			continue
		}
		for _, sel := range splitCSS(selectors, ',') {
			if sel = strings.TrimSpace(withoutComments(sel)); sel != "" {
				rules = append(rules, cssRule{sel, decls})
			}
		}
	}
}

// blanks skips white space, comments and the marks <!-- and -->.
func (p *cssScanner) blanks() {
	for p.pos < len(p.s) {
		rest := p.s[p.pos:]
		switch {
		case isSpace(rest[0]):
			p.pos++
		case strings.HasPrefix(rest, "/*"):
			p.comment()
		case strings.HasPrefix(rest, "<!--"):
			p.pos += 4
		case strings.HasPrefix(rest, "-->"):
			p.pos += 3
		default:
			return
		}
	}
}

func (p *cssScanner) comment() {
	if i := strings.Index(p.s[p.pos+2:], "*/"); i >= 0 {
		p.pos += i + 4
	} else {
		p.pos = len(p.s)
	}
}

// text skips a text in quotes, which a line end closes too.
func (p *cssScanner) text() {
	quote := p.s[p.pos]
	for p.pos++; p.pos < len(p.s); p.pos++ {
		switch p.s[p.pos] {
		case '\\':
			p.pos++
		case quote, '\n':
			p.pos++
			return
		}
	}
	p.pos = min(p.pos, len(p.s))
}

// until moves to the first of the characters that stands outside of texts, comments, brackets and parentheses.
func (p *cssScanner) until(set string) {
	depth := 0
	for p.pos < len(p.s) {
		c := p.s[p.pos]
		switch {
		case c == '"' || c == '\'':
			p.text()
			continue
		case strings.HasPrefix(p.s[p.pos:], "/*"):
			p.comment()
			continue
		case c == '\\':
			p.pos = min(p.pos+2, len(p.s))
			continue
		case depth == 0 && strings.IndexByte(set, c) >= 0:
			return
		case c == '(' || c == '[':
			depth++
		case (c == ')' || c == ']') && depth > 0:
			depth--
		}
		p.pos++
	}
}

// block moves behind the block that begins at the present place.
func (p *cssScanner) block() {
	depth := 0
	for p.pos < len(p.s) {
		p.until("{}")
		if p.pos >= len(p.s) {
			return
		}
		if p.s[p.pos] == '{' {
			depth++
		} else if depth--; depth <= 0 {
			p.pos++
			return
		}
		p.pos++
	}
}

// splitCSS cuts s at a character outside of texts, comments and parentheses.
func splitCSS(s string, at byte) []string {
	var list []string
	p := &cssScanner{s: s}
	for start := 0; ; {
		p.until(string(rune(at)))
		list = append(list, s[start:p.pos])
		if p.pos >= len(s) {
			return list
		}
		p.pos++
		start = p.pos
	}
}

func withoutComments(s string) string {
	for {
		i := strings.Index(s, "/*")
		if i < 0 {
			return s
		}
		end := strings.Index(s[i+2:], "*/")
		if end < 0 {
			return s[:i]
		}
		s = s[:i] + " " + s[i+2+end+2:]
	}
}

// parseDecls reads the declarations of a block or of a style attribute. What holds a merge tag, or braces, is left out.
func parseDecls(s string) []cssDecl {
	var list []cssDecl
	for _, text := range splitCSS(s, ';') {
		text = withoutComments(text)
		name, v, ok := strings.Cut(text, ":")
		name, v = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(v)
		if !ok || name == "" || v == "" || strings.ContainsAny(text, "{}\x02\x00") || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			continue
		}
		d := cssDecl{name: name, value: strings.Join(strings.Fields(v), " ")}
		if i := strings.LastIndexByte(d.value, '!'); i >= 0 && strings.EqualFold(strings.TrimSpace(d.value[i+1:]), "important") {
			d.important, d.value = true, strings.TrimSpace(d.value[:i])
		}
		if d.value != "" && closesTexts(d.value) {
			list = append(list, d)
		}
	}
	return list
}

// closesTexts tells values that have no open quote, comment or parenthesis, which would swallow what stands behind them.
func closesTexts(s string) bool {
	depth := 0
	for q := (&cssScanner{s: s}); q.pos < len(s); {
		switch c := s[q.pos]; c {
		case '"', '\'':
			start := q.pos
			if q.text(); q.pos-start < 2 || s[q.pos-1] != c {
				return false
			}
			continue
		case '\\':
			q.pos++
			if q.pos >= len(s) {
				return false
			}
		case '(', '[':
			depth++
		case ')', ']':
			if depth--; depth < 0 {
				return false
			}
		}
		q.pos++
	}
	return depth == 0
}

// isInlined tells selectors that do not depend on states, on a neighbour or on a number: what a loop repeats, and what a
// reader does, is not known when they are matched.
func isInlined(selector string) bool {
	return !strings.ContainsAny(selector, ":+~|\x02\\") && strings.IndexByte(selector, '>') != 0
}

// mergeDecls lays declarations over others: the last of a name stays, in its place. What skip names is left out.
func mergeDecls(list []cssDecl, skip map[string]bool) []cssDecl {
	last := make(map[string]int, len(list))
	for i, d := range list {
		last[d.name] = i
	}
	out := make([]cssDecl, 0, len(last))
	for i, d := range list {
		if last[d.name] == i && !skip[d.name] {
			out = append(out, d)
		}
	}
	return out
}

// appendDecls writes declarations for a style attribute between the given quotes.
func appendDecls(b []byte, list []cssDecl, quote byte) []byte {
	for i, d := range list {
		if i > 0 {
			b = append(b, ';')
		}
		b = append(append(b, d.name...), ':')
		v := d.value
		if quote == '"' && !strings.Contains(v, "'") {
			v = strings.ReplaceAll(v, `"`, "'") // readable, and the same in CSS
		}
		for i := range len(v) {
			switch c := v[i]; {
			case c == '&':
				b = append(b, "&amp;"...)
			case c == '<':
				b = append(b, "&lt;"...)
			case c == quote && c == '"':
				b = append(b, "&#34;"...)
			case c == quote:
				b = append(b, "&#39;"...)
			default:
				b = append(b, c)
			}
		}
	}
	return b
}
