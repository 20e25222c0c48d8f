package campaign

import (
	"bytes"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/net/html"

	"relayd/internal/api"
)

// maxSheet bounds the HTML whose style rules are written into attributes.
const maxSheet = 2 << 20

// markAttr names elements in the copy of the HTML that rules are matched with.
const markAttr = "data-rl"

// sheet is a copy of the HTML as it was compiled, with merge tags masked by as many bytes, and where each of its pieces
// comes from. Style rules are matched with the copy and written into the source: the source keeps every other byte, so
// that loops around table rows, comments for Outlook and unclosed tags survive, which no HTML parser would leave alone.
type sheet struct {
	copy     []byte
	pieces   []sheetPiece
	copies   int // elements at most that the parser may add: see formatting
	warnings []api.Warning
}

// maxCopies bounds the elements that the parser may add to those that are written.
const maxCopies = 500_000

// formatting counts the elements that a parser opens anew in every paragraph until they are closed (the list of active
// formatting elements of HTML): a few hundred of them in a long document make a tree that fills the memory.
type formatting map[string]int

// see returns how many are open behind a token.
func (f formatting) see(kind html.TokenType, name string) int {
	switch name {
	case "a", "b", "big", "code", "em", "font", "i", "nobr", "s", "small", "strike", "strong", "tt", "u":
		if kind == html.EndTagToken {
			f[name] = max(f[name]-1, 0)
		} else {
			f[name]++
		}
	}
	open := 0
	for _, n := range f {
		open += n
	}
	return open
}

// sheetPiece is where bytes of the copy from at on come from.
type sheetPiece struct {
	at     int
	part   string
	src    string // source of the part
	offset int    // in src
	tag    bool   // a merge tag
	block  bool   // one of a block
}

// note adds a token that the compiler reads.
func (s *sheet) note(c *compiler, t token) {
	if len(s.copy) > maxSheet {
		return
	}
	p := sheetPiece{at: len(s.copy), part: c.part, src: c.src, offset: t.at}
	if !t.tag && !c.escaped {
		s.pieces = append(s.pieces, p)
		s.copy = append(s.copy, t.text...)
		return
	}
	p.tag, p.block = true, t.isBlock() && !t.hidden
	size, filler := len(t.source), byte(' ')
	if !t.tag {
		size = len(t.text)
	}
	switch c.st.at {
	case inRaw:
		filler = hole
	case beforeValue, inBare: // else what follows would become the value
		filler = 'x'
	case inTagOpen, inTagName, inAttrName, inMarkup, inMarkupDash, inBogus, inComment:
		size = 0 // it stands in a word, and shows nothing: whatever shows something does not compile there
	}
	s.pieces = append(s.pieces, p)
	s.copy = append(s.copy, bytes.Repeat([]byte{filler}, size)...)
}

// piece returns the piece that holds an offset of the copy.
func (s *sheet) piece(at int) int {
	return sort.Search(len(s.pieces), func(i int) bool { return s.pieces[i].at > at }) - 1
}

func (s *sheet) warn(at int, format string, args ...any) {
	if len(s.warnings) >= maxWarnings {
		return
	}
	w := api.Warning{Code: "css_not_inlined", Part: partHTML, Detail: fmt.Sprintf(format, args...)}
	if i := s.piece(at); i >= 0 {
		p := s.pieces[i]
		w.Part = p.part
		w.Line, _ = position(p.src, p.offset+at-p.at)
	}
	s.warnings = append(s.warnings, w)
}

// sheetTag is a start tag of the copy.
type sheetTag struct {
	at, nameEnd, end int // offsets in the copy
	name             string
}

// styles returns the sources that gain style attributes, by part.
func (s *sheet) styles() map[string]string {
	if len(s.copy) > maxSheet {
		s.warn(0, "HTML of more than %d bytes: style rules stay in <style>", maxSheet)
		return nil
	}
	tags, rules, marked := s.read()
	if len(rules) == 0 || len(tags) == 0 {
		return nil
	}
	if s.copies > maxCopies {
		s.warn(0, "too many open <b>, <font>, <a> and their kin: style rules stay in <style>")
		return nil
	}
	selectors := 0
	for i := range rules {
		selectors += len(rules[i].chain)
	}
	if len(rules) > maxRules || selectors*(len(tags)+s.copies) > maxMatches {
		s.warn(0, "%d rules for %d elements are too many: they stay in <style>", len(rules), len(tags))
		return nil
	}
	root, err := html.ParseWithOptions(bytes.NewReader(marked), html.ParseOptionEnableScripting(false))
	if err != nil {
		s.warn(0, "style rules stay in <style>: %s", err)
		return nil
	}
	edits := map[string]*sourceEdits{}
	given := map[sourcePlace]string{}
	var visit func(n *html.Node, parents []chainState)
	visit = func(n *html.Node, parents []chainState) {
		states := parents
		if n.Type == html.ElementNode {
			var normal, important []cssDecl
			states, normal, important = matching(n, rules, parents)
			if i, ok := markOf(n); ok && i < len(tags) && len(normal)+len(important) > 0 {
				s.edit(edits, given, tags[i], normal, important)
			}
		}
		for c := n.FirstChild; c != nil; c = c.NextSibling {
			if c.Type == html.ElementNode {
				visit(c, states)
			}
		}
	}
	visit(root, make([]chainState, len(rules)))
	out := map[string]string{}
	for part, e := range edits {
		out[part] = e.apply()
	}
	return out
}

// read finds the start tags and rules of the copy, and marks the tags.
func (s *sheet) read() (tags []sheetTag, rules []styleRule, marked []byte) {
	z := html.NewTokenizer(bytes.NewReader(s.copy))
	inStyle := false
	open := formatting{}
	for at := 0; ; {
		kind := z.Next()
		if kind == html.ErrorToken {
			return tags, rules, marked
		}
		raw := z.Raw()
		start := at
		at += len(raw)
		switch kind {
		case html.TextToken:
			if inStyle {
				rules = s.rules(rules, start, string(raw))
			}
			s.copies += open.see(kind, "")
			marked = append(marked, raw...)
		case html.StartTagToken, html.SelfClosingTagToken:
			whole := append([]byte(nil), raw...)
			t := z.Token()
			s.copies += open.see(kind, t.Data)
			inStyle = t.Data == "style" && isForScreens(t)
			name := 1 + nameLength(whole[1:])
			marked = append(marked, whole[:name]...)
			marked = append(marked, " "+markAttr+"=\""+strconv.Itoa(len(tags))+"\""...)
			marked = append(marked, whole[name:]...)
			tags = append(tags, sheetTag{start, start + name, at, t.Data})
		case html.EndTagToken:
			inStyle = false
			marked = append(marked, raw...)
			name, _ := z.TagName()
			open.see(kind, string(name))
		default:
			marked = append(marked, raw...)
		}
	}
}

func nameLength(b []byte) int {
	n := 0
	for n < len(b) && !isSpace(b[n]) && b[n] != '/' && b[n] != '>' {
		n++
	}
	return n
}

// isForScreens tells <style> elements whose rules hold for every reader.
func isForScreens(t html.Token) bool {
	media := strings.ToLower(attr(t, "media"))
	return (media == "" || media == "all" || media == "screen") && !strings.EqualFold(attr(t, "data-inline"), "false")
}

func (s *sheet) rules(rules []styleRule, at int, css string) []styleRule {
	for _, r := range parseCSS(css) {
		if !isInlined(r.selector) || len(rules) > maxRules {
			continue
		}
		rule, err := newStyleRule(r.selector, r.decls)
		if err != nil {
			s.warn(at, "the selector %q is not understood: its rule stays in <style>", clip(r.selector, 60))
			continue
		}
		rules = append(rules, rule)
	}
	return rules
}

func markOf(n *html.Node) (int, bool) {
	if n.Type != html.ElementNode {
		return 0, false
	}
	switch n.Data {
	case "html", "head", "meta", "title", "style", "script", "link", "base":
		return 0, false
	}
	for _, a := range n.Attr {
		if a.Key == markAttr {
			i, err := strconv.Atoi(a.Val)
			return i, err == nil && i >= 0
		}
	}
	return 0, false
}

// sourcePlace is where a tag begins in its source.
type sourcePlace struct {
	part   string
	offset int
}

// sourceEdits are insertions into one source.
type sourceEdits struct {
	src  string
	list []sourceEdit
}

type sourceEdit struct {
	at   int
	text string
}

func (e *sourceEdits) apply() string {
	sort.SliceStable(e.list, func(i, j int) bool { return e.list[i].at < e.list[j].at })
	var b strings.Builder
	last := 0
	for _, one := range e.list {
		b.WriteString(e.src[last:one.at])
		b.WriteString(one.text)
		last = one.at
	}
	b.WriteString(e.src[last:])
	return b.String()
}

// edit writes declarations into the style attribute of one tag. A style attribute that is there goes before what rules
// give, except for what they call important.
func (s *sheet) edit(edits map[string]*sourceEdits, given map[sourcePlace]string, t sheetTag, normal, important []cssDecl) {
	first := s.pieces[s.piece(t.at)]
	from := first.offset + t.at - first.at
	place := sourcePlace{first.part, from}
	if first.tag || s.piece(t.nameEnd-1) != s.piece(t.at) {
		return // its name comes from a partial or a value
	}
	key := string(appendDecls(appendDecls(nil, normal, '"'), important, '"'))
	if was, twice := given[place]; twice {
		if was != key {
			s.warn(t.at, "<%s> stands in several places, to which different rules apply: it has the style of the first", t.name)
		}
		return
	}
	given[place] = key
	values := attrValues(s.copy[t.nameEnd:t.end], t.nameEnd, "style")
	whole, blocks := s.contiguous(t, first)
	if len(values) > 0 && (!whole || blocks && len(values) == 1) {
		s.warn(t.at, "the style attribute of <%s> depends on merge tags: rules are not written into it", t.name)
		return
	}
	insert := func(at int, text string) {
		e := edits[first.part]
		if e == nil {
			e = &sourceEdits{src: first.src}
			edits[first.part] = e
		}
		if text != "" {
			e.list = append(e.list, sourceEdit{from + at - t.at, text})
		}
	}
	if len(values) == 0 {
		decls := mergeDecls(slices.Concat(normal, important), nil)
		insert(t.nameEnd, ` style="`+string(appendDecls(nil, decls, '"'))+`"`)
		return
	}
	for _, v := range values {
		s.editValue(v, normal, important, insert)
	}
}

// contiguous tells whether all of a tag stands in one source, and whether there are tags of blocks in it.
func (s *sheet) contiguous(t sheetTag, first sheetPiece) (whole, blocks bool) {
	for i := s.piece(t.at) + 1; i < len(s.pieces) && s.pieces[i].at < t.end; i++ {
		p := s.pieces[i]
		if p.part != first.part || p.offset-first.offset != p.at-first.at {
			return false, blocks
		}
		blocks = blocks || p.block
	}
	return true, blocks
}

func (s *sheet) editValue(v attrValue, normal, important []cssDecl, insert func(at int, text string)) {
	merged := s.piece(v.start) != s.piece(max(v.start, v.end-1)) || s.pieces[s.piece(v.start)].tag
	text := string(s.copy[v.start:v.end])
	if v.quote == 0 && (merged || v.start == v.end || strings.ContainsAny(text, "\"'")) {
		s.warn(v.start, "a style attribute without quotes: rules are not written into it")
		return
	}
	has := map[string]bool{}
	if !merged {
		for _, d := range parseDecls(html.UnescapeString(text)) {
			has[d.name] = true
		}
	}
	names := map[string]bool{}
	for _, d := range important {
		names[d.name] = true
	}
	quote, open, closing := v.quote, "", ""
	if quote == 0 {
		quote, open, closing = '"', `"`, `"`
	}
	before := string(appendDecls(nil, mergeDecls(slices.DeleteFunc(slices.Clone(normal), func(d cssDecl) bool { return names[d.name] }), has), quote))
	after := string(appendDecls(nil, mergeDecls(important, nil), quote))
	if filled := merged || strings.TrimSpace(text) != ""; filled {
		if before != "" {
			before += ";"
		}
		if after != "" {
			after = ";" + after
		}
	} else if before != "" && after != "" {
		after = ";" + after
	}
	insert(v.start, open+before)
	insert(v.end, after+closing)
}

// attrValue is the place of an attribute's value.
type attrValue struct {
	start, end int
	quote      byte // 0 for none
}

// attrValues finds the values of an attribute in what stands behind a tag's name; base is added to the offsets.
func attrValues(b []byte, base int, name string) []attrValue {
	var list []attrValue
	for i := 0; i < len(b); {
		for i < len(b) && (isSpace(b[i]) || b[i] == '/') {
			i++
		}
		if i >= len(b) || b[i] == '>' {
			return list
		}
		start := i
		for i++; i < len(b) && !isSpace(b[i]) && b[i] != '/' && b[i] != '>' && b[i] != '='; i++ {
		}
		found := strings.EqualFold(string(b[start:i]), name)
		j := i
		for j < len(b) && isSpace(b[j]) {
			j++
		}
		if j >= len(b) || b[j] != '=' {
			if found {
				list = append(list, attrValue{base + i, base + i, 0})
			}
			continue
		}
		for j++; j < len(b) && isSpace(b[j]); j++ {
		}
		v := attrValue{start: j, end: j}
		if j < len(b) && (b[j] == '"' || b[j] == '\'') {
			v.quote = b[j]
			v.start++
			end := bytes.IndexByte(b[v.start:], v.quote)
			if end < 0 {
				return list
			}
			v.end = v.start + end
			i = v.end + 1
		} else {
			for v.end < len(b) && !isSpace(b[v.end]) && b[v.end] != '>' {
				v.end++
			}
			i = v.end
		}
		if found {
			list = append(list, attrValue{base + v.start, base + v.end, v.quote})
		}
	}
	return list
}
